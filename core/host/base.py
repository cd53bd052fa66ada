"""Host protocols: what the pack asks of the program around it.

Two programs implement them: ComfyUI (`comfy.py`), and a headless process that `runner` fills in (`headless.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..parallel.cards import Cards

FolderKind = Literal["input", "output", "temp"]

MODEL_CATEGORIES = (
    "diffusers",
    "diffusion_models",
    "checkpoints",
    "LLM",
    "text_encoders",
    "clip_vision",
    "vae",
    "unet",
    "annotators",
    "loras",
    "tokenizers",
    "upscale_models",
    "frame_interpolation",
    "vae_approx",
)
PREVIEW_PIXELS = 512  # longest side of a preview; ComfyUI's own sampler previews use the same


@dataclass(frozen=True)
class MemoryRules:
    """What a run may use.

    Attributes:
        vram, ram: bytes to plan with in place of what the machine has, or None.
        reserved: bytes of the card that stay free for others.
        evictable: bytes of the card that other tenants hold and give up when asked.
        low_vram: the user asked for as little on the card as possible.
        cards: the cards that a run is shared between; None for one.
        imagined: only plans are made: a limit may stand for a card that is not there, and a model of the
            manifest for one that is not installed.
    """

    vram: int | None = None
    ram: int | None = None
    reserved: int = 0
    evictable: int = 0
    low_vram: bool = False
    imagined: bool = False
    cards: Cards | None = None


class Preview(Protocol):
    """A preview of unfinished work; made only where a host asks for it."""

    def __call__(self) -> Image:
        """Return a still picture."""

    def moving(self, side: int, most: int) -> list[Image]:
        """Return up to `most` frames whose longest side is `side` pixels; a single one where nothing moves."""


class Progress(Protocol):
    """One phase of a node's work, counted in steps."""

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Report `done` steps of the phase; stops the run here where the user has cancelled it."""

    def text(self, text: str) -> None:
        """Show what has been written so far, all of it each time."""


@runtime_checkable
class TimedProgress(Protocol):
    """Progress that shows the seconds left, and may be told how long the phase is estimated to take."""

    def expect(self, seconds: float) -> None:
        """Take `seconds` for the time of the whole phase until its steps tell better."""


class Folders(Protocol):
    """Where files are."""

    def folder(self, kind: FolderKind) -> Path:
        """Return the input, output or temp folder."""

    def model_folders(self) -> list[tuple[str, Path]]:
        """Return (category, folder) pairs to look for models in, most preferred first."""

    def pass_cache(self) -> dict[Any, Any]:
        """Return a table for what is found in the models folders in one pass, such as a list of all nodes' inputs.

        It is a new one in each pass, and outside of passes at each call.
        """

    def cache_folder(self) -> Path:
        """Return a folder for files that may be deleted at any time and are worth keeping between runs."""

    def video_file(self, path: Path) -> Any:
        """Return what a VIDEO wire carries for a video file; nothing of it is decoded yet."""


class DevicePolicy(Protocol):
    """What to compute on, and how its memory is shared with the program around the pack."""

    def device(self) -> str:
        """Return the torch device to compute on, such as `cuda:0` or `cpu`."""

    def second_device(self) -> str:
        """Return the second card that the user named for all models, such as `cuda:1`; "" for none."""

    def memory_rules(self, device: str = "") -> MemoryRules:
        """Return what the user and the program around the pack say about memory.

        Args:
            device: the second card, where the rules are those for it; "" for the device of the run.
        """

    def make_room(self, size: int, device: str = "") -> None:
        """Ask other tenants of a card to leave until `size` bytes are free; "" stands for the device of the run."""

    def on_eviction(self, evict: Callable[[], None], size: Callable[[], int]) -> None:
        """Have `evict` called when the user asks that models leave memory; `size` tells how many bytes they hold."""


class Reporter(Protocol):
    """Progress shown to the user, and the user's wish to cancel."""

    def progress(self, phase: str, total: int, *, seconds: float = 0.0) -> Progress:
        """Begin a phase of `total` steps under a name a person understands.

        Args:
            seconds: what it is estimated to take; 0 where nobody has estimated it.
        """

    def check_cancelled(self) -> None:
        """Stop the run here where the user has cancelled it."""


class Host(Folders, DevicePolicy, Reporter, Protocol):
    """All that the pack asks of the program that runs it; a function takes the narrowest part that it needs."""

    def is_watched(self) -> bool:
        """Return whether a page shows what nodes made of the current run."""


class SilentProgress:
    """Progress that is not shown."""

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Do nothing."""

    def text(self, text: str) -> None:
        """Do nothing."""
