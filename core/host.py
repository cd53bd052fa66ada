"""The program around the pack: folders, device, progress, cancelling, other tenants of the card.

One protocol with two implementations: ComfyUI, and a headless host that `runner` fills in. The only
file of the pack that imports ComfyUI's modules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from .errors import PiyingError

if TYPE_CHECKING:
    from PIL.Image import Image

FolderKind = Literal["input", "output", "temp"]
Preview = Callable[[], "Image"]

MODEL_CATEGORIES = ("diffusers", "diffusion_models", "checkpoints", "LLM", "text_encoders")
PREVIEW_PIXELS = 512  # longest side of a preview; ComfyUI's own sampler previews use the same


class Progress(Protocol):
    """One phase of a node's work, counted in steps."""

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Report `done` steps of the phase; stops the run here where the user has cancelled it."""


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


class ComfyProgress:
    """A progress bar on the running ComfyUI node."""

    def __init__(self, total: int) -> None:
        from comfy.utils import ProgressBar

        self._total = total
        self._bar = ProgressBar(total)

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Move the bar and show the preview; raises ComfyUI's own interrupt when cancelled."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()
        image = None if preview is None else ("JPEG", preview(), PREVIEW_PIXELS)
        self._bar.update_absolute(done, self._total, image)


class ComfyHost:
    """ComfyUI: its folders, its device, its bar, its interrupt."""

    def folder(self, kind: FolderKind) -> Path:
        """Return ComfyUI's folder, as set on its command line."""
        import folder_paths

        getters = {
            "input": folder_paths.get_input_directory,
            "output": folder_paths.get_output_directory,
            "temp": folder_paths.get_temp_directory,
        }
        return Path(getters[kind]())

    def model_folders(self) -> list[tuple[str, Path]]:
        """Return ComfyUI's model folders, `extra_model_paths.yaml` included."""
        import folder_paths

        found = []
        for category in MODEL_CATEGORIES:
            known = category in folder_paths.folder_names_and_paths
            paths = folder_paths.get_folder_paths(category) if known else [Path(folder_paths.models_dir) / category]
            found += [(category, Path(path)) for path in paths]
        return found

    def device(self) -> str:
        """Return the device ComfyUI computes on."""
        from comfy.model_management import get_torch_device

        return str(get_torch_device())

    def progress(self, phase: str, total: int) -> Progress:
        """Put a bar on the running node; ComfyUI shows no phase names."""
        del phase
        return ComfyProgress(total)

    def check_cancelled(self) -> None:
        """Raise ComfyUI's interrupt when the user pressed cancel."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()

    def make_room(self, size: int) -> None:
        """Have ComfyUI unload its own models until `size` bytes are free."""
        from comfy.model_management import free_memory, get_torch_device

        free_memory(size, get_torch_device())


def settle_comfyui_device(device: str) -> None:
    """Tell ComfyUI's modules, loaded without ComfyUI, to stay off the card where we do or there is none.

    They look for a card as soon as they are imported, and fail where there is none.
    """
    import torch
    from comfy.cli_args import args

    if device == "cpu" or not torch.cuda.is_available():
        args.cpu = True


class SilentProgress:
    """Counts for nobody."""

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Do nothing."""


def _silent(phase: str, total: int) -> Progress:
    del phase, total
    return SilentProgress()


@dataclass
class HeadlessHost:
    """No ComfyUI: folders given by the caller, progress handed to it.

    `models` are ComfyUI-like model roots (holding `diffusers`, `LLM`, …) or folders that hold model
    folders directly; both are looked through.
    """

    input: Path = Path("input")
    output: Path = Path("output")
    temp: Path = Path("temp")
    models: Iterable[Path] = field(default_factory=tuple)
    chosen_device: str = "auto"
    on_progress: Callable[[str, int], Progress] = _silent

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
        return ComfyHost()
    raise PiyingError(
        "Piying runs inside ComfyUI or through `python -m runner`; from your own code call set_host() first."
    )
