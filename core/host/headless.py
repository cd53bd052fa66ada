"""Headless host: folders given by the caller, progress handed to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import MODEL_CATEGORIES, FolderKind, MemoryRules, Progress, SilentProgress, TimedProgress
from .model_folders import ExtraFolder, ordered

if TYPE_CHECKING:
    from ..parallel.cards import Cards

log = logging.getLogger("piying")

_tables: ContextVar[dict[int, dict[Any, Any]] | None] = ContextVar("tables of the pass, by host", default=None)


@dataclass
class HeadlessHost:
    """A process without ComfyUI.

    Attributes:
        models: ComfyUI-like model roots (holding `diffusers`, `LLM`, …) or folders that hold model
            folders directly; both are looked through.
        extra: further folders for some categories, as extra_model_paths.yaml has them; they go with the last root.
        vram, ram: bytes to plan with in place of what the machine has.
        chosen_second: a second card for phases that can be moved; "" for none.
        second_vram: bytes of it to use, or to plan with.
        imagined, cards: see `MemoryRules`.
        on_progress: gives the display of a phase, from its name and number of steps.
        on_check: called where a run may be cancelled; raises to stop it.
        as_video: gives what a VIDEO wire carries for a video file; by default its path.
    """

    input: Path = Path("input")
    output: Path = Path("output")
    temp: Path = Path("temp")
    models: Iterable[Path] = field(default_factory=tuple)
    extra: Iterable[ExtraFolder] = field(default_factory=tuple)
    chosen_device: str = "auto"
    on_progress: Callable[[str, int], Progress] = lambda phase, total: SilentProgress()
    on_check: Callable[[], None] = lambda: None
    cache: Path | None = None
    vram: int | None = None
    ram: int | None = None
    imagined: bool = False
    cards: Cards | None = None
    chosen_second: str = ""
    second_vram: int | None = None
    as_video: Callable[[Path], Any] = lambda path: path

    def folder(self, kind: FolderKind) -> Path:
        """Return the folder the caller gave."""
        return {"input": self.input, "output": self.output, "temp": self.temp}[kind]

    def model_folders(self) -> list[tuple[str, Path]]:
        """Return each root's categories, then the root itself."""
        found: list[tuple[str, Path]] = []
        roots, extra = list(self.models), list(self.extra)
        for root in roots:
            added = extra if root == roots[-1] else []
            for category in MODEL_CATEGORIES:
                of_category = [folder for folder in added if folder.category == category]
                found += [(category, folder) for folder in ordered(root / category, of_category)]
            found.append(("", root))
        return found

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Within it, each models folder is listed once: what is added later is seen in the next pass."""
        tables = _tables.get()
        token = _tables.set({} if tables is None else tables)
        try:
            yield
        finally:
            _tables.reset(token)

    def pass_cache(self) -> dict[Any, Any]:
        """Return the table of `one_pass`."""
        tables = _tables.get()
        return {} if tables is None else tables.setdefault(id(self), {})

    def device(self) -> str:
        """Return the chosen device, or the best one torch can see.

        Raises:
            PiyingError: the chosen device is not one torch can use here.
        """
        from ..accelerator import best_device, checked_device

        return best_device() if self.chosen_device == "auto" else checked_device(self.chosen_device)

    def second_device(self) -> str:
        """Return the second card that was chosen, or that plans are made for without its being here; "" for none.

        Raises:
            PiyingError: it cannot be a second card here.
        """
        from ..parallel.second_card import checked_second

        if self.imagined and self.second_vram is not None:
            imagined = "cuda:0" if self.device() == "cuda:1" else "cuda:1"
            return self.chosen_second or imagined
        return checked_second(self.chosen_second, self.device()) if self.chosen_second else ""

    def progress(self, phase: str, total: int, *, seconds: float = 0.0) -> Progress:
        """Hand the phase to the caller's display, and its estimate where that shows the time left."""
        shown = self.on_progress(phase, total)
        if seconds and isinstance(shown, TimedProgress):
            shown.expect(seconds)
        return shown

    def check_cancelled(self) -> None:
        """Ask the caller. Ctrl-C arrives as KeyboardInterrupt by itself, unless a library swallows it."""
        self.on_check()

    def is_watched(self) -> bool:
        """Return that there is no page."""
        return False

    def make_room(self, size: int, device: str = "") -> None:
        """Do nothing: the process has the card to itself."""

    def memory_rules(self, device: str = "") -> MemoryRules:
        """Return the limits the caller gave."""
        if device:
            return MemoryRules(vram=self.second_vram, ram=self.ram, imagined=self.imagined)
        return MemoryRules(vram=self.vram, ram=self.ram, imagined=self.imagined, cards=self.cards)

    def cache_folder(self) -> Path:
        """Return the folder the caller gave, else the user's own (XDG_CACHE_HOME), made where it is not there.

        Where there is none that can be written, as in a container without a home, it is the temp folder.
        """
        if self.cache is not None:
            return self.cache
        try:
            own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "piying"
            own.mkdir(parents=True, exist_ok=True)
            reason = None if os.access(own, os.W_OK) else f"{own} cannot be written"
        except OSError as error:
            reason = str(error)
        except RuntimeError:
            reason = "neither HOME nor the account says where home is"
        if reason is not None:
            log.warning("Nothing is cached beyond this run: %s. XDG_CACHE_HOME names another folder.", reason)
            own = self.temp / "cache"
        self.cache = own
        return own

    def on_eviction(self, evict: Callable[[], None], size: Callable[[], int]) -> None:
        """Do nothing: no other program shares the memory."""

    def video_file(self, path: Path) -> Any:
        """Return what the caller's `as_video` makes of it."""
        return self.as_video(path)
