"""The words a creator chooses from; they are stored in workflow files, so they stay."""

from __future__ import annotations

from typing import Literal, get_args

Fit = Literal["refuse", "crop", "letterbox", "stretch"]
Length = Literal["refuse", "trim", "hold", "resample", "spread", "continue"]
Shape = Literal["as drawn", "box", "hull"]
Unit = Literal["percent", "pixels"]
Count = Literal["in all", "new"]
Aspect = Literal["as given", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "1:1", "21:9"]

FITS: tuple[Fit, ...] = get_args(Fit)
LENGTHS: tuple[Length, ...] = get_args(Length)
SHAPES: tuple[Shape, ...] = get_args(Shape)
UNITS: tuple[Unit, ...] = get_args(Unit)
COUNTS: tuple[Count, ...] = get_args(Count)
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
