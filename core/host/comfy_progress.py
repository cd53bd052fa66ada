"""How a phase goes, for the tab that started the run: its name, time left, and a moving preview."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .comfy_server import Tabs, tabs

if TYPE_CHECKING:
    from PIL.Image import Image

    from .base import Preview


PROGRESS, MOTION = "piying.progress", "piying.motion"
SECONDS_BETWEEN_NEWS = 0.2
SECONDS_BETWEEN_MOTIONS = 3.0
MOTION_PIXELS = 192  # longest side
MOTION_FRAMES = 24
MOTION_MILLISECONDS = 250  # a latent frame stands for four frames of 16 a second


class ProgressEvents:
    """Tells how one phase of a node's work goes.

    Args:
        phase: its name, for people.
        total: its steps.
        clock: gives seconds.

    Attributes:
        moves: whether a moving preview was shown; a still one beside it would be one too many.
    """

    def __init__(
        self, phase: str, total: int, listeners: Tabs = tabs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._phase, self._total, self._tabs, self._clock = phase, total, listeners, clock
        self._first: tuple[float, int] | None = None
        self._told = self._moved = -SECONDS_BETWEEN_MOTIONS
        self.moves = False
        self._tell(0)

    def step(self, done: int, preview: Preview | None) -> None:
        """Tell of `done` steps, not too often; the last is always told."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        if now - self._told >= SECONDS_BETWEEN_NEWS or done >= self._total:
            self._told = now
            self._tell(done)
        if preview is not None and now - self._moved >= SECONDS_BETWEEN_MOTIONS and self._tabs.wants_motion():
            self._show(preview)
            self._moved = self._clock()

    def _tell(self, done: int) -> None:
        news = {"phase": self._phase, "done": done, "total": self._total, "seconds_left": self._seconds_left(done)}
        self._tabs.tell(PROGRESS, news)

    def _seconds_left(self, done: int) -> float | None:
        """Return an estimate from the steps behind the first, which also warms up; None before there are any."""
        if self._first is None or done <= self._first[1]:
            return None
        begun, first = self._first
        return round((self._clock() - begun) / (done - first) * (self._total - done), 1)

    def _show(self, preview: Preview) -> None:
        frames = preview.moving(MOTION_PIXELS, MOTION_FRAMES)
        if len(frames) > 1:
            self._tabs.tell(MOTION, {"webp": base64.b64encode(animated(frames)).decode()})
            self.moves = True


def animated(frames: list[Image]) -> bytes:
    """Return frames as an endless animated WebP."""
    data = io.BytesIO()
    options: dict[str, Any] = {"duration": MOTION_MILLISECONDS, "loop": 0, "quality": 60, "method": 0}
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:], **options)
    return data.getvalue()
