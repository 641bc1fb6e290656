from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, ValidationError, model_validator

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import MAX_SEEN, Settings, load_settings, validate_settings


class Stream(Settings):
    name: str
    buffer_s: float = Field(default=1.0, gt=0)


class Filters(Settings):
    low_hz: float = 1.0
    high_hz: float = 40.0

    @model_validator(mode="after")
    def _ordered(self) -> Filters:
        if self.low_hz >= self.high_hz:
            raise ValueError("low_hz is not below high_hz")
        return self


class Session(Settings):
    streams: dict[str, Stream] = {}
    filters: Filters = Filters()
    extra_filters: Filters | None = None


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "session.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_read(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[streams.eeg]\nname = "amp"\n[filters]\nlow_hz = 2.0\n'), Session)
    assert settings.streams["eeg"].name == "amp"
    assert settings.filters.low_hz == 2.0
    assert settings.filters.high_hz == 40.0


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Filters().low_hz = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[filter]\nlow_hz = 1.0", ["filter: unknown key", "extra_filters, filters, streams"]),
        ("[filters]\nlow = 1.0", ["filters.low: unknown key", "high_hz, low_hz"]),
        ("[extra_filters]\nlow = 1.0", ["extra_filters.low: unknown key", "high_hz, low_hz"]),
        ('[streams.eeg]\nname = "a"\nbufer_s = 2', ["streams.eeg.bufer_s: unknown key", "buffer_s, name"]),
        ("[streams.eeg]\nbuffer_s = 2", ["streams.eeg.name: missing"]),
        ('[streams.eeg]\nname = "a"\nbuffer_s = -2', ["streams.eeg.buffer_s", "greater than 0", "seen: -2"]),
        ("[filters]\nlow_hz = 50.0", ["filters: low_hz is not below high_hz"]),
        ('[filters]\nlow_hz = "x"\nhigh_hz = "y"', ["2 problem(s)", "filters.low_hz", "filters.high_hz"]),
        ("[filters\n", ["not valid TOML"]),
    ],
)
def test_what_is_wrong_is_named_with_file_key_and_value(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(tmp_path, text), Session)
    message = str(caught.value)
    assert "session.toml" in message
    for part in said:
        assert part in message
    assert "Value error" not in message


def test_a_huge_wrong_value_is_not_repeated_in_full() -> None:
    with pytest.raises(ConfigurationError) as caught:
        validate_settings({"filters": "x" * 10_000}, Session, "here")
    assert len(str(caught.value)) < MAX_SEEN + 200


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        load_settings(tmp_path / "none.toml", Session)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings(tmp_path, Session)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"name = '\xe4'")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings(latin, Session)
