from __future__ import annotations

import pytest

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.view.themes import DARK, LIGHT, THEMES, Theme, contrast, theme_named


def test_contrast_of_black_and_white_is_21_and_of_a_colour_with_itself_1() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#56b4e9", "#56b4e9") == 1
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's known case: just too little


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=lambda theme: theme.name)
def test_what_is_read_stands_out(theme: Theme) -> None:
    for ground in (theme.panel, theme.background):
        for ink in (theme.text, theme.muted, theme.accent, theme.good, theme.warn, theme.bad):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
        for line in (theme.eeg, theme.mag, theme.grad, *theme.series):
            assert contrast(line, ground) >= 3, (line, ground)
    assert contrast(theme.on_bad, theme.bad) >= 4.5


def test_themes_by_name() -> None:
    assert {name: theme_named(name) for name in THEMES} == {"dark": DARK, "light": LIGHT}
    with pytest.raises(ConfigurationError, match="dark, light"):
        theme_named("sepia")
