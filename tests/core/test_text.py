"""Text from outside is shown, never obeyed."""

from __future__ import annotations

import sys
import unicodedata

from rt_mmdf.core.text import printable, shown


def test_no_control_direction_or_half_character_is_shown() -> None:
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co"}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        assert shown(character) == (unicodedata.category(character) not in hidden), hex(code)


def test_what_is_not_shown_is_left_out_or_replaced() -> None:
    assert printable("EEG 001 µV é 測 \u00a0x") == "EEG 001 µV é 測 \u00a0x"
    assert printable("a\x1b[2J\u202eb\x9b\ud800\x00\nc") == "a[2Jbc"
    assert printable("a\x1b\nb\rc", keep="\n", instead="?") == "a?\nb?c"
