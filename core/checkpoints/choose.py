"""From the `model` widget to the model that will run."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ..errors import PiyingError
from ..host import Host
from .found import AUTO, BUILT_IN, FoundModel, built_in, find_models, why_not
from .manifest import first_of

log = logging.getLogger("piying")


@dataclass(frozen=True)
class Family:
    """A family of models: its key in folders and manifest, its title, and where its files go."""

    key: str
    title: str
    folder: str


WAN_VACE = Family("wan_vace", "Wan VACE", "diffusers")
HUNYUAN_DIT = Family("hunyuan_dit", "Hunyuan-DiT", "diffusers")
PROMPT = Family("prompt", "prompt", "LLM")


@dataclass(frozen=True)
class ModelHandle:
    """What to load and how; a few hundred bytes that travel along the graph's wires.

    Attributes:
        family: which kind of model.
        model: the `model` widget: `auto`, `built-in`, or a name from `model_choices`.
        precision: the `precision` widget, one of `core.memory.devices.PRECISIONS`.
    """

    family: Family
    model: str = AUTO
    precision: str = "auto"


def model_choices(family: Family, host: Host) -> list[str]:
    """Return what the `model` widget offers: `auto` first, then what is installed, then `built-in`."""
    return [AUTO, *(found.name for found in find_models(family.key, host)), BUILT_IN]


def check_model(family: Family, model: str, host: Host) -> None:
    """Accept a name from `model_choices`, spelled with either slash.

    Raises:
        PiyingError: no such model is installed.
    """
    choices = model_choices(family, host)
    name = model.replace("\\", "/")
    if name not in choices:
        reason = why_not(name, family.key, host)
        raise PiyingError(
            f"model {model!r} {f'cannot be used: {reason}' if reason else 'is not installed'}. "
            f"Here are: {', '.join(choices)}. "
            f"Choose one of them, or put the model's folder under models/{family.folder}."
        )


def choose_model(handle: ModelHandle, host: Host) -> FoundModel:
    """Return the model a handle stands for.

    `auto` takes the largest installed model whose weights fit the memory of the device, and the
    smallest where none does; without any, the built-in one, and says so.

    Raises:
        PiyingError: the handle names a model that is not installed.
    """
    check_model(handle.family, handle.model, host)
    name = handle.model.replace("\\", "/")
    installed = find_models(handle.family.key, host)
    if name == BUILT_IN:
        return built_in(handle.family.key)
    if name != AUTO:
        return next(found for found in installed if found.name == name)
    return _best(installed, host) if installed else _fall_back(handle.family)


def _best(installed: list[FoundModel], host: Host) -> FoundModel:
    from ..memory.devices import memory_bytes

    limit = memory_bytes(host.device())
    fitting = [found for found in installed if found.size <= limit]
    if fitting:
        return max(fitting, key=lambda found: found.size)
    return min(installed, key=lambda found: found.size)


def _fall_back(family: Family) -> FoundModel:
    advised = first_of(family.key)
    log.warning(
        "No %s model is installed: using the built-in toy model. For a real one put the files of "
        "https://huggingface.co/%s into models/%s.",
        family.title,
        advised.sources["huggingface"]["repo"],
        advised.folder,
    )
    return built_in(family.key)
