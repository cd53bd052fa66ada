"""The sizes of the model a handle stands for, installed or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import PiyingError
from ..host import Host
from ..memory.components import Component
from .choose import ModelHandle, choose_model, model_choices
from .lora_sizes import with_loras
from .loras import lora_files
from .sizes import found_components, listed_components


def wanted_components(
    handle: ModelHandle,
    host: Host,
    block_lists: Mapping[str, Collection[str]],
    keep: Mapping[str, Collection[str]],
) -> tuple[str, Mapping[str, Component]]:
    """Return the model's name and its components.

    Where only plans are made, a model that is not installed is taken from the manifest.

    Args:
        block_lists, keep: see `found_components`.

    Raises:
        PiyingError: the model is neither installed nor listed with its sizes, its files are damaged, or a LoRA
            is not installed or was made for another model.
    """
    if host.memory_rules().imagined and handle.model not in model_choices(handle.family, host):
        listed = listed_components(handle.model)
        if not listed:
            raise PiyingError(
                f"model {handle.model!r} is not installed, and the manifest does not say what its parts weigh. "
                f"Install it first: `python install.py --models {handle.model}`."
            )
        return handle.model, with_loras(listed, lora_files(handle, host))
    found = choose_model(handle, host)
    components = found_components(found, block_lists, keep)
    return found.name, with_loras(components, lora_files(handle, host))
