from __future__ import annotations

from collections import Counter
from html import escape

from rt_mmdf.view.shortcuts import BY_ACTION, MOUSE, SHORTCUTS, help_page, keys_of


def test_no_key_does_two_things_and_no_action_is_named_twice() -> None:
    keys = Counter(key.lower() for shortcut in SHORTCUTS for key in shortcut.keys)
    assert {key: n for key, n in keys.items() if n > 1} == {}
    assert len(BY_ACTION) == len(SHORTCUTS)


def test_the_page_shows_every_key_and_what_it_does() -> None:
    page = help_page()
    for shortcut in SHORTCUTS:
        assert f"<b>{escape(keys_of(shortcut.action))}</b></td><td>{escape(shortcut.does)}</td>" in page
    for gesture, does in MOUSE:
        assert f"<b>{gesture}</b></td><td>{does}</td>" in page


def test_keys_in_words() -> None:
    assert keys_of("second_back") == "Shift+←"
    assert keys_of("live") == "Home or L"
