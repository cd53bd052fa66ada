"""Options of VACE tasks: the words a creator chooses from, and checks of what stands beside them."""

from __future__ import annotations

from typing import Literal, get_args

from ...errors import PiyingError
from ...image_sizes import Fit
from ..latents import FRAME_STEP
from ..long.request import check_length
from ..request import LONGEST_FRAMES, MIN_FRAMES

# These are stored in workflow files, so they stay.
Length = Literal["refuse", "trim", "hold", "resample", "spread", "continue"]
Shape = Literal["as drawn", "box", "hull"]
Unit = Literal["percent", "pixels"]
Count = Literal["in all", "new"]
SizeFrom = Literal["auto", "task", "widgets"]
Aspect = Literal["as given", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "1:1", "21:9"]

FITS: tuple[Fit, ...] = get_args(Fit)
LENGTHS: tuple[Length, ...] = get_args(Length)
SHAPES: tuple[Shape, ...] = get_args(Shape)
UNITS: tuple[Unit, ...] = get_args(Unit)
COUNTS: tuple[Count, ...] = get_args(Count)
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
SIZES_FROM: tuple[SizeFrom, ...] = get_args(SizeFrom)


def check_steps(start: float, end: float) -> None:
    """Accept a range of steps that is not empty.

    Raises:
        PiyingError: the range ends before it starts.
    """
    if not 0 <= start < end <= 1:
        raise PiyingError(
            f"start_percent is {start:g} and end_percent {end:g}, which leaves no step to control. "
            "Choose a start below the end, both from 0 to 1."
        )


def check_asked_length(num_frames: int, count: str) -> None:
    """Accept a number of frames that some given frames can be extended to.

    Args:
        num_frames: how many in all, of which at least one is given and one new; or how many new ones.
        count: one of `COUNTS`, which of the two.

    Raises:
        PiyingError: another number; the nearest good ones are named.
    """
    if count not in COUNTS:
        raise PiyingError(f"count is {count!r}. Choose one of: {', '.join(COUNTS)}.")
    if count == "in all":
        check_length("num_frames", num_frames, MIN_FRAMES + FRAME_STEP, LONGEST_FRAMES)
    elif not 1 <= num_frames <= LONGEST_FRAMES:
        raise PiyingError(f"num_frames is {num_frames}. It goes from 1 to {LONGEST_FRAMES}.")
