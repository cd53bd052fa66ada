"""Long video runs: a long request → a video file, window by window."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...catalog.selection import ModelHandle
from ...errors import PiyingError
from ...files.dtypes import all_finite
from ...host.base import Host, Preview, Progress, Reporter
from ...media.mp4 import check_audio
from ...media.naming import writing
from ..conditioning import VACEInputs, paste, references_on_white
from ..denoise import PrefixLatents
from ..distilled import with_distilled
from ..latents import FRAME_STEP
from ..model import WanModel, load
from ..run import sample_inputs
from ..task.canvas import Canvas, compose_part, with_given
from ..task.vace_task import Layer, Strength, VACETask
from .colour_match import matched, pulled_back
from .request import LongRequest, Window, check_long_request, shown, windows_of
from .task_window import cut
from .timeline import Direction, Moment, check_timeline, direct, parse_timeline
from .video_writer import Segment, VideoWriter, video_writer
from .window_cache import FinishedWindow, PreviousWindows, WindowCache, rounded, window_key

log = logging.getLogger("piying")


TITLE = "VACE Long Video"
MODEL_PARTS = ("text_encoder", "transformer", "transformer_2", "scheduler", "vae")  # all that decide a window's pixels
STEPS_PER_WINDOW = 1000  # of the bar over the whole video, for each window
# What each phase takes of a window's time, roughly, for the bar.
SHARES = {
    "Encoding prompt": (0.0, 0.02),
    "Preparing the task": (0.02, 0.06),
    "Sampling": (0.06, 0.9),
    "Sampling, high-noise expert": (0.06, 0.6),
    "Sampling, low-noise expert": (0.6, 0.9),
    "Decoding": (0.9, 0.99),
}


def make_long_video(
    handle: ModelHandle,
    request: LongRequest,
    host: Host,
    task: VACETask | None = None,
    *,
    audio: dict[str, Any] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Make a video of any length.

    The windows are made one after the other. Each is given the last frames of the one before it, as
    VACE's `firstclip` does, and the part of the task that lies in it. Finished windows are cached on disk without
    loss, so that memory does not depend on the length, and a run that was stopped resumes after them. Caching, and
    the writing of the video, run while the next windows are made.

    Args:
        task: made for the whole length.
        audio: ComfyUI's AUDIO, put under the video and cut where it ends.

    Returns:
        An MP4 file in the host's temp folder, and a record of what ran, fit for JSON.

    Raises:
        PiyingError: the request, the task, the model or the device cannot be used, no plan fits the machine,
            or the disk is full; the text says why.
    """
    check_long_request(request)
    check_audio(audio)  # it is read when all windows are made
    # Once for all windows: a LoRA that is fetched meanwhile changes nothing of this video.
    handle, each = with_distilled(handle, request.video, host)
    request = replace(request, video=each)
    model = load(handle, host)
    # By its name: `auto` may mean another model by the time of the last window.
    video = _LongVideo(replace(handle, model=model.found.name), request, host, task or VACETask(), model)
    video.check()
    with (
        writing(host.folder("temp"), "piying/long", ".mp4") as output,
        video_writer(video.cache, output.path, audio, host.check_cancelled) as writer,
    ):
        record = video.make(writer)
    return output.path, record


@dataclass
class _LongVideo:
    """A long video in the making."""

    handle: ModelHandle
    request: LongRequest
    host: Host
    task: VACETask
    model: WanModel
    cache: WindowCache = field(init=False)
    earlier: PreviousWindows = field(init=False)
    windows: list[Window] = field(init=False)
    moments: tuple[Moment, ...] = field(init=False)
    logged_plans: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = self.request
        self.cache = WindowCache(self.host.cache_folder() / "long_video")
        self.earlier = PreviousWindows(self.cache)
        self.windows = windows_of(request)
        self.moments = parse_timeline(request.video.prompt)

    def check(self) -> None:
        """Lay out every window, so that a task that does not fit is refused before anything is sampled.

        Raises:
            PiyingError: a layer does not go with the size or length, nothing is to be made in any window, or the
                timeline sets the strength of what is not there.
        """
        has_task = bool(self.task.layers or self.task.references)
        video, has_loras = self.request.video, bool(self.handle.loras)
        self.left_out = check_timeline(self.moments, video, has_task=has_task, has_loras=has_loras)
        for sentence in self.left_out:
            log.warning("%s", sentence)
        if not self.task.layers:
            return
        to_make = sum(int(self._canvas(window).make.sum()) for window in self.windows)
        if not to_make:
            raise PiyingError("The task keeps every pixel of every frame, so nothing is left to make.")

    def make(self, writer: VideoWriter) -> dict[str, Any]:
        """Hand all windows to `writer`, and return a record."""
        bar = self.host.progress("Long video", len(self.windows) * STEPS_PER_WINDOW)
        keys: list[str] = []
        ran: dict[str, Any] = {}
        resumed = 0
        for window, (first, end) in zip(self.windows, shown(self.windows, self.request.overlap), strict=True):
            canvas = self._canvas(window)
            keys.append(self._key(window, canvas, keys))
            made = None
            if self.cache.has(keys[-1], window.count, self._blended):
                resumed += 1
            else:
                if resumed and resumed == window.index:
                    log.info("%s: %d finished windows are kept from a run before.", TITLE, resumed)
                begin, last = max(0, window.start + window.given), window.end - 1
                log.info(
                    "%s: window %d of %d, frames %d to %d%s.",
                    TITLE,
                    window.index + 1,
                    len(self.windows),
                    begin,
                    last,
                    f", by the prompt at {self._direction(window).moment.mark}" if len(self.moments) > 1 else "",
                )
                made, ran = self._make_window(window, canvas, keys, bar)
                self.earlier.set_current(keys[-1], made)
            writer.add(Segment(keys[-1], first, end), made, tuple(keys))
            bar.step((window.index + 1) * STEPS_PER_WINDOW)
        described = {"task": self.task.describe()} if self.task.layers or self.task.references else {}
        settings = asdict(self.request.video) | {
            name: value for name, value in asdict(self.request).items() if name != "video"
        }
        counts = {"windows": len(self.windows), "windows_kept_from_before": resumed}
        note = {"note": " ".join(self.left_out)} if self.left_out else {}
        return {"model": self.model.found.name, **ran, **settings, **counts, **described, **note}

    def _direction(self, window: Window) -> Direction:
        return direct(self.request, self.moments, window)

    def _strength(self, window: Window) -> Strength:
        """Return how strongly the model follows the task in a window."""
        strength = self.task.strength or Strength()
        return replace(strength, value=strength.value * self._direction(window).moment.task)

    def _handle(self, window: Window) -> ModelHandle:
        """Return the model with the strengths that its LoRAs have in a window."""
        factor = self._direction(window).moment.lora
        loras = (replace(lora, strength=lora.strength * factor) for lora in self.handle.loras)
        return replace(self.handle, loras=tuple(loras))

    def _canvas(self, window: Window) -> Canvas:
        """Return what the task says about a window."""
        video = self.request.video
        part = cut(self.task, window, video.num_frames)
        return compose_part(part, video.width, video.height, window.count)

    def _key(self, window: Window, canvas: Canvas, before: list[str]) -> str:
        """Return the name of a window; it changes with all that decides its pixels."""
        request = self.request
        decides = {
            # The key of the window before stands for its pixels: those of this window depend on all earlier ones.
            "before": before[-1:],
            "first": before[:1] if request.anchor != "none" or window.closing else [],
            "window": asdict(window),
            "request": asdict(self._direction(window).request),
            "joining": [request.overlap, request.seams, request.match_colours, request.anchor] if window.given else [],
            "model": [self.model.parts.identity(part) for part in MODEL_PARTS if self.model.parts.has(part)],
            "handle": str(self._handle(window)),
            "device": self.host.device().partition(":")[0],
            "strength": str(self._strength(window)),
        } | ({"latents": "kept"} if self._blended else {})
        layers = [canvas.frames, canvas.make] + ([] if canvas.weights is None else [canvas.weights])
        return window_key(decides, [*(layers if self.task.layers else []), *self.task.references])

    def _make_window(
        self, window: Window, canvas: Canvas, keys: list[str], bar: Progress
    ) -> tuple[FinishedWindow, dict[str, Any]]:
        """Return a window, and a record of what ran."""
        earlier = self.earlier.window(keys[-2]) if window.given else None
        before = None if earlier is None else earlier.last(window.given)
        first = self.earlier.first_frames(keys[0], window.closing) if window.closing else None
        # Not pasted back: the model's own version of these frames shows how far its colours have moved.
        layers = [
            Layer("given", TITLE, noun, frames, slots=tuple(range(begin, begin + len(frames))), total=window.count)
            for noun, frames, begin in (
                ("window before", before, 0),
                ("first window", first, window.count - window.closing),
            )
            if frames is not None
        ]
        seen = with_given(canvas, layers)
        ran: dict[str, Any] = {}
        latents: list[torch.Tensor] = []
        if seen.make.any():
            video, pictures = self.request.video, self.task.references
            if window.index and self.request.anchor == "reference":
                # Every later window is given the video's first frame, against drift of a subject's appearance.
                pictures = (*pictures, self.earlier.first_frames(keys[0], 1)[0])
            references = references_on_white(pictures, video.width, video.height)
            inputs = VACEInputs(seen, references, self._strength(window), self._before(window, earlier))
            progress = WindowProgress(self.host, bar, window.index)
            frames, ran = sample_inputs(
                self._handle(window),
                self._direction(window).request,
                inputs,
                self.host,
                has_task=bool(self.task.layers) or before is not None,
                on_latents=latents.append if self._blended else None,
                reporter=progress,
                logged_plans=self.logged_plans,
            )
        else:
            # Nothing in this window is to be made, so a run of the model would be wasted.
            frames = seen.frames
        if before is not None:
            frames = self._joined_to(before, frames, window, keys)
        if first is not None:
            frames = self._closed_by(first, frames)
        frames = paste(frames, VACEInputs(canvas))
        # In eight bits nothing would tell that they were no numbers.
        if not all_finite(frames):
            raise PiyingError(
                f"{TITLE}: window {window.index + 1} of {len(self.windows)}, joined to the one before, holds values "
                "that are no numbers. Nothing is saved. Set match_colours to 0 and anchor to none, and run again."
            )
        return FinishedWindow(rounded(frames), latents[-1] if latents else None), ran

    @property
    def _blended(self) -> bool:
        return self.request.seams == "blended"

    def _before(self, window: Window, earlier: FinishedWindow | None) -> PrefixLatents | None:
        """Return the latents that the window before has made of the frames both have, to be turned from."""
        if not self._blended or earlier is None or earlier.latents is None:
            return None
        return PrefixLatents(
            earlier.latents[:, :, -(window.given // FRAME_STEP) :], self.request.overlap // FRAME_STEP
        )

    def _joined_to(self, before: torch.Tensor, frames: torch.Tensor, window: Window, keys: list[str]) -> torch.Tensor:
        """Return a window's frames brought together with those of the window before, which it begins with."""
        request = self.request
        frames = matched(frames, before, request.match_colours, window.count - request.overlap)
        if request.anchor == "colours":
            frames = pulled_back(frames, window.given, request.overlap, self.earlier.colours(keys[0]))
        weight = torch.zeros(window.given)
        if request.seams != "cut":
            weight[-request.overlap :] = _rising(request.overlap)
        return torch.cat([_mixed(before, frames[: window.given], weight), frames[window.given :]])

    def _closed_by(self, first: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Return a loop's last window brought together with the first one, which it ends with."""
        request, count = self.request, len(first)
        # Backwards it is a window that goes on from the first one.
        frames = matched(frames.flip(0), first.flip(0), request.match_colours, len(frames) - count).flip(0)
        weight = torch.ones(count) if request.seams == "cut" else _rising(count)
        return torch.cat([frames[:-count], _mixed(frames[-count:], first, weight)])


def _rising(count: int) -> torch.Tensor:
    """Return weights of a crossfade: neither 0 nor 1 at its ends, where a frame would be one window's alone."""
    return torch.arange(1, count + 1) / (count + 1)


def _mixed(frames: torch.Tensor, others: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return frames [n, h, w, 3] that have so much, 0..1, of others, one weight each [n]."""
    return torch.lerp(frames, others, weight[:, None, None, None].expand_as(frames))


@dataclass
class WindowProgress:
    """The reporter of one window, whose phases move one bar over the whole video.

    Attributes:
        parent: asked whether the user has cancelled.
        bar: of the whole video, `STEPS_PER_WINDOW` steps for each window.
        index: of the window, from 0.
    """

    parent: Reporter
    bar: Progress
    index: int
    _done: int = field(default=0, init=False)

    def progress(self, phase: str, total: int, *, seconds: float = 0.0) -> Progress:
        """Return a phase that moves its share of the bar; one that is not in `SHARES` does not move it."""
        return _PhaseProgress(self, *SHARES.get(phase, (0.0, 0.0)), total)

    def check_cancelled(self) -> None:
        """Stop the run here where the user has cancelled it."""
        self.parent.check_cancelled()

    def move(self, share: float, preview: Preview | None = None) -> None:
        """Move the bar to a share of the window; a phase that is run again does not move it back."""
        self._done = max(self._done, round(share * STEPS_PER_WINDOW))
        self.bar.step(self.index * STEPS_PER_WINDOW + self._done, preview)


@dataclass
class _PhaseProgress:
    window: WindowProgress
    begin: float
    end: float
    total: int

    def step(self, done: int, preview: Preview | None = None) -> None:
        self.window.move(self.begin + (self.end - self.begin) * done / max(1, self.total), preview)

    def text(self, text: str) -> None:
        self.window.bar.text(text)
