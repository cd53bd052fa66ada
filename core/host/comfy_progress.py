"""Progress events for the browser tab that started the run: the phase's name, time left, and a moving preview."""

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
SECONDS_BETWEEN_EVENTS = 0.2
SECONDS_BETWEEN_MOTIONS = 3.0
MOTION_PIXELS = 192  # longest side
MOTION_FRAMES = 24
MOTION_MILLISECONDS = 250  # a latent frame stands for four frames of 16 a second


class ProgressEvents:
    """Sends the progress of one phase of a node's work to the browser.

    Args:
        phase: its name, for people.
        total: its steps.
        listeners: the browser tabs that may want the events.
        clock: gives seconds.

    Attributes:
        has_moving_preview: whether a moving preview was sent; a still one beside it would be one too many.
    """

    def __init__(
        self, phase: str, total: int, listeners: Tabs = tabs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._phase, self._total, self._tabs, self._clock = phase, total, listeners, clock
        self._first_step: tuple[float, int] | None = None
        self._last_event = self._last_motion = -SECONDS_BETWEEN_MOTIONS
        self.has_moving_preview = False
        self._send(0)

    def step(self, done: int, preview: Preview | None) -> None:
        """Send that `done` steps are done, at a limited rate; the last step is always sent."""
        now = self._clock()
        if self._first_step is None:
            self._first_step = now, done
        if now - self._last_event >= SECONDS_BETWEEN_EVENTS or done >= self._total:
            self._last_event = now
            self._send(done)
        if preview is not None and now - self._last_motion >= SECONDS_BETWEEN_MOTIONS and self._tabs.wants_motion():
            frames = preview.moving(MOTION_PIXELS, MOTION_FRAMES)
            if len(frames) > 1:
                self._tabs.send(MOTION, {"webp": base64.b64encode(animated(frames)).decode()})
                self.has_moving_preview = True
            # Read again: making the preview takes time, and is not to be the only thing the run does.
            self._last_motion = self._clock()

    def _send(self, done: int) -> None:
        event = {"phase": self._phase, "done": done, "total": self._total, "seconds_left": self._seconds_left(done)}
        self._tabs.send(PROGRESS, event)

    def _seconds_left(self, done: int) -> float | None:
        """Return an estimate from the steps after the first, which also warms up; None before there are any."""
        if self._first_step is None or done <= self._first_step[1]:
            return None
        begun, first = self._first_step
        return round((self._clock() - begun) / (done - first) * (self._total - done), 1)


def animated(frames: list[Image]) -> bytes:
    """Return frames as an endless animated WebP."""
    data = io.BytesIO()
    options: dict[str, Any] = {"duration": MOTION_MILLISECONDS, "loop": 0, "quality": 60, "method": 0}
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:], **options)
    return data.getvalue()
