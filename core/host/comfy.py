"""ComfyUI host: the pack inside ComfyUI. Of the pack only core/host/comfy*.py import ComfyUI's modules."""

from __future__ import annotations

import asyncio
import base64
import io
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import MODEL_CATEGORIES, PREVIEW_PIXELS, FolderKind, MemoryRules, Preview, Progress
from .comfy_server import Tabs, category_folders, tabs
from .progress import TimeLeft

if TYPE_CHECKING:
    from PIL.Image import Image

# ComfyUI asks for this many bytes when every model is to leave (model_management.unload_all_models).
UNLOAD_ALL = 1e29

# Names of events: web/ listens to them.
PROGRESS, MOTION = "piying.progress", "piying.motion"
SECONDS_BETWEEN_EVENTS = 0.2
SECONDS_BETWEEN_MOTIONS = 3.0
MOTION_PIXELS = 192  # longest side
MOTION_FRAMES = 24
MOTION_MILLISECONDS = 250  # a latent frame stands for four frames of 16 a second


_tables: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Any]] = weakref.WeakKeyDictionary()


class ProgressEvents:
    """Sends the progress of one phase of a node's work to the browser.

    Args:
        phase: its name, for people.
        total: its steps.
        listeners: the browser tabs that may want the events.
        clock: gives seconds.
        expected: the seconds that it is estimated to take; 0 where nobody has estimated it.

    Attributes:
        has_moving_preview: whether a moving preview was sent; a still one beside it would be one too many.
    """

    def __init__(
        self,
        phase: str,
        total: int,
        listeners: Tabs = tabs,
        clock: Callable[[], float] = time.monotonic,
        *,
        expected: float = 0.0,
    ) -> None:
        self._phase, self._total, self._tabs, self._clock = phase, total, listeners, clock
        self._time_left = TimeLeft(total, clock)
        self._time_left.expected = expected
        self._last_event = self._last_motion = -SECONDS_BETWEEN_MOTIONS
        self.has_moving_preview = False
        self._send(0)

    def step(self, done: int, preview: Preview | None) -> None:
        """Send that `done` steps are done, at a limited rate; the last step is always sent."""
        now = self._clock()
        self._time_left.step(done)
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
        left = self._time_left.seconds()
        seconds_left = None if left is None else round(left, 1)
        event = {"phase": self._phase, "done": done, "total": self._total, "seconds_left": seconds_left}
        self._tabs.send(PROGRESS, event)


def animated(frames: list[Image]) -> bytes:
    """Return frames as an endless animated WebP."""
    data = io.BytesIO()
    options: dict[str, Any] = {"duration": MOTION_MILLISECONDS, "loop": 0, "quality": 60, "method": 0}
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:], **options)
    return data.getvalue()


class ComfyProgress:
    """A progress bar on the running ComfyUI node."""

    def __init__(self, phase: str, total: int, expected: float = 0.0) -> None:
        from comfy.utils import ProgressBar

        self._total = total
        self._bar = ProgressBar(total)
        self._events = ProgressEvents(phase, total, expected=expected)

    def step(self, done: int, preview: Preview | None = None) -> None:
        """Move the bar and show the preview; raises ComfyUI's own interrupt when cancelled."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()
        self._events.step(done, preview)
        still = None if preview is None or self._events.has_moving_preview else ("JPEG", preview(), PREVIEW_PIXELS)
        self._bar.update_absolute(done, self._total, still)

    def text(self, text: str) -> None:
        """Show the text on the running node, in a ComfyUI that can."""
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None and hasattr(server, "send_progress_text") and server.last_node_id is not None:
            server.send_progress_text(text, server.last_node_id)


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
        from comfy import model_management

        found = [(category, path) for category in MODEL_CATEGORIES for path in category_folders(category)]
        # The tokenizers that ComfyUI comes with, for files of weights that bring none.
        return [*found, ("tokenizers", Path(model_management.__file__).parent / "text_encoders")]

    def pass_cache(self) -> dict[Any, Any]:
        """Return a table that lasts until ComfyUI's event loop goes on.

        It asks all nodes for their inputs, and checks a whole prompt, without going on to another request in between.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return {}
        if loop not in _tables:
            _tables[loop] = {}
            loop.call_soon(_tables.pop, loop, None)
        return _tables[loop]

    def device(self) -> str:
        """Return the device ComfyUI computes on."""
        from comfy.model_management import get_torch_device

        return str(get_torch_device())

    def progress(self, phase: str, total: int, *, seconds: float = 0.0) -> Progress:
        """Put a bar on the running node; our panel beside it names the phase and the time left."""
        return ComfyProgress(phase, total, seconds)

    def check_cancelled(self) -> None:
        """Raise ComfyUI's interrupt when the user pressed cancel."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()

    def is_watched(self) -> bool:
        """Return whether the run was started in a tab that has the pack's panels."""
        return tabs.has_page()

    def second_device(self) -> str:
        """Return that there is none: in ComfyUI each loader names one."""
        return ""

    def make_room(self, size: int, device: str = "") -> None:
        """Have ComfyUI unload its own models from a card until `size` bytes are free."""
        from comfy.model_management import free_memory

        free_memory(size, _torch_device(device))

    def memory_rules(self, device: str = "") -> MemoryRules:
        """Return what `--reserve-vram`, `--lowvram` and `--novram` say, and what ComfyUI's own models hold."""
        from comfy import model_management as management

        card = _torch_device(device)
        held = sum(model.model_loaded_memory() for model in management.current_loaded_models if model.device == card)
        low = (management.VRAMState.LOW_VRAM, management.VRAMState.NO_VRAM)
        return MemoryRules(
            reserved=int(management.extra_reserved_memory()),
            evictable=int(held),
            low_vram=management.vram_state in low,
        )

    def cache_folder(self) -> Path:
        """Return a folder beside the user's settings: ComfyUI empties its temp folder at every start."""
        import folder_paths

        return Path(folder_paths.get_user_directory()) / "piying" / "cache"

    def on_eviction(self, evict: Callable[[], None], size: Callable[[], int]) -> None:
        """Stand in ComfyUI's list of loaded models, so that its `/free` reaches ours."""
        from comfy.model_management import current_loaded_models

        if not any(getattr(entry, "is_piying", False) for entry in current_loaded_models):
            current_loaded_models.append(_loaded_model_entry(evict, size))

    def video_file(self, path: Path) -> Any:
        """Return ComfyUI's own video of a file; Save Video copies its streams."""
        from comfy_api.input_impl import VideoFromFile

        return VideoFromFile(str(path))


def _torch_device(device: str) -> Any:
    """Return torch's device of that name; "" stands for the one ComfyUI computes on."""
    import torch
    from comfy.model_management import get_torch_device

    return torch.device(device) if device else get_torch_device()


def _loaded_model_entry(evict: Callable[[], None], size: Callable[[], int]) -> Any:
    """Return an entry for ComfyUI's list of loaded models that stands for all of ours.

    Between nodes ours are in host memory alone, so the entry leaves only when everything is to
    leave, and not when another node looks for room on the card.
    """
    import torch
    from comfy.model_management import LoadedModel, get_torch_device
    from comfy.model_patcher import ModelPatcher

    class Tenants(torch.nn.Module):  # type: ignore[misc]
        """Piying's models in host memory."""

    class TenantPatcher(ModelPatcher):  # type: ignore[misc]
        def model_size(self) -> int:
            return size()

        def loaded_size(self) -> int:
            return 0

    class TenantEntry(LoadedModel):  # type: ignore[misc]
        is_piying = True

        def __init__(self) -> None:
            # The list holds its models weakly: the entry itself holds this one.
            self.patcher = TenantPatcher(Tenants(), get_torch_device(), torch.device("cpu"))
            super().__init__(self.patcher)
            self.real_model = weakref.ref(self.patcher.model)

        def model_unload(self, memory_to_free: float | None = None, unpatch_weights: bool = True) -> bool:
            if memory_to_free is not None and memory_to_free < UNLOAD_ALL:
                return False
            evict()
            return True

    return TenantEntry()


def settle_comfyui_device(device: str, vram: int | None = None) -> None:
    """Tell ComfyUI's modules, loaded without ComfyUI, what to compute on, and how much of the card is theirs.

    They look for a card as soon as they are imported, and fail where there is none.

    Args:
        device: `auto`, or a torch device.
        vram: bytes of the card to use, or None.
    """
    import torch
    from comfy.cli_args import args

    if device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        args.cpu = True
    elif torch.cuda.is_available():
        if device.startswith("cuda:") and device[5:].isdecimal() and int(device[5:]) < torch.cuda.device_count():
            torch.cuda.set_device(device)
        if vram is not None:
            total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            args.reserve_vram = max(0, total - vram) / 2**30
