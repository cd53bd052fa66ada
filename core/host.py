"""The program around the pack: folders, device, progress, cancelling, other tenants of the card.

One protocol with two implementations: ComfyUI (`comfy_host`), and a headless host that `runner` fills in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .errors import PiyingError

if TYPE_CHECKING:
    from PIL.Image import Image

FolderKind = Literal["input", "output", "temp"]

MODEL_CATEGORIES = (
    "diffusers",
    "diffusion_models",
    "checkpoints",
    "LLM",
    "text_encoders",
    "vae",
    "unet",
    "annotators",
    "loras",
    "tokenizers",
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
        imagined: only plans are made: a limit may stand for a card that is not there, and a model of the
            manifest for one that is not installed.
    """

    vram: int | None = None
    ram: int | None = None
    reserved: int = 0
    evictable: int = 0
    low_vram: bool = False
    imagined: bool = False


class Preview(Protocol):
    """A look at unfinished work; made only where a host asks for it."""

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


class Host(Protocol):
    """What the pack asks of the program that runs it."""

    def folder(self, kind: FolderKind) -> Path:
        """Return the input, output or temp folder."""

    def model_folders(self) -> list[tuple[str, Path]]:
        """Return (category, folder) pairs to look for models in, most preferred first."""

    def device(self) -> str:
        """Return the torch device to compute on, such as `cuda:0` or `cpu`."""

    def progress(self, phase: str, total: int) -> Progress:
        """Begin a phase of `total` steps under a name a person understands."""

    def check_cancelled(self) -> None:
        """Stop the run here where the user has cancelled it."""

    def make_room(self, size: int) -> None:
        """Ask other tenants of the card to leave until `size` bytes are free."""

    def memory_rules(self) -> MemoryRules:
        """Return what the user and the program around the pack say about memory."""

    def cache_folder(self) -> Path:
        """Return a folder for files that may be thrown away and are worth keeping between runs."""

    def on_eviction(self, evict: Callable[[], None], size: Callable[[], int]) -> None:
        """Have `evict` called when the user asks that models leave memory; `size` tells how many bytes they hold."""

    def video_file(self, path: Path) -> Any:
        """Return what a VIDEO wire carries for a video file; nothing of it is decoded yet."""


class SilentProgress:
    """Counts for nobody."""

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Do nothing."""

    def text(self, text: str) -> None:
        """Do nothing."""


def _silent(phase: str, total: int) -> Progress:
    del phase, total
    return SilentProgress()


def _as_it_is(path: Path) -> Path:
    return path


@dataclass
class HeadlessHost:
    """No ComfyUI: folders given by the caller, progress handed to it.

    Attributes:
        models: ComfyUI-like model roots (holding `diffusers`, `LLM`, …) or folders that hold model
            folders directly; both are looked through.
        vram, ram: bytes to plan with in place of what the machine has.
        imagined: see `MemoryRules`.
        as_video: gives what a VIDEO wire carries for a video file; by default its path.
    """

    input: Path = Path("input")
    output: Path = Path("output")
    temp: Path = Path("temp")
    models: Iterable[Path] = field(default_factory=tuple)
    chosen_device: str = "auto"
    on_progress: Callable[[str, int], Progress] = _silent
    cache: Path | None = None
    vram: int | None = None
    ram: int | None = None
    imagined: bool = False
    as_video: Callable[[Path], Any] = _as_it_is

    def folder(self, kind: FolderKind) -> Path:
        """Return the folder the caller gave."""
        return {"input": self.input, "output": self.output, "temp": self.temp}[kind]

    def model_folders(self) -> list[tuple[str, Path]]:
        """Return each root's categories, then the root itself."""
        found = []
        for root in self.models:
            found += [(category, root / category) for category in MODEL_CATEGORIES]
            found.append(("", root))
        return found

    def device(self) -> str:
        """Return the chosen device, or the best one torch can see.

        Raises:
            PiyingError: the chosen device is not one torch can use here.
        """
        from .memory.devices import best_device, checked_device

        return best_device() if self.chosen_device == "auto" else checked_device(self.chosen_device)

    def progress(self, phase: str, total: int) -> Progress:
        """Hand the phase to the caller's display."""
        return self.on_progress(phase, total)

    def check_cancelled(self) -> None:
        """Do nothing: Ctrl-C arrives as KeyboardInterrupt by itself."""

    def make_room(self, size: int) -> None:
        """Do nothing: the process has the card to itself."""

    def memory_rules(self) -> MemoryRules:
        """Return the limits the caller gave."""
        return MemoryRules(vram=self.vram, ram=self.ram, imagined=self.imagined)

    def cache_folder(self) -> Path:
        """Return the folder the caller gave, else the user's own (XDG_CACHE_HOME)."""
        if self.cache is not None:
            return self.cache
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "piying"

    def on_eviction(self, evict: Callable[[], None], size: Callable[[], int]) -> None:
        """Do nothing: nobody but the run itself wants the memory."""

    def video_file(self, path: Path) -> Any:
        """Return what the caller's `as_video` makes of it."""
        return self.as_video(path)


_host: Host | None = None


def set_host(host: Host | None) -> None:
    """Make `host` the one the pack talks to; None goes back to finding out."""
    global _host
    _host = host


def get_host() -> Host:
    """Return the host that was set, or ComfyUI where the pack runs inside it.

    Raises:
        PiyingError: neither is the case.
    """
    if _host is not None:
        return _host
    if "folder_paths" in sys.modules:
        from .comfy_host import ComfyHost

        return ComfyHost()
    raise PiyingError(
        "Piying runs inside ComfyUI or through `python -m runner`; from your own code call set_host() first."
    )
