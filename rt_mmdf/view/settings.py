"""What `rt-mmdf view` is asked for. No Qt here: the command line checks it before a window is thought of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from rt_mmdf.core.settings import Settings

PICTURES, FILMS = (".png",), (".mp4", ".gif")


class ViewSettings(Settings):
    """One view. What is None is as it was in the last window, or else the default.

    name : of the engine; None: the only one there is
    host : machine it runs on, where two engines have the same name
    head : folder of its head model, where it is not to be searched for
    headless : without a window: the picture (.png) or film (.mp4, .gif) to write
    seconds : length of the film, or how long to watch before the picture is taken
    wait_s : headless only: how long to wait for an engine and its first estimate
    limits : of the colours: threshold, full opacity and end, in the unit of the estimates (A m, or none)
    size : of the window, or of the picture, pixels
    flat : without OpenGL
    """

    name: str | None = None
    host: str | None = None
    head: Path | None = None
    headless: Path | None = None
    seconds: float = Field(default=5.0, gt=0, le=60)
    wait_s: float = Field(default=30.0, gt=0, le=3600)
    theme: Literal["dark", "light"] | None = None
    surface: Literal["inflated", "pial", "white"] | None = None
    layout: Literal["both", "split"] | None = None
    measure: Literal["rms", "peak", "latest"] | None = None
    compare: bool | None = None
    limits: tuple[float, float, float] | None = None
    size: tuple[int, int] | None = None
    flat: bool = False

    @field_validator("headless")
    @classmethod
    def _known_kind(cls, path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() not in PICTURES + FILMS:
            raise ValueError(f"a file name that ends with {', '.join(PICTURES + FILMS)} is expected")
        return path

    @field_validator("limits")
    @classmethod
    def _in_order(cls, limits: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if limits is not None and not (0 <= limits[0] <= limits[1] < limits[2] < math.inf):
            raise ValueError("three numbers in order are expected: not shown below, opaque from, end of the colours")
        return limits

    @field_validator("size")
    @classmethod
    def _sensible(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and not (320 <= size[0] <= 7680 and 240 <= size[1] <= 4320):
            raise ValueError("320 x 240 to 7680 x 4320 pixels are expected")
        return size

    @field_validator("name", "host")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it is empty; leave it out, or give what `rt-mmdf streams` shows")
        return value

    @property
    def is_film(self) -> bool:
        """Whether `headless` asks for a film."""
        return self.headless is not None and self.headless.suffix.lower() in FILMS
