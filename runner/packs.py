"""Packs of other people, V1 and V3, loaded by path as ComfyUI does, and what is missing where one cannot be."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core.host.comfy_checkout import COMFYUI_MODULES, Checkout
from .errors import WorkflowError

log = logging.getLogger("piying")


@dataclass
class Packs:
    """The node classes of packs and, with a checkout, of ComfyUI's core; and what could not be loaded.

    Attributes:
        classes: V1 classes, and V3 classes as they are.
        titles: of those classes that have one.
        origins: for each class the pack it comes from.
        failed: for each pack that was left out a sentence that says why.
    """

    classes: dict[str, Any] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def find_packs(folders: list[Path]) -> list[Path]:
    """Return every pack of some folders, each itself a pack or a folder of packs like ComfyUI's custom_nodes.

    Raises:
        WorkflowError: a folder is not there.
    """
    packs: list[Path] = []
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
        # Not resolved: a link in custom_nodes is a pack of that name, as in ComfyUI.
        packs += [path.absolute() for path in paths]
    return packs


def load_packs(paths: list[Path], checkout: Checkout | None) -> Packs:
    """Load packs into this process.

    One that cannot be loaded is left out, with a warning that says what is missing.
    """
    packs = Packs()
    for path in paths:
        try:
            with _process_kept(path.name):
                _load(path, packs, checkout)
        except KeyboardInterrupt:
            raise
        # A pack is anybody's code, and some end the process where they miss something.
        except BaseException as error:  # noqa: BLE001
            sys.modules.pop(_module_name(path), None)
            packs.failed[path.name] = f"The pack {path.name} {_reason(error, path, checkout)}"
            log.warning("%s", packs.failed[path.name])
    if checkout is not None and checkout.has_nodes:
        # ComfyUI's own tables: packs may have written there themselves, and replaced each other's classes.
        packs.classes, packs.titles = checkout.node_classes()
    return packs


@contextlib.contextmanager
def _process_kept(name: str) -> Iterator[None]:
    """Put back what belongs to the process and a pack changes while it is loaded: the streams and the folder."""
    folder, streams = Path.cwd(), (sys.stdout, sys.stderr)
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) != streams:
            sys.stdout, sys.stderr = streams
            log.warning("The pack %s took stdout or stderr for itself, which are put back.", name)
        if Path.cwd() != folder:
            os.chdir(folder)
            log.warning("The pack %s changed the working folder, which is %s again.", name, folder)


def _module_name(path: Path) -> str:
    # The name ComfyUI gives it: its path, so that only its own imports are relative.
    return str(path).replace(".", "_x_")


def _load(path: Path, packs: Packs, checkout: Checkout | None) -> None:
    module = _import(path, _module_name(path))
    classes, titles = getattr(module, "NODE_CLASS_MAPPINGS", None), getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None)
    if classes is None and callable(getattr(module, "comfy_entrypoint", None)) and checkout is not None:
        nodes = checkout.run(_v3_nodes(module.comfy_entrypoint))
        classes, titles = {}, {}
        for node in nodes:
            try:
                schema = node.GET_SCHEMA()
            # A pack's code is anybody's; one bad class must not cost the others, nor the process where it ends that.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                why = f"its schema is wrong ({type(error).__name__}: {error})"
                log.warning("The pack %s: %s is left out: %s.", path.name, getattr(node, "__name__", node), why)
                continue
            classes[schema.node_id], titles[schema.node_id] = node, schema.display_name
    if not isinstance(classes, Mapping):
        raise WorkflowError("has no NODE_CLASS_MAPPINGS and no comfy_entrypoint, so it has no nodes.")
    # What has no INPUT_TYPES is no node.
    classes = {str(name): node for name, node in classes.items() if hasattr(node, "INPUT_TYPES")}
    titles = titles if isinstance(titles, Mapping) else {}
    titles = {str(name): str(title) for name, title in titles.items() if title}
    packs.classes |= classes
    packs.titles |= titles
    packs.origins |= dict.fromkeys(classes, path.name)
    if checkout is not None:
        checkout.add(path, module, classes, titles)


async def _v3_nodes(entrypoint: Any) -> list[Any]:
    extension = entrypoint()
    if inspect.isawaitable(extension):
        extension = await extension
    if hasattr(extension, "on_load"):
        await extension.on_load()
    return list(await extension.get_node_list())


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


def _reason(error: BaseException, path: Path, checkout: Checkout | None) -> str:
    """Return why a pack could not be loaded; the sentence goes on from its name."""
    of_comfyui = checkout.why_not(error) if checkout is not None else None
    if of_comfyui is not None:
        return f"wants {of_comfyui}"
    if isinstance(error, WorkflowError):
        return str(error)
    if isinstance(error, SystemExit):
        return "ends the process while it is loaded."
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if not name:
        return f"cannot be loaded ({type(error).__name__}: {error})."
    package = name.partition(".")[0]
    if package in COMFYUI_MODULES:
        return f"wants ComfyUI's module {name!r}: give a checkout with --comfyui DIR."
    if name.startswith(_module_name(path)) or _is_part_of(package, path):
        own = name.removeprefix(_module_name(path)).lstrip(".")
        return f"lacks its own module {own!r}: the copy is not whole, or a step of its installation is missing."
    requirements = path / "requirements.txt"
    how = f"{sys.executable} -m pip install -r {requirements}" if requirements.is_file() else "it is not installed"
    return f"wants the Python package {package!r}: {how}."


def _is_part_of(package: str, path: Path) -> bool:
    """Return whether a package comes from a pack's folder, which some put on sys.path."""
    module = sys.modules.get(package)
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(Path(place).is_relative_to(path) for place in places if place)
