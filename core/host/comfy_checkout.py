"""ComfyUI checkout: its modules in a headless process, brought up in the order of its own main.py, without a server.

Packs find what they find inside ComfyUI: its modules under their names, `PromptServer.instance` (whose routes nobody
serves, and whose messages nobody reads), `folder_paths` with the folders of the run, and core's own node classes.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import re
import runpy
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import PiyingError
from ..samples import place_clips
from .base import MemoryRules, Progress
from .comfy import ComfyHost, settle_comfyui_device
from .headless import HeadlessHost

log = logging.getLogger("piying")

# Modules of a checkout that packs import.
COMFYUI_MODULES = {
    "app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras",
    "comfyui_version", "cuda_malloc", "execution", "folder_paths", "latent_preview", "middleware", "node_helpers",
    "nodes", "protocol", "server", "utils",
}  # fmt: skip
REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
PAGE_PACKAGES = "comfyui-"  # of ComfyUI's requirements, what its page is made of


class CheckoutHost(HeadlessHost):
    """A headless host that shares its process, models and card with ComfyUI's modules."""

    def model_folders(self) -> list[tuple[str, Path]]:
        """Return the caller's folders, then those of the checkout and of its `extra_model_paths.yaml`."""
        own = super().model_folders()
        return own + [each for each in ComfyHost().model_folders() if each not in own]

    def make_room(self, size: int, device: str = "") -> None:
        """Have ComfyUI unload the models of its own nodes from a card until `size` bytes are free."""
        ComfyHost().make_room(size, device)

    def memory_rules(self, device: str = "") -> MemoryRules:
        """Return the caller's limits, and what ComfyUI's models hold of the card."""
        held = 0 if self.device() == "cpu" else ComfyHost().memory_rules(device).evictable
        return replace(super().memory_rules(device), evictable=held)

    def on_eviction(self, evict: Callable[[], None], size: Callable[[], int]) -> None:
        """Stand in ComfyUI's list of loaded models, which nodes of packs may empty."""
        ComfyHost().on_eviction(evict, size)

    def video_file(self, path: Path) -> Any:
        """Return ComfyUI's own video of a file, which core's nodes and packs take."""
        return ComfyHost().video_file(path)


class Checkout:
    """A ComfyUI checkout in this process; there can be one.

    Attributes:
        folder: where it is.
        lacks: why not all of its modules could be loaded, as a sentence; None where they were.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lacks: str | None = None
        version = folder / "comfyui_version.py"
        self._version = runpy.run_path(str(version)).get("__version__") if version.is_file() else None
        self._loop = asyncio.new_event_loop()
        self._nodes: ModuleType | None = None
        self._server: Any = None
        self._core: set[str] = set()  # names of core's nodes
        self._added: set[str] = set()  # model folders of the caller
        self._begin: Callable[[str, int], Progress] | None = None
        self._bar: tuple[int, float, Progress] | None = None  # total, value, and where they are shown

    def __str__(self) -> str:
        return f"the checkout {self.folder}" + (f" (ComfyUI {self._version})" if self._version else "")

    @property
    def has_nodes(self) -> bool:
        """Whether ComfyUI's server and nodes could be loaded."""
        return self._nodes is not None

    def bring_up(self, host: HeadlessHost, packs: Sequence[Path]) -> None:
        """Import the modules as main.py does: paths, prestartup scripts, then torch, the server and the nodes.

        What this Python lacks for it is said in one line.

        Args:
            host: folders, device and display of the run.
            packs: the packs that will be loaded.
        """
        if str(self.folder) in sys.path:  # a second session in this process
            self.use(host)
            return
        # In front, as for main.py: an installed module called `utils` or `server` would hide ComfyUI's.
        sys.path.insert(0, str(self.folder))
        failed: list[str] = []
        try:
            self._bring_up_paths(host, packs)
            with _muted():
                failed = self._bring_up_nodes(host)
        except Exception as error:  # noqa: BLE001 - ComfyUI's requirements may be of any version, and fail in any way
            self.lacks = self._why_not(error)
            log.warning("%s Its nodes are left out, and packs that use these modules.", self.lacks)
        self.use(host)
        if failed:
            missing = self._missing_requirements()
            why = f" This Python lacks {', '.join(missing)} of ComfyUI's requirements." if missing else ""
            log.warning("ComfyUI's nodes in %s cannot be loaded and are left out.%s", ", ".join(failed), why)

    def _bring_up_paths(self, host: HeadlessHost, packs: Sequence[Path]) -> None:
        import folder_paths
        import utils.extra_config
        from comfy.cli_args import args

        # Without a folder of its own the server looks for the package of ComfyUI's page, which nobody opens here.
        args.front_end_root = str(host.temp)
        if not os.access(self.folder, os.W_OK):
            folder_paths.set_user_directory(str(host.temp / "user"))
        config = self.folder / "extra_model_paths.yaml"
        if config.is_file():
            utils.extra_config.load_extra_path_config(str(config))
        homes = folder_paths.folder_names_and_paths["custom_nodes"][0]
        homes[:0] = [home for home in dict.fromkeys(str(pack.parent) for pack in packs) if home not in homes]
        self.use(host)
        for script in (pack / "prestartup_script.py" for pack in packs):
            if script.is_file():
                try:
                    runpy.run_path(str(script), run_name=str(script.with_suffix("")))
                # A pack is anybody's code, and some end the process where they miss something.
                except (Exception, SystemExit) as error:  # noqa: BLE001
                    what = f"{type(error).__name__}: {error}"
                    log.warning("The pack %s: its prestartup script failed (%s).", script.parent.name, what)

    def _bring_up_nodes(self, host: HeadlessHost) -> list[str]:
        """Import the rest; return the files of core nodes that cannot be loaded."""
        settle_comfyui_device(host.chosen_device, host.vram)
        import comfy.utils
        import execution  # noqa: F401 - before the server, as in main.py
        import server

        nodes = importlib.import_module("nodes")  # by name: the pack has a package of that name

        class SilentServer(server.PromptServer):  # type: ignore[misc]
            """The server that packs add their routes to; it is never started."""

            def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
                """Drop the message: there is no page, and a queue that nobody reads would only grow."""

        asyncio.set_event_loop(self._loop)
        self._server = SilentServer(self._loop)
        with self.unhooked():
            failed: list[str] = self.run(_load_core_nodes(nodes))
        comfy.utils.set_progress_bar_global_hook(self._show_progress)
        # Its samplers draw bars of their own beside that.
        comfy.utils.set_progress_bar_enabled(log.isEnabledFor(logging.DEBUG))
        self._core = set(nodes.NODE_CLASS_MAPPINGS)
        self._nodes = nodes
        return failed

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Return the result of a coroutine, run on the loop of the server, as all loading is in ComfyUI."""
        return self._loop.run_until_complete(awaitable)

    @contextmanager
    def unhooked(self) -> Iterator[None]:
        """Undo, at the end, what loaded code replaced in ComfyUI's memory management, as main.py does."""
        with ExitStack() as stack:
            if importlib.util.find_spec("hook_breaker_ac10a0") is not None:
                import hook_breaker_ac10a0

                hook_breaker_ac10a0.save_functions()
                stack.callback(hook_breaker_ac10a0.restore_functions)
            yield

    # Why something could not be imported

    def why_not(self, error: BaseException) -> str | None:
        """Return what is wrong with the checkout where an import failed for it, else None.

        The sentence goes on from "The pack NAME wants".
        """
        if not isinstance(error, ImportError):
            return None
        name = error.name or ""
        package = name.partition(".")[0]
        if package in COMFYUI_MODULES:
            what = f"ComfyUI's module {name!r}"
            if not isinstance(error, ModuleNotFoundError):
                what = f"something of {what} ({error})"
            if self.lacks is not None:
                return f"{what}, which could not be loaded here."
            return f"{what}, which {self} does not have: it is made for another version of ComfyUI."
        if not isinstance(error, ModuleNotFoundError):
            return None
        if _normal(package) in map(_normal, self._missing_requirements()):
            return f"the Python package {package!r}, one of ComfyUI's own requirements: {self._install()}."
        if _is_inside(_raised_in(error), self.folder):
            return f"a part of ComfyUI that needs {name!r}, which this Python lacks."
        return None

    def _why_not(self, error: Exception) -> str:
        """Return the sentence for an import of a module of the checkout that failed."""
        missing = self._missing_requirements()
        if isinstance(error, ModuleNotFoundError) and missing:
            return (
                f"ComfyUI: {self} needs {error.name!r}, and this Python lacks {', '.join(missing)} "
                f"of its requirements: {self._install()}."
            )
        return f"ComfyUI: {self} cannot be loaded ({type(error).__name__}: {error})."

    def _install(self) -> str:
        return f"{sys.executable} -m pip install -r {self.folder / 'requirements.txt'}"

    def _missing_requirements(self) -> list[str]:
        """Return the packages of ComfyUI's requirements that are not installed, but for those of its page."""
        path = self.folder / "requirements.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        names = [match[1] for match in map(REQUIREMENT.match, lines) if match]
        installed = {_normal(found.metadata["Name"] or "") for found in importlib.metadata.distributions()}
        return [name for name in names if not name.startswith(PAGE_PACKAGES) and _normal(name) not in installed]

    # Nodes

    def add(self, path: Path, module: ModuleType, classes: Mapping[str, Any], titles: Mapping[str, str]) -> None:
        """Put a pack's classes where ComfyUI has them; core's own are not replaced."""
        if self._nodes is None:
            return
        name = path.stem if path.suffix == ".py" else path.name
        self._nodes.LOADED_MODULE_DIRS[name] = str(path)
        web = getattr(module, "WEB_DIRECTORY", None)
        if web is not None:
            self._nodes.EXTENSION_WEB_DIRS[name] = str((path / web).absolute())
        for class_name, node_class in classes.items():
            if class_name not in self._core:
                self._nodes.NODE_CLASS_MAPPINGS[class_name] = node_class
        self._nodes.NODE_DISPLAY_NAME_MAPPINGS.update(titles)

    def node_classes(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the node classes of core and of the packs, and their titles; some packs replace those of others."""
        if self._nodes is None:
            return {}, {}
        return dict(self._nodes.NODE_CLASS_MAPPINGS), dict(self._nodes.NODE_DISPLAY_NAME_MAPPINGS)

    # A run

    def use(self, host: HeadlessHost) -> None:
        """Give ComfyUI's modules the folders and the display of a host."""
        self._begin, self._bar = host.progress, None
        folder_paths = sys.modules.get("folder_paths")
        if folder_paths is None:  # it could not be loaded
            return
        # A folder that is not there is an empty one here, as the input folder is that ComfyUI makes at its start.
        inputs = host.input if host.input.is_dir() else host.temp / "input"
        place_clips(inputs)
        inputs.mkdir(parents=True, exist_ok=True)
        folder_paths.set_input_directory(str(inputs.absolute()))
        folder_paths.set_output_directory(str(host.output.absolute()))
        folder_paths.set_temp_directory(str(host.temp.absolute()))
        roots = [root.absolute() for root in host.models]
        added = set()
        for paths in (entry[0] for entry in folder_paths.folder_names_and_paths.values()):
            if not isinstance(paths, list):
                continue
            own = [path for path in paths if path not in self._added]
            inner = [
                Path(path).relative_to(folder_paths.models_dir)
                for path in own
                if _is_inside(path, Path(folder_paths.models_dir))
            ]
            first = [str(root / path) for root in roots for path in inner]
            paths[:] = [*first, *(path for path in own if path not in first)]
            added.update(first)
        self._added = added

    def on_prompt(self, api: dict[str, Any], extra_pnginfo: dict[str, Any]) -> dict[str, Any]:
        """Return the API form as the handlers of packs rewrite it, such as one that fills in wildcards."""
        if not getattr(self._server, "on_prompt_handlers", None):
            return api
        body = {"prompt": copy.deepcopy(api), "extra_data": {"extra_pnginfo": extra_pnginfo}, "client_id": ""}
        changed = self._server.trigger_on_prompt(body)
        return changed["prompt"] if isinstance(changed, dict) and isinstance(changed.get("prompt"), dict) else api

    @contextmanager
    def call_context(self, node_id: str, index: int) -> Iterator[None]:
        """Tell ComfyUI's modules which node runs, and the number of its call."""
        # Looked up: a pack may use these modules of a checkout whose others cannot be loaded.
        graph_utils, contexts = map(sys.modules.get, ("comfy_execution.graph_utils", "comfy_execution.utils"))
        if graph_utils is not None:
            # What a node expands into is named after it.
            graph_utils.GraphBuilder.set_default_prefix(node_id, index, 0)
        if self._server is not None:
            self._server.last_node_id = node_id
        self._bar = None
        with ExitStack() as stack:
            if contexts is not None:
                stack.enter_context(contexts.CurrentNodeContext("", node_id, index))
            yield

    def _show_progress(self, value: float, total: float, preview: Any = None, **of: Any) -> None:
        """Show the bar of a node of core or of a pack."""
        del preview, of
        if self._begin is None or not total:
            return
        if self._bar is None or self._bar[0] != total or value < self._bar[1]:
            self._bar = (int(total), value, self._begin("steps", int(total)))
        self._bar = (self._bar[0], value, self._bar[2])
        self._bar[2].step(int(value))


_checkout: Checkout | None = None


def checkout_in(folder: Path) -> Checkout:
    """Return the checkout in a folder, new or the one that is in this process already.

    Raises:
        PiyingError: the folder is no checkout, or another one is in this process.
    """
    global _checkout
    if not (folder / "comfy").is_dir() or not (folder / "folder_paths.py").is_file():
        raise PiyingError(f"--comfyui {folder}: this is no ComfyUI checkout (it has no comfy and folder_paths.py).")
    folder = folder.resolve()
    if _checkout is None:
        _checkout = Checkout(folder)
    if _checkout.folder != folder:
        raise PiyingError(f"--comfyui {folder}: {_checkout} is in this process already. Use a process for each.")
    return _checkout


async def _load_core_nodes(nodes: ModuleType) -> list[str]:
    """Load core's nodes outside nodes.py; return the files that failed. Older versions are not async."""
    register = getattr(nodes, "init_public_apis", None)
    if register is not None:
        await register()
    failed = nodes.init_builtin_extra_nodes()
    return list((await failed if inspect.isawaitable(failed) else failed) or ())


@contextmanager
def _muted() -> Iterator[None]:
    """Mute what ComfyUI logs while it is loaded: what is missing is said in one line of our own."""
    root, level, silent = logging.getLogger(), logging.getLogger().level, logging.NullHandler()
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    root.addHandler(silent)  # without any handler, the first warning would set up one that stays
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(silent)


def _normal(package: str) -> str:
    return package.lower().replace("_", "-")


def _raised_in(error: BaseException) -> str:
    """Return the file that raised an error; imports raise in Python's own code, which does not count."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.filename for frame in reversed(frames) if not frame.filename.startswith("<frozen")), "")


def _is_inside(path: str, folder: Path) -> bool:
    return bool(path) and Path(path).is_relative_to(folder)
