"""Model folders of diffusers and transformers: what of a configuration is followed, and their errors as sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import PiyingError, clipped
from ..files.folder import CONFIG, CONFIG_BYTES
from ..files.json_file import read_json
from ..main_memory import is_memory_short

# What diffusers and transformers raise where the values of a configuration make no model.
BAD_VALUES = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    ArithmeticError,
    AssertionError,
    ImportError,
    RuntimeError,
    MemoryError,
)
# Settings with which a folder would choose code: Python files in it, kernels of a hub, weights of another repository.
CODE = re.compile(
    r"auto_map|trust_remote_code|custom_\w+|.*(attn|experts)_implementation\w*|use_kernels|kernel_config"
    r"|use_pretrained_backbone"
    # Nor what it says of the form of outputs, which the pipelines set themselves, and of heads that are not made.
    r"|return_dict|output_(attentions|hidden_states)|classifier_dropout"
)
# Settings that count modules, and how many there may be without as many tensors: defaults are written down too.
COUNT = re.compile(r".*(layers|blocks|depths?|per_block)")
MANY = 1024


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings in a folder's config.json that are followed.

    Raises:
        PiyingError: the file cannot be read or holds no object.
    """
    return without_code(read_json(folder / CONFIG, limit=CONFIG_BYTES))


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, those of parts included, without what names code."""
    return {
        name: without_code(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if not (isinstance(name, str) and CODE.fullmatch(name))
    }


def check_counts(config: Mapping[str, Any], tensors: int, source: str) -> None:
    """Accept a configuration whose modules the tensors can fill: making 10⁹ of them takes all memory.

    Args:
        config: of a component, or of a part of it.
        tensors: how many its files hold.
        source: where it is from, for messages.

    Raises:
        PiyingError: it counts more modules than there are tensors.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_counts(value, tensors, source)
        count = len(value) if isinstance(value, list) else value
        if COUNT.fullmatch(str(name)) and type(count) is int and not -1 <= count <= max(tensors, MANY):
            raise PiyingError(
                f"{source}: its configuration says {name} is {count}, and its files hold {tensors} tensors. "
                "Fetch it again."
            )


def class_name(config: Mapping[str, Any]) -> str:
    """Return the class a configuration is for; "" where it names none."""
    architectures = config.get("architectures")
    named = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else ""
    )
    return named if isinstance(named, str) else ""


@contextmanager
def reading(folder: Path | str, title: str) -> Iterator[None]:
    """Turn what diffusers, transformers and safetensors raise on a bad folder into a sentence."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (*BAD_VALUES, OSError, SafetensorError, StrictDataclassError) as error:
        if is_memory_short(error):
            raise
        reason = clipped(" ".join(str(error).split()), 300)
        raise PiyingError(
            f"{folder}: cannot be read as a {title} model ({type(error).__name__}: {reason}). "
            "Fetch the folder again, or choose another model."
        ) from error
