"""From the `model` widget to the model that will run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from ..errors import PiyingError
from ..families.base import ModelFamily
from ..files.scan import name_left_out, named_together
from ..host.base import Host
from ..parallel.cards import Asked
from .discovery import installed_models, why_not
from .installed_model import AUTO, BUILT_IN, InstalledModel, built_in, has_built_in

log = logging.getLogger("piying")

MAX_DAMAGED = 10  # models that cannot be used, told one by one


@dataclass(frozen=True)
class ChosenLora:
    """A LoRA to put on a model: its name from `core.lora.catalog.lora_choices`, and how strongly.

    Attributes:
        expert: of a model of two the one it goes on, `experts.HIGH` or `experts.LOW`; "" for both.
    """

    name: str
    strength: float
    expert: str = ""


@dataclass(frozen=True)
class ModelHandle:
    """What to load and how; a few hundred bytes that travel along the graph's wires.

    Attributes:
        family: which kind of model.
        model: the `model` widget: `auto`, `built-in`, or a name from `model_choices`.
        precision: the `precision` widget, one of `core.planner.machine.PRECISIONS`.
        memory: the `memory` widget, one of `core.planner.machine.MEMORY_CHOICES`.
        loras: what is put on it, in the order in which it was added.
        compile_step: have `torch.compile` make code for writing one token; language models alone.
        decoder: a small decoder in place of that of the VAE, by its file's name; "" for the VAE's own. Families that
            know of one alone.
        cards: how many cards share a run, and `parallel` how: one of `core.parallel.cards.ASKED`.
        preview_decoder: such a decoder for the previews of the steps; "" for the linear map of latents to colours.
        second_device: a second card for its text encoders and its VAE; "" for what the host says.
    """

    family: ModelFamily
    model: str = AUTO
    precision: str = "auto"
    memory: str = "auto"
    loras: tuple[ChosenLora, ...] = ()
    compile_step: bool = False
    decoder: str = ""
    # Not in its text, by which windows of long videos are known: frames depend on them by rounding alone, or not.
    preview_decoder: str = field(default="", repr=False)
    cards: int = field(default=1, repr=False)
    parallel: Asked = field(default="auto", repr=False)
    second_device: str = field(default="", repr=False)


def model_choices(family: ModelFamily, host: Host) -> list[str]:
    """Return what the `model` widget offers: `auto` first, then what is here and can run, then `built-in`."""
    return _choices(family, installed_models(family, host))


def _choices(family: ModelFamily, installed: list[InstalledModel]) -> list[str]:
    toy = [BUILT_IN] if has_built_in(family.key) else []
    return [AUTO, *(found.name for found in installed if found.can_run), *toy]


def model_choices_and_details(family: ModelFamily, host: Host) -> tuple[list[str], list[str]]:
    """Return what `model_choices` does, and lines on models, from one look at the models folders.

    The lines say what each single file is and what it lacks, and why a folder cannot be used.
    """
    installed = installed_models(family, host)
    lines = []
    for found in installed:
        lacks = f"; not here: {_missing(family, found)}" if found.lacking else ""
        lines += [f"{found.name}: {found.details}{lacks}"] if found.details else []
        lines += [found.caution] if found.caution and found.can_run else []
    damaged = [found for found in installed if found.problem]
    lines += [f"{found.name} cannot be used: {found.problem}" for found in damaged[:MAX_DAMAGED]]
    lines += [f"{len(damaged) - MAX_DAMAGED} more cannot be used"] if len(damaged) > MAX_DAMAGED else []
    return _choices(family, installed), lines


def _missing(family: ModelFamily, found: InstalledModel) -> str:
    return ", ".join(family.missing[part] for part in found.lacking)


def check_model(family: ModelFamily, model: str, host: Host) -> None:
    """Accept a name from `model_choices`, spelled with either slash; to plan with, also an id of the manifest.

    Raises:
        PiyingError: no such model is installed, or it cannot run.
    """
    installed = installed_models(family, host)
    _check(family, model, host, installed)
    name = model.replace("\\", "/")
    if name not in (AUTO, BUILT_IN):
        chosen = _named(installed, name)
        if chosen is not None:
            _check_words(chosen)


def _check_words(chosen: InstalledModel) -> None:
    """Accept the tokenizers inside the GGUF files of a model: of those in lists the lengths alone are looked at.

    Raises:
        PiyingError: the words of one make no tokenizer.
    """
    from ..checkpoints.gguf_tokenizer import check_words
    from ..files.open import file_format

    for part, (place, *_) in chosen.parts.items():
        if part.startswith("tokenizer") and place.is_file() and file_format(place) == "gguf":
            check_words(place)


def _check(family: ModelFamily, model: str, host: Host, installed: list[InstalledModel]) -> None:
    from ..download.manifest import listed_models

    choices = _choices(family, installed)
    name = model.replace("\\", "/")
    listed = any((entry.id, entry.family, entry.kind) == (name, family.key, "model") for entry in listed_models())
    if name not in choices and listed and host.memory_rules().imagined:
        return
    if name not in choices and listed:
        raise PiyingError(
            f"model {model!r} is not installed. Fetch it with `python install.py --models {name}`, "
            f"or choose one of these: {', '.join(choices)}."
        )
    if name not in choices and _meant(installed, name):
        return
    lacking = next((found for found in installed if found.name == name and found.lacking), None)
    if lacking is not None:
        raise PiyingError(
            f"model {name!r} ({lacking.details}) cannot run alone; not here: {_missing(family, lacking)}. "
            f"{family.remedy}, or choose another model."
        )
    if name not in choices:
        known = next((found.problem for found in installed if found.name == name and found.problem), None)
        reason = known or why_not(name, family, host)
        state = f"cannot be used: {reason.removesuffix('.')}" if reason else "is not installed"
        raise PiyingError(
            f"model {model!r} {state}. "
            f"Here are: {', '.join(choices)}. "
            f"Choose one of them, or put the model's folder under models/{family.folder}."
        )


def _named(installed: list[InstalledModel], name: str) -> InstalledModel | None:
    """Return the model of that name, or the one that it stands for."""
    return next((found for found in installed if found.name == name), None) or _meant(installed, name)


def _meant(installed: list[InstalledModel], name: str) -> InstalledModel | None:
    """Return the model that a name stands for that is none.

    That is a folder with one model in it; a file of several pairs, since workflows were saved when it was of one; or
    the last part of one model's name, since models lie in other folders where a workflow comes from.
    """
    inside = [found for found in installed if found.can_run and found.name.rpartition("/")[0] == name]
    if len(inside) == 1:
        return inside[0]
    pairs = [found for found in installed if found.can_run and found.name.startswith(f"{name} + ")]
    if len(pairs) > 1:
        log.info("model %s goes with %d others here: using %s.", name, len(pairs), pairs[0].name)
    if pairs:
        return pairs[0]
    elsewhere = [found for found in installed if found.can_run and found.name.endswith(f"/{name}")]
    if len(elsewhere) != 1:
        return None
    log.info("model %s is not here under this name: using %s.", name, elsewhere[0].name)
    return elsewhere[0]


def is_imagined(handle: ModelHandle, host: Host) -> bool:
    """Return whether plans are made for a model that is not here, of which the manifest alone tells the sizes."""
    return host.memory_rules().imagined and handle.model not in model_choices(handle.family, host)


def choose_model(handle: ModelHandle, host: Host, *, quiet: bool = False) -> InstalledModel:
    """Return the model a handle stands for.

    `auto` takes the largest installed model whose weights fit the memory of the device, and the
    smallest where none does; without any, the built-in one, and says so in the log.

    Args:
        handle: from a loader node.
        host: where models are.
        quiet: whether the built-in one is taken without a word: what loads the model says it.

    Raises:
        PiyingError: the handle names a model that is not installed or cannot be used; or it is auto, and all that are
            installed cannot be used, or none is and the family has no built-in one.
    """
    family = handle.family
    installed = installed_models(family, host)
    _check(family, handle.model, host, installed)
    name = handle.model.replace("\\", "/")
    if name == BUILT_IN:
        return built_in(family.key)
    if name != AUTO:
        chosen = _named(installed, name)
        assert chosen is not None  # `_check` has found it
        return chosen
    damaged = [found for found in installed if found.problem]
    complete = [found for found in installed if found.can_run]
    complete = [found for found in complete if not found.caution] or complete
    if complete:
        with named_together():
            for found in damaged:
                name_left_out(found.path, found.problem.removeprefix(f"{found.path}: "))
        if len(complete) == 1:
            return complete[0]
        from ..planner.machine import memory_bytes

        limit = memory_bytes(host.device())
        fitting = [found for found in complete if found.size <= limit]
        return max(fitting, key=_size) if fitting else min(complete, key=_size)
    if damaged:
        # A toy in the place of the model that its owner expects would not say what is wrong.
        raise PiyingError(max(damaged, key=_size).problem)
    from ..download.manifest import first_of

    advised = first_of(family.key)
    fetching = f"`python install.py --models {advised.id}`; it fetches {advised.files[0].sources['huggingface'].repo}."
    if not has_built_in(family.key):
        parts = {part for found in installed for part in found.lacking}
        missing = ", ".join(family.missing[part] for part in sorted(parts))
        lacking = f" What is here cannot run alone; not here: {missing}." if missing else ""
        raise PiyingError(
            f"model is auto, and no {family.title} model is installed.{lacking} Fetch one with {fetching}"
        )
    if not quiet:
        log.warning(
            "No %s model is installed: using the built-in toy model. For a real one run %s", family.title, fetching
        )
    return built_in(family.key)


def _size(model: InstalledModel) -> int:
    return model.size
