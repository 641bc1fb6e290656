"""Writing into the TOML file that a person keeps: some keys, and nothing else."""

from __future__ import annotations

import difflib
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table, Whitespace

from rt_mmdf.core.errors import ConfigurationError, SinkError
from rt_mmdf.core.settings import Settings, validate_settings


class ConfigurationFile:
    """A TOML file as it was when this was made; comments and layout are kept.

    Parameters
    ----------
    path : Path
        A symbolic link is followed: what is replaced is the file it leads to.
    kind : type of Settings
        What the file must fit after a change, too.

    Raises
    ------
    ConfigurationError
        The file cannot be read, or is not TOML.
    """

    def __init__(self, path: Path, kind: type[Settings]) -> None:
        self.path = path
        self._file = path.resolve()
        self._kind = kind
        try:
            self._before = self._file.read_bytes()
            self._document = tomlkit.parse(self._before)
        except (OSError, UnicodeDecodeError, TOMLKitError) as error:
            raise ConfigurationError(f"configuration {path}: cannot be read ({error}).") from error

    def with_values(self, section: tuple[str, ...], values: Mapping[str, Any]) -> str:
        """The text of the file with these keys of one section set (None: left out); earlier calls count, too.

        Raises
        ------
        ConfigurationError
            The file does not have the section, or would not be what it was but for these keys.
        """
        table: Any = self._document
        expected: Any = tomllib.loads(tomlkit.dumps(self._document))
        own = expected
        for key in section:
            if not isinstance(own.get(key), dict):
                raise ConfigurationError(f"configuration {self.path}: it has no section [{'.'.join(section)}].")
            table, own = table[key], own[key]
        below = _cut_off_what_is_below(table)
        for key, value in values.items():
            if value is None:
                table.pop(key, None)
                own.pop(key, None)
            else:
                table[key] = own[key] = value
        if below:
            table.value.body.extend(below)
        text = tomlkit.dumps(self._document)
        if tomllib.loads(text) != expected:
            raise ConfigurationError(
                f"configuration {self.path}: [{'.'.join(section)}] is written in a way that keys cannot be put into. Set "
                f"them by hand: {', '.join(f'{key} = {value!r}' for key, value in values.items() if value is not None)}."
            )
        validate_settings(expected, self._kind, where=f"configuration {self.path}, changed")
        return text

    def changes(self) -> list[str]:
        """The lines that differ from the file, as a unified diff without its head."""
        before = self._before.decode("utf-8").splitlines()
        after = tomlkit.dumps(self._document).splitlines()
        return list(difflib.unified_diff(before, after, n=1, lineterm=""))[2:]

    def write(self) -> None:
        """Replace the file by the changed one, whole or not at all.

        Raises
        ------
        ConfigurationError
            The file has been changed by somebody else meanwhile.
        SinkError
            It cannot be written.
        """
        temporary: str | None = None
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{self._file.name}.", dir=self._file.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(tomlkit.dumps(self._document).encode())
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, self._file.stat().st_mode)
            if self._file.read_bytes() != self._before:
                raise ConfigurationError(
                    f"configuration {self.path}: it has been changed since it was read, and is left as it is. Put in by "
                    "hand what is shown above, or measure again."
                )
            os.replace(temporary, self._file)
            temporary = None
        except OSError as error:
            raise SinkError(
                f"configuration {self.path}: cannot be written ({error.strerror or error}). Put in by hand what is shown "
                "above, or copy the file to a folder that you may write to."
            ) from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)


def _cut_off_what_is_below(table: Any) -> list[Any]:
    """Take from the end of a section what comes after its first blank line there: it belongs to what follows."""
    if not isinstance(table, Table):
        return []
    body = table.value.body
    end = len(body)
    while end and body[end - 1][0] is None:
        end -= 1
    start = next((k for k in range(end, len(body)) if isinstance(body[k][1], Whitespace)), len(body))
    below = body[start:]
    del body[start:]
    return below
