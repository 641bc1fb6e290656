"""Text from outside, before a person sees it: a terminal or a label must show it, never obey it."""

from __future__ import annotations

import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def shown(character: str) -> bool:
    """Whether a character is only shown: no control, direction, invisible or unassigned one, no half of a surrogate pair."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def printable(text: str, keep: str = "", instead: str = "") -> str:
    """`text` with `instead` for every character that is not `shown`, those in `keep` excepted."""
    if text.isprintable():
        return text
    return "".join(c if shown(c) or c in keep else instead for c in text)
