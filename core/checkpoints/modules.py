"""Modules: from a configuration or a folder to an instance of the class it names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import PiyingError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("piying")


# The classes that are loaded here, by kind of component.
DIFFUSERS = {
    "transformer": ("WanVACETransformer3DModel", "HunyuanDiT2DModel"),
    "vae": ("AutoencoderKLWan", "AutoencoderKL"),
}
TRANSFORMERS = {
    "text_encoder": ("UMT5EncoderModel", "T5EncoderModel", "BertModel"),
    "prompt_model": (
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Ernie4_5ForCausalLM",
        "GlmForCausalLM",
        "Glm4ForCausalLM",
    ),
}
POOLING = "add_pooling_layer"  # an argument of BertModel, beside its configuration
MODEL_TYPES = {
    "umt5": "UMT5EncoderModel",
    "t5": "T5EncoderModel",
    "mt5": "T5EncoderModel",
    "bert": "BertModel",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
}
KINDS = (*DIFFUSERS, *TRANSFORMERS)


def class_name(config: dict[str, Any]) -> str:
    """Return the class a configuration is for; "" where it names none."""
    architectures = config.get("architectures")
    named = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else ""
    )
    return named if isinstance(named, str) else ""


def known(kind: str) -> tuple[str, ...]:
    """Return the classes of one kind of component."""
    return DIFFUSERS.get(kind) or TRANSFORMERS[kind]


def empty_module(kind: str, config: dict[str, Any], source: str, assumed: str = "") -> torch.nn.Module:
    """Return a module with all its parameters on the meta device and its constant buffers computed.

    Args:
        kind: one of `KINDS`.
        config: what diffusers or transformers write into config.json.
        source: where the configuration is from, for messages.
        assumed: the class where the configuration names none.

    Raises:
        PiyingError: it is for another class, or its values make no model.
    """
    from accelerate import init_empty_weights

    name = class_name(config) or assumed
    if name not in known(kind):  # a text encoder's file may be of a larger model, which its config.json names
        model_type = config.get("model_type")
        name = MODEL_TYPES.get(model_type, name) if isinstance(model_type, str) else name
    if name not in known(kind):
        raise PiyingError(
            f"{source}: is {f'a {name}' if name else 'not named'}; as {kind} there can be {', '.join(known(kind))}."
        )
    build = _diffusers if kind in DIFFUSERS else _transformers
    try:
        with init_empty_weights(include_buffers=False):
            return build(name, config).eval().requires_grad_(False)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PiyingError(f"{source}: its configuration makes no {name} ({reason}). Fetch it again.") from error


def _diffusers(name: str, config: dict[str, Any]) -> torch.nn.Module:
    import diffusers

    module: torch.nn.Module = getattr(diffusers, name).from_config(config)
    return module


def _transformers(name: str, config: dict[str, Any]) -> torch.nn.Module:
    import transformers

    cls = getattr(transformers, name)
    settings = {key: value for key, value in config.items() if key not in ("quantization_config", POOLING)}
    arguments = {POOLING: config[POOLING]} if POOLING in config else {}
    module: torch.nn.Module = cls(cls.config_class.from_dict(settings), **arguments)
    return module


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
