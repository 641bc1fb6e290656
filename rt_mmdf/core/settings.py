"""Base of all settings: frozen, unknown keys refused, errors that name file, key and what was expected."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.files import MAX_TOML, parse_toml
from rt_mmdf.core.text import printable

MAX_SEEN = 120  # characters of a wrong value that a message repeats


class Settings(BaseModel):
    """Frozen settings; a key that is not known is an error, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(path: Path, kind: type[SettingsT]) -> SettingsT:
    """Read and validate a TOML file.

    Raises
    ------
    ConfigurationError
        The file cannot be read, is not TOML, or does not fit `kind`: every wrong key is listed.
    """
    return validate_settings(load_toml(path), kind, where=f"configuration {path}")


def load_toml(path: Path) -> dict[str, Any]:
    """Plain values of a TOML file; ConfigurationError where it cannot be read or is not TOML."""
    try:
        with path.open("rb") as file:
            return parse_toml(file.read(MAX_TOML + 1))
    except FileNotFoundError as error:
        raise ConfigurationError(f"configuration {path}: no such file. Examples are in configs/.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration {path}: cannot be read ({error}).") from error
    except ValueError as error:
        raise ConfigurationError(f"configuration {path}: not valid TOML: {printable(str(error))}.") from error


def validate_settings(content: dict[str, Any], kind: type[SettingsT], where: str) -> SettingsT:
    """Validate a mapping; `where` begins the message of the ConfigurationError."""
    if place := _place_of_nan(content):
        raise ConfigurationError(f"{where}: {place}: nan seen; a number is expected.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(detail, kind) for detail in error.errors()]
        raise ConfigurationError(f"{where}: {len(lines)} problem(s)\n  " + "\n  ".join(lines)) from error


def _explain(detail: Any, kind: type[BaseModel]) -> str:
    # "[key]": pydantic's word for a key of a mapping that is wrong itself
    location = printable(".".join(str(part) for part in detail["loc"] if part != "[key]")[:MAX_SEEN]) or "(whole file)"
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):  # the second: sections that are dataclasses
        known = ", ".join(_known_keys(kind, detail["loc"][:-1]))
        return f"{location}: unknown key. Known here: {known}."
    if detail["type"] == "missing":
        return f"{location}: missing, and there is no default."
    seen = repr(detail["input"])
    seen = seen if len(seen) <= MAX_SEEN else f"{seen[:MAX_SEEN]}..."
    return f"{location}: {printable(detail['msg']).removeprefix('Value error, ')} (seen: {seen})."


def _place_of_nan(value: object, place: str = "") -> str:
    """Of the first number that is none; empty where there is no such."""
    if isinstance(value, float) and math.isnan(value):
        return printable(place[:MAX_SEEN])
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, own in inner if (found := _place_of_nan(own, f"{place}.{key}" if place else str(key)))), "")


def _known_keys(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        if sections := [c for c in candidates if isinstance(c, type) and is_dataclass(c)]:
            return sorted(field.name for field in fields(sections[0]))
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            continue  # a key of a mapping (the name of a stream): its values have the type found before
        kind = inner[0]
    return sorted(kind.model_fields)
