"""What a long video is, and the windows it is made in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ...errors import PiyingError
from ...image_sizes import either, nearest_multiples
from ..latents import FRAME_STEP
from ..request import LONGEST_FRAMES, MAX_FRAMES, MIN_FRAMES, WanRequest, check_side, check_speed_settings

Seams = Literal["crossfade", "cut", "blended"]
Anchor = Literal["none", "colours", "reference"]

SEAMS: tuple[Seams, ...] = get_args(Seams)
ANCHORS: tuple[Anchor, ...] = get_args(Anchor)
DEFAULT_LENGTH = 241
DEFAULT_WINDOW = 81  # what Wan2.1 was trained on
DEFAULT_OVERLAP = 13
MAX_SEED = 2**64


@dataclass(frozen=True)
class LongRequest:
    """One long video to make.

    Attributes:
        video: prompt, size and settings; its `num_frames` is the length of the whole, and a loop of its `context` is
            one of the whole.
        window: frames the model makes at once, those it goes on from included; 4n+1.
        overlap: frames at the end of a window that the next one is given; 4n+1.
        seams: how the frames of an overlap, which both windows have, come together; `blended` has a window's
            latents turn into the next one's while that is sampled, which takes an overlap of 5 or more.
        match_colours: how far a window begins with the colours of the window before, 0..1.
        anchor: what of the first window every later one is held to, beside the window before it.
    """

    video: WanRequest
    window: int = DEFAULT_WINDOW
    overlap: int = DEFAULT_OVERLAP
    seams: Seams = "crossfade"
    match_colours: float = 0.0
    anchor: Anchor = "none"


@dataclass(frozen=True)
class Window:
    """A run of the model within a long video.

    Attributes:
        index: its number, from 0.
        start: its first frame in the whole video; below 0 it is one of the end, in the first window of a loop.
        count: how many frames it has.
        given: how many of them, from its first on, the window before it has made.
        closing: how many of them, up to its last, the first window has made: of the last window of a loop.
    """

    index: int
    start: int
    count: int
    given: int
    closing: int = 0

    @property
    def end(self) -> int:
        """The frame behind its last one."""
        return self.start + self.count


def windows(num_frames: int, window: int, overlap: int) -> list[Window]:
    """Return the windows of a video; all numbers are 4n+1, so all windows are.

    All are of full length, as the model was trained: the last one is given more frames instead of
    making fewer.
    """
    found = [Window(0, 0, min(window, num_frames), 0)]
    while (end := found[-1].end) < num_frames:
        start = min(end - overlap, num_frames - window)
        found.append(Window(len(found), start, window, end - start))
    return found


def loop_windows(num_frames: int, window: int, overlap: int) -> list[Window]:
    """Return the windows of a loop, of more frames than one window; all numbers are 4n+1.

    The first window begins before the video does, with frames of its end. The last one is given them where it ends.
    They are evenly spread, so that the last one too has frames of its own.
    """
    lead = overlap - 1
    steps = -(-(num_frames + lead - window) // (window - overlap))
    last = (num_frames - window + lead) // FRAME_STEP
    starts = [FRAME_STEP * round(index * last / steps) - lead for index in range(steps + 1)]
    found = [Window(0, starts[0], window, 0)]
    for index, start in enumerate(starts[1:], 1):
        found.append(Window(index, start, window, found[-1].end - start, lead if index == steps else 0))
    return found


def windows_of(request: LongRequest) -> list[Window]:
    """Return the windows of a request."""
    layout = loop_windows if request.video.context.loop else windows
    return layout(request.video.num_frames, request.window, request.overlap)


def shown(found: list[Window], overlap: int) -> list[tuple[int, int]]:
    """Return for each window the frames of its own, first and behind the last, that the whole video takes of it.

    A window is left where its successor's overlap begins: the frames there already come from both.
    """
    starts = [max(0, window.given - overlap, -window.start) for window in found]
    following = zip(found[1:], starts[1:], strict=True)
    ends = [window.start + start for window, start in following] + [found[-1].end]
    return [(start, end - window.start) for window, start, end in zip(found, starts, ends, strict=True)]


def window_request(request: LongRequest, window: Window) -> WanRequest:
    """Return what the model is asked for: a window's length, and noise of its own."""
    # Another seed in each window, so that they do not all begin from the same noise.
    seed = (request.video.seed + window.index) % MAX_SEED
    # A loop is one of the whole video, not of a window.
    context = replace(request.video.context, loop=False)
    return replace(request.video, num_frames=window.count, seed=seed, context=context)


def check_length(name: str, value: int, least: int, most: int) -> None:
    """Accept 4n+1 frames.

    Raises:
        PiyingError: any other number; the nearest good ones are named.
    """
    if value % FRAME_STEP != 1 or not least <= value <= most:
        nearest = nearest_multiples(value, FRAME_STEP, least, most, offset=1)
        raise PiyingError(f"{name} is {value}. It is 4n+1 frames, from {least} to {most}: use {either(nearest)}.")


def check_long_request(request: LongRequest) -> None:
    """Accept a request whose values the model can use without changes.

    Raises:
        PiyingError: a size or length is off; the nearest good ones are named.
    """
    check_side("width", request.video.width)
    check_side("height", request.video.height)
    check_lengths(request.video.num_frames, request.window, request.overlap)
    if request.video.context.loop:
        check_loop(request.video.num_frames, request.window, request.overlap)
    check_speed_settings(request.video)
    if not 0 <= request.match_colours <= 1:
        raise PiyingError(f"match_colours is {request.match_colours:g}. It goes from 0 (off) to 1.")
    for name, value, words in (("seams", request.seams, SEAMS), ("anchor", request.anchor, ANCHORS)):
        if value not in words:
            raise PiyingError(f"{name} is {value!r}. Choose one of: {', '.join(words)}.")
    check_seams(request.seams, request.overlap)


def check_seams(seams: str, overlap: int) -> None:
    """Accept how windows come together, and the frames that both have.

    Raises:
        PiyingError: the latents of windows are to turn into each other, and no latent frame is one of both.
    """
    if seams == "blended" and overlap <= FRAME_STEP:
        raise PiyingError(
            f"seams is blended and overlap {overlap}, which holds no latent frame that both windows have. Set "
            "overlap to 5 or more, or seams to crossfade."
        )


def check_lengths(num_frames: int, window: int, overlap: int) -> None:
    """Accept the three lengths of a long video.

    Raises:
        PiyingError: one is not 4n+1 frames, or the overlap leaves nothing new in a window.
    """
    check_length("num_frames", num_frames, MIN_FRAMES, LONGEST_FRAMES)
    check_length("window", window, 1 + FRAME_STEP, MAX_FRAMES)
    check_length("overlap", overlap, 1, window - FRAME_STEP)


def check_loop(num_frames: int, window: int, overlap: int) -> None:
    """Accept the three lengths of a long video that is a loop; each is one of a long video.

    Raises:
        PiyingError: its last window would be the first one again, or has nothing to make between the one before it
            and the first one; what can be made is named.
    """
    if num_frames <= window:
        raise PiyingError(
            f"context: a loop in windows is longer than one, num_frames is {num_frames} and window {window}. Set "
            f"num_frames to {window + FRAME_STEP} or more, or make it by VACE Sample."
        )
    if overlap <= FRAME_STEP:
        raise PiyingError(f"context: a loop takes an overlap of {1 + FRAME_STEP} or more, and overlap is {overlap}.")
    fitting = [length for length in range(overlap, 1, -FRAME_STEP) if _own_frames(num_frames, window, length) > 0]
    if not fitting:
        longer = next(
            (
                other
                for other in range(window + FRAME_STEP, min(num_frames, 1 + MAX_FRAMES), FRAME_STEP)
                if _own_frames(num_frames, other, 1 + FRAME_STEP) > 0
            ),
            None,
        )
        if longer is None:
            raise PiyingError(
                f"context: window is {window}, which leaves nothing to make between the end of a loop of {num_frames} "
                "frames and its beginning. Set num_frames higher."
            )
        raise PiyingError(
            f"context: window is {window}, which leaves nothing to make between the end of a loop of {num_frames} "
            f"frames and its beginning. Set window to {longer} and overlap to {1 + FRAME_STEP}."
        )
    if fitting[0] != overlap:
        raise PiyingError(
            f"context: overlap is {overlap}, which leaves nothing to make between the end of this loop and its "
            f"beginning. Set overlap to {fitting[0]} or less."
        )


def _own_frames(num_frames: int, window: int, overlap: int) -> int:
    """Return how many frames the last window of a loop makes of its own."""
    last = loop_windows(num_frames, window, overlap)[-1]
    return last.count - last.given - last.closing
