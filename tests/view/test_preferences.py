from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QByteArray, QSettings

from rt_mmdf.view.preferences import CHOICES, MAX_LIMITS, Preferences, PreferencesStore

positive = st.floats(1e-15, 1e3)
limits = st.dictionaries(
    st.text(min_size=1, max_size=20),
    st.tuples(positive, positive, positive).map(lambda t: (t[0], t[0] + t[1], t[0] + t[1] + t[0] + t[2])),
    max_size=5,
)
preferences = st.builds(
    Preferences,
    **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
    compare=st.booleans(),
    limits=limits,
)


@given(wanted=preferences)
def test_what_was_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, wanted: Preferences) -> None:
    path = tmp_path_factory.mktemp("preferences") / "view.ini"
    PreferencesStore(path).save(wanted)
    assert PreferencesStore(path).load() == wanted


def test_a_first_start_has_defaults(tmp_path: Path) -> None:
    store = PreferencesStore(tmp_path / "none.ini")
    assert store.load() == Preferences()
    assert store.arrangement() is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("theme", "sepia"),
        ("surface", "3"),
        ("layout", "\x00\xff"),
        ("measure", ""),
        ("scale_mode", "['auto']"),
        ("compare", "perhaps"),
        ("limits", "{"),
        ("limits", "[1, 2, 3]"),
        ("limits", '{"MNE / A m": [3, 2, 1]}'),
        ("limits", '{"MNE / A m": [0, 1, NaN]}'),
        ("limits", '{"MNE / A m": [0, 1, Infinity]}'),
        ("limits", '{"MNE / A m": [true, 1, 2]}'),
        ("limits", '{"MNE / A m": ["0", 1, 2]}'),
    ],
)
def test_a_damaged_entry_counts_as_not_there(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "view.ini"
    settings = QSettings(str(path), QSettings.Format.IniFormat)
    settings.setValue(f"view/{key}", value)
    settings.sync()
    assert PreferencesStore(path).load() == Preferences()


def test_only_the_newest_limits_are_kept(tmp_path: Path) -> None:
    many = {f"solver {n}": (0.0, 1.0, 2.0 + n) for n in range(3 * MAX_LIMITS)}
    PreferencesStore(tmp_path / "view.ini").save(Preferences(limits=many))
    assert PreferencesStore(tmp_path / "view.ini").load().limits == dict(list(many.items())[-MAX_LIMITS:])


def test_the_arrangement_of_the_window_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "view.ini"
    PreferencesStore(path).save_arrangement(QByteArray(b"\x01\x00geometry"), QByteArray(b"\x02state"))
    assert PreferencesStore(path).arrangement() == (QByteArray(b"\x01\x00geometry"), QByteArray(b"\x02state"))
