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
    """Refuse weights that were left out of the files: they would be random, or nowhere."""
    for name, component in pipeline.components.items():
        missing = [key for key, tensor in _tensors(component) if tensor.device.type == "meta"]
        if missing:
            raise PiyingError(
                f"{folder}: cannot be read as a {title} model ({name} lacks {len(missing)} tensors, "
                f"{missing[0]} first). Fetch the folder again, or choose another model."
            )


def _tensors(component: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if hasattr(component, "named_parameters"):
        yield from component.named_parameters()
