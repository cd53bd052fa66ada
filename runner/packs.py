"""Packs of other people: V1 packs loaded by path, and what is missing where one cannot be."""

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

    A pack that cannot be loaded is left out, with a warning that says what is missing.

    Raises:
        WorkflowError: a folder is not there.
    """
    packs = Packs()
    for folder in folders:
        if not folder.is_dir():
            raise WorkflowError(f"--custom-nodes {folder}: there is no such folder.")
        paths = [folder]
        if not (folder / "__init__.py").is_file():
            # What ComfyUI would load from its custom_nodes; its manager switches packs off by the ending.
            paths = [
                path
                for path in sorted(folder.iterdir())
                if not path.name.startswith((".", "__")) and not path.name.endswith(".disabled")
                if path.suffix == ".py" or (path / "__init__.py").is_file()
            ]
        for path in paths:
            _load(path.resolve(), packs)
    return packs


def _load(path: Path, packs: Packs) -> None:
    # The name ComfyUI gives it: its path, so that only its own imports are relative.
    name, pack = str(path).replace(".", "_x_"), path.name
    try:
        module = _import(path, name)
    except Exception as error:  # noqa: BLE001 - a pack is anybody's code; one that fails must not stop the others
        sys.modules.pop(name, None)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and missing.partition(".")[0] in COMFYUI_MODULES:
            reason = f"wants ComfyUI's module {missing!r}: give a checkout with --comfyui DIR."
        elif missing:
            reason = f"wants the Python package {missing.partition('.')[0]!r}: install what its requirements name."
        else:
            reason = f"cannot be loaded ({type(error).__name__}: {error})."
        packs.failed[pack] = f"The pack {pack} {reason}"
        log.warning("%s", packs.failed[pack])
        return
    classes = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if not isinstance(classes, dict):
        packs.failed[pack] = f"The pack {pack} has no NODE_CLASS_MAPPINGS: only V1 packs can be run."
        log.warning("%s", packs.failed[pack])
        return
    # What has no INPUT_TYPES is no node of V1, and the engine knows no other.
    packs.classes |= {str(name): node for name, node in classes.items() if hasattr(node, "INPUT_TYPES")}
    packs.titles |= {
        str(name): str(title) for name, title in getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", {}).items()
    }


def _import(path: Path, name: str) -> ModuleType:
    is_file = path.suffix == ".py"
    spec = importlib.util.spec_from_file_location(
        name, path if is_file else path / "__init__.py", submodule_search_locations=None if is_file else [str(path)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: its relative imports look their package up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def reach_comfyui(folder: Path, device: str) -> None:
    """Put the modules of a ComfyUI checkout within reach of packs, behind everything that is installed.

    Raises:
        WorkflowError: the folder is no checkout.
    """
    if not (folder / "comfy").is_dir() or not (folder / "folder_paths.py").is_file():
        raise WorkflowError(f"--comfyui {folder}: this is no ComfyUI checkout (it has no comfy and folder_paths.py).")
    # At the end: a checkout has modules with common names, such as utils, which must not hide installed ones.
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    settle_comfyui_device(device)
