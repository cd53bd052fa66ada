"""Which frames of a source a video of another length takes."""

from __future__ import annotations

from ...errors import PiyingError
from ..request import DEFAULT_FRAMES, FPS, FRAME_STEP, MAX_FRAMES
from .choices import Length


def frame_indices(count: int, wanted: int, length: Length, fps: float) -> list[int]:
    """Return which of `count` frames become the `wanted` ones.

    - refuse: all, if they are as many.
    - trim: the first ones; the end is cut.
    - hold: all, then the last one again.
    - resample: those on screen at every sixteenth of a second, the end cut.
    - spread: evenly spread over the whole source, its first and last included.
    - continue: all, then the last one again, for frames that the model is to make.

    Raises:
        PiyingError: they cannot become as many this way; the text says which ways there are.
    """
    if length == "spread":
        return spread(count, wanted)
    usable = resampled(count, fps) if length == "resample" else list(range(count))
    too_many, too_few = len(usable) > wanted, len(usable) < wanted
    if (too_many and length not in ("trim", "resample")) or (too_few and length not in ("hold", "continue")):
        raise PiyingError(_advice(count, len(usable), wanted, length, fps))
    return usable[:wanted] + [usable[-1]] * (wanted - len(usable))


def spread(count: int, wanted: int) -> list[int]:
    """Return `wanted` of `count` frames at even distances, as VACE's `VaceVideoProcessor` does with `keep_last`.

    Frame k is the first on screen at k/(wanted - 1) of the time to the middle of the last frame.
    """
    if wanted == 1:
        return [0]
    steps = 2 * (wanted - 1)
    return [max(0, -(-k * (2 * count - 1) // steps) - 1) for k in range(wanted)]


def resampled(count: int, fps: float) -> list[int]:
    """Return the frames on screen at 0, 1/16, 2/16 … seconds while the source of `fps` plays."""
    found: list[int] = []
    while (index := int(len(found) * fps / FPS + 1e-6)) < count:
        found.append(index)
    return found


def longest_below(count: int) -> int:
    """Return the largest 4n+1 up to `count` and up to what one run can make."""
    return max(1, min((count - 1) // FRAME_STEP * FRAME_STEP + 1, MAX_FRAMES))


def offered_length(count: int, length: Length, fps: float) -> int:
    """Return the 4n+1 frames that suit `count` frames adapted by `length`."""
    if length in ("hold", "continue"):
        return min(-(-(count - 1) // FRAME_STEP) * FRAME_STEP + 1, MAX_FRAMES)
    if length == "spread":
        return min(longest_below(count), DEFAULT_FRAMES)
    return longest_below(len(resampled(count, fps)) if length == "resample" else count)


def _advice(count: int, usable: int, wanted: int, length: Length, fps: float) -> str:
    has = f"has {count} frames" + (f", {usable} at {FPS} a second" if length == "resample" else "")
    ways = "trim or spread" if usable > wanted else "hold, spread or continue"
    fitting = offered_length(count, length, fps)
    # A source longer than one run makes fits no number of frames this way.
    if fitting < usable and length in ("refuse", "hold", "continue"):
        return f"{has}; num_frames is {wanted}. Choose another length: {ways}; VACE Long Video makes all {count}."
    return f"{has}; num_frames is {wanted}. Set num_frames to {fitting}, or choose another length: {ways}."
