"""Other people's node packs: V1 packs loaded by path, and what they want where they cannot be."""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ..core.host.comfy import settle_comfyui_device
from .errors import WorkflowError

log = logging.getLogger("piying")

# Modules of a ComfyUI checkout that packs import.
COMFYUI_MODULES = {
    "app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "execution",
    "folder_paths", "latent_preview", "node_helpers", "nodes", "server", "utils",
}  # fmt: skip


@dataclass
class Packs:
    """The node classes of packs, their titles, and why others could not be loaded (pack → sentence)."""

    classes: dict[str, type] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def load_packs(folders: list[Path]) -> Packs:
    """Load every pack of some folders, each itself a pack or a folder of packs like ComfyUI's custom_nodes.

    A pack that cannot be loaded is left out and named with what it wants.

    Raises:
        WorkflowError: a folder is not there.
    """
    packs = Packs()
    for folder in folders:
        if not folder.is_dir():
            raise WorkflowError(f"--custom-nodes {folder}: there is no such folder.")
        for path in [folder] if (folder / "__init__.py").is_file() else _pack_paths(folder):
            _load(path.resolve(), packs)
    return packs


def _pack_paths(folder: Path) -> list[Path]:
    """Return what ComfyUI would load from a folder of packs."""
    entries = sorted(folder.iterdir())
    return [
        path
        for path in entries
        if not path.name.startswith((".", "__")) and not path.name.endswith(".disabled")
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]


def _load(path: Path, packs: Packs) -> None:
    try:
        module = _import(path)
    except Exception as error:  # noqa: BLE001 - a pack is anybody's code; one that fails must not stop the others
        packs.failed[path.name] = _wish(path.name, error)
        log.warning("%s", packs.failed[path.name])
        return
    classes = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if not isinstance(classes, dict):
        packs.failed[path.name] = f"The pack {path.name} has no NODE_CLASS_MAPPINGS: only V1 packs can be run."
        log.warning("%s", packs.failed[path.name])
        return
    packs.classes |= {str(name): node for name, node in classes.items() if hasattr(node, "INPUT_TYPES")}
    packs.titles |= {
        str(name): str(title) for name, title in getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", {}).items()
    }


def _import(path: Path) -> ModuleType:
    """Import a pack under the name ComfyUI gives it: its path, so that only its own imports are relative."""
    name = str(path).replace(".", "_x_")
    is_file = path.suffix == ".py"
    spec = importlib.util.spec_from_file_location(
        name, path if is_file else path / "__init__.py", submodule_search_locations=None if is_file else [str(path)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _wish(pack: str, error: Exception) -> str:
    """Return a sentence that says what a pack wants."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        wanted = error.name.partition(".")[0]
        if wanted in COMFYUI_MODULES:
            return f"The pack {pack} wants ComfyUI's module {error.name!r}: give a checkout with --comfyui DIR."
        return f"The pack {pack} wants the Python package {wanted!r}: install what its requirements name."
    return f"The pack {pack} cannot be loaded ({type(error).__name__}: {error})."


def reach_comfyui(folder: Path, device: str) -> None:
    """Put the modules of a ComfyUI checkout within reach of packs, behind everything that is installed.

    Raises:
        WorkflowError: the folder is no checkout.
    """
    if not (folder / "comfy").is_dir() or not (folder / "folder_paths.py").is_file():
        raise WorkflowError(f"--comfyui {folder}: this is no ComfyUI checkout (it has no comfy and folder_paths.py).")
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    settle_comfyui_device(device)
