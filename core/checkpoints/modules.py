"""Modules: from a configuration or a folder to an instance of the class it names."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import PiyingError
from ..families.registry import component_specs

DIFFUSERS = ("transformer", "vae")  # kinds whose classes are diffusers', all others are transformers'
POOLING = "add_pooling_layer"  # an argument of BertModel, beside its configuration


def class_name(config: dict[str, Any]) -> str:
    """Return the class a configuration is for; "" where it names none."""
    architectures = config.get("architectures")
    named = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else ""
    )
    return named if isinstance(named, str) else ""


def known(kind: str) -> tuple[str, ...]:
    """Return the classes of one kind of component."""
    return tuple(dict.fromkeys(name for spec in component_specs(kind) for name in spec.classes))


def empty_module(kind: str, config: dict[str, Any], source: str, assumed: str = "") -> torch.nn.Module:
    """Return a module with all its parameters on the meta device and its constant buffers computed.

    Args:
        kind: of a component, such as "transformer" or "text_encoder".
        config: what diffusers or transformers write into config.json.
        source: where the configuration is from, for messages.
        assumed: the class where the configuration names none.

    Raises:
        PiyingError: it is for another class, or its values make no model.
    """
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    name = class_name(config) or assumed
    if name not in known(kind):  # a text encoder's file may be of a larger model, which its config.json names
        types = {key: one for spec in component_specs(kind) for key, one in spec.model_types.items()}
        model_type = config.get("model_type")
        name = types.get(model_type, name) if isinstance(model_type, str) else name
    if name not in known(kind):
        raise PiyingError(
            f"{source}: is {f'a {name}' if name else 'not named'}; as {kind} there can be {', '.join(known(kind))}."
        )
    try:
        with init_empty_weights(include_buffers=False):
            if kind in DIFFUSERS:
                module = getattr(diffusers, name).from_config(config)
            else:
                cls = getattr(transformers, name)
                settings = {key: value for key, value in config.items() if key not in ("quantization_config", POOLING)}
                arguments = {POOLING: config[POOLING]} if POOLING in config else {}
                module = cls(cls.config_class.from_dict(settings), **arguments)
        built: torch.nn.Module = module.eval().requires_grad_(False)
        return built
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PiyingError(f"{source}: its configuration makes no {name} ({reason}). Fetch it again.") from error
