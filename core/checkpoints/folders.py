"""Diffusers and transformers folders → modules in memory, or one sentence why not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("piying")


@contextmanager
def reading(folder: Path, title: str) -> Iterator[None]:
    """Turn what diffusers, transformers and safetensors raise on a bad folder into a sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PiyingError(
            f"{folder}: cannot be read as a {title} model ({type(error).__name__}: {reason}). "
            "Fetch the folder again, or choose another model."
        ) from error


def load_pipeline(pipeline: type, folder: Path, title: str, dtype: Any, **components: Any) -> Any:
    """Return a diffusers pipeline from a local folder, in host memory.

    Only safetensors files are read and no code from the folder is run.

    Args:
        pipeline: the diffusers pipeline class.
        folder: a folder with a `model_index.json`.
        title: the model's name in messages.
        dtype: one torch dtype, or {component: dtype, "default": dtype}.
        components: components to use in place of the folder's, or None to go without.

    Raises:
        PiyingError: the folder is incomplete, damaged, or another model's.
    """
    with reading(folder, title):
        loaded = pipeline.from_pretrained(  # type: ignore[attr-defined]
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, **components
        )
    loaded.set_progress_bar_config(disable=True)
    _check_complete(loaded, folder, title)
    return loaded


def _check_complete(pipeline: Any, folder: Path, title: str) -> None:
    """Refuse weights that no file holds: libraries fill them with random numbers, or leave them nowhere."""
    for name, component in pipeline.components.items():
        if hasattr(component, "named_parameters"):
            check_tensors(component, folder / name, title)


def check_tensors(module: torch.nn.Module, folder: Path, title: str) -> None:
    """Accept a module all of whose parameters are in the safetensors files of `folder`.

    Raises:
        PiyingError: some are not; the first is named.
    """
    stored = _stored_names(folder)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    read = {tensor.data_ptr() for name, tensor in parameters.items() if _without_prefix(name) & stored}
    missing = [name for name, tensor in parameters.items() if tensor.is_meta or tensor.data_ptr() not in read]
    if missing:
        raise PiyingError(
            f"{folder}: cannot be read as a {title} model ({len(missing)} tensors are not in its files, "
            f"{missing[0]} first). Fetch the folder again, or choose another model."
        )


def _stored_names(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= {spelling for name in list(file.keys()) for spelling in _without_prefix(name)}
    return names


def _without_prefix(name: str) -> set[str]:
    """Return a name with and without its first part, which files of a larger model add ("bert.", "model.")."""
    return {name, name.partition(".")[2] or name}
