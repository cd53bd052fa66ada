"""Extend: some frames are given, the others are made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import PiyingError
from ...image_sizes import Fit, either, nearest_multiples
from ..guidance import listed_words
from ..latents import FRAME_STEP
from ..request import FPS, LONGEST_FRAMES, MIN_FRAMES
from .frames import frames_of
from .options import Count
from .vace_task import Layer, VACETask, resampled

TITLE = "VACE: Extend"


@dataclass(frozen=True, eq=False)
class GivenFrames:
    """What is there already.

    Attributes:
        first: IMAGE the video begins with, one frame or a clip.
        last: IMAGE it ends with.
        between: IMAGE whose frames come at `times`.
        times: one place for each frame of `between`, separated by commas: "40" is a frame counted from 0, "2.5s" a
            time in seconds.
        clip_frames: how many frames a clip gives: the last ones of `first`, the first ones of `last`. 0: all.
        fps: frames a second of the clips; those of another rate than 16 lose or repeat frames to keep their speed.
    """

    first: torch.Tensor | None = None
    last: torch.Tensor | None = None
    between: torch.Tensor | None = None
    times: str = ""
    clip_frames: int = 0
    fps: float = FPS


def extend(
    given: GivenFrames,
    num_frames: int = 81,
    count: Count = "in all",
    *,
    keep: bool = True,
    fit: Fit = "refuse",
    task: VACETask | None = None,
) -> VACETask:
    """Have the frames made that are not given.

    Args:
        given: the frames that are there.
        num_frames: how many frames the video has in all, or how many new ones it gets.
        count: which of the two `num_frames` says.
        keep: bring the given frames back into the result, untouched.
        fit: how given frames come to the size of the video made.
        task: what to build on.

    Raises:
        PiyingError: no frame is given, two are for the same place, or size or length do not agree.
    """
    clips = _clips(given)
    if not clips:
        raise PiyingError("first, last and between are all empty. Wire at least one frame to go on from.")
    have = sum(len(frames) for frames in clips.values())
    total = num_frames if count == "in all" else num_frames + have
    check_total(total, have)
    begins = {"first": 0, "last": total - len(clips.get("last", ()))}
    slots = {
        where: parse_times(given.times, len(frames), total)
        if where == "between"
        else tuple(range(begins[where], begins[where] + len(frames)))
        for where, frames in clips.items()
    }
    _check_apart(slots)
    layers = []
    for where, frames in clips.items():
        # For messages, in the words of the node's inputs.
        noun = "frame between" if where == "between" else f"{where} {'frame' if len(frames) == 1 else 'clip'}"
        layers.append(Layer("given", TITLE, noun, frames, fit=fit, paste=keep, slots=slots[where], total=total))
    return (task or VACETask()).with_layers(*layers)


def check_total(total: int, have: int) -> None:
    """Accept 4n+1 frames of which at least one is new.

    Raises:
        PiyingError: any other number; the nearest good ones are named.
    """
    if total % FRAME_STEP != 1 or not MIN_FRAMES <= total <= LONGEST_FRAMES:
        nearest = nearest_multiples(total, FRAME_STEP, MIN_FRAMES, LONGEST_FRAMES, offset=1)
        new = [number - have for number in nearest if number > have]
        offer = f", that is {either(new)} new" if new else ""
        raise PiyingError(
            f"The video would have {total} frames, {have} of them given. Wan VACE makes 4n+1 frames, up to "
            f"{LONGEST_FRAMES}: choose {either(nearest)} in all{offer}."
        )
    if total <= have:
        raise PiyingError(
            f"num_frames is {total} in all and {have} frames are given, so none would be new. Set num_frames higher, "
            "or clip_frames lower to go on from a part of the clip."
        )


def _clips(given: GivenFrames) -> dict[str, torch.Tensor]:
    """Return the given frames by where they go, at 16 frames a second."""
    clips = {}
    if given.first is not None:
        frames = _at_16(frames_of(given.first, "first"), given.fps)
        clips["first"] = frames[-given.clip_frames :] if given.clip_frames else frames
    if given.last is not None:
        frames = _at_16(frames_of(given.last, "last"), given.fps)
        clips["last"] = frames[: given.clip_frames] if given.clip_frames else frames
    if given.between is not None:
        # Single pictures with places of their own: a frame rate says nothing about them.
        clips["between"] = frames_of(given.between, "between")
    return clips


def _at_16(frames: torch.Tensor, fps: float) -> torch.Tensor:
    # A lone frame has no speed to keep; without a change the clip stays a view.
    return frames if fps == FPS or len(frames) == 1 else frames[resampled(len(frames), fps)]


def parse_times(times: str, count: int, total: int) -> tuple[int, ...]:
    """Return the places of `count` frames among `total`, from "40" (a frame, from 0) or "2.5s" (seconds).

    Raises:
        PiyingError: another number of times than of frames, no number, or a place outside of the video.
    """
    words = listed_words(times)
    if len(words) != count:
        raise PiyingError(
            f"times names {len(words)} places (“{times}”), between has {count} frames. Name one for each."
        )
    places = tuple(_place(word) for word in words)
    outside = [word for word, place in zip(words, places, strict=True) if not 0 <= place < total]
    if outside:
        raise PiyingError(
            f"times has {', '.join(outside)}, outside of a video of {total} frames. Choose frames from 0 to "
            f"{total - 1}, or times up to {(total - 1) / FPS:g}s."
        )
    return places


def _place(word: str) -> int:
    try:
        return round(float(word[:-1]) * FPS) if word.endswith("s") else int(word)
    except (ValueError, OverflowError):
        raise PiyingError(
            f"times has “{word}”. Write frames as whole numbers from 0 (40) and seconds with an s (2.5s), "
            "separated by commas."
        ) from None


def _check_apart(slots: dict[str, tuple[int, ...]]) -> None:
    taken: dict[int, str] = {}
    for where, places in slots.items():
        for place in places:
            if place in taken:
                raise PiyingError(
                    f"{taken[place]} and {where} both give frame {place}. Set num_frames higher, clip_frames lower, "
                    "or move times apart."
                )
            taken[place] = where
