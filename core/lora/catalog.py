"""LoRA files in the models folders: listed, chosen by name, and the settings they were made for.

What reads headers is imported where it is used: the node is declared at ComfyUI's start, which none of it may slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..catalog.experts import AUTO_EXPERT, EXPERTS, HIGH, LOW, noise_of
from ..catalog.selection import ChosenLora, ModelHandle, choose_model, is_imagined
from ..download.manifest import ListedModel, listed_models
from ..errors import PiyingError
from ..families.base import LORA_COMPONENT, SECOND_EXPERT, ModelFamily
from ..files.file_state import cached_by_state
from ..host.base import Host

if TYPE_CHECKING:
    from ..catalog.discovery import SingleFile
    from ..catalog.installed_model import InstalledModel
    from .file import LoraShape, Summary


NONE = "none"
FOLDER = "loras"
KIND = "lora"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that is here, and how strongly it is to be used.

    Attributes:
        shape: what it holds.
        left_out: what of it is not applied and why, as a part of a sentence; "" where all is.
        settings: the `steps`, `cfg` and `shift` it was made for; empty where neither the file nor a table says.
        sampler: the one it was published with, "" for that of its model.
        expert: see `ChosenLora`.
    """

    name: str
    path: Path
    strength: float
    shape: LoraShape
    left_out: str = ""
    settings: Mapping[str, float] = field(default_factory=dict, hash=False)
    sampler: str = ""
    expert: str = ""

    @property
    def identity(self) -> str:
        """Return a text that changes when the file or the strength does."""
        from .file import PEFT_CONFIG

        beside = self.path.with_name(PEFT_CONFIG)  # where peft has alpha
        states = [path.stat() for path in (self.path, beside) if path.is_file()]
        return f"{self.path} {[(one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in states]} {self.strength}"


def _found(host: Host) -> list[SingleFile]:
    from ..catalog.discovery import once_in_pass, single_files

    def find() -> list[SingleFile]:
        files = single_files(host, (FOLDER, ""))
        return [replace(one, name=one.name.removeprefix(f"{FOLDER}/")) for one in files if one.found.is_lora]

    return once_in_pass(host, "loras", find)


def record_of(files: tuple[LoraFile, ...]) -> dict[str, list[dict[str, object]]]:
    """Return what a run's record says of its LoRAs; nothing where there are none."""
    said = [
        {
            "name": one.name,
            "strength": one.strength,
            **({"expert": one.expert} if one.expert else {}),
            **({"left_out": one.left_out} if one.left_out else {}),
        }
        for one in files
    ]
    return {"loras": said} if said else {}


def lora_choices(host: Host, family: ModelFamily | None = None) -> list[str]:
    """Return what the `lora` widget offers: `none` first, then the files by their places below models/loras.

    Args:
        family: of the model they are put on; None for files of all families.
    """
    return _choices(_usable(host, family))


def _choices(usable: list[SingleFile]) -> list[str]:
    return [NONE, *dict.fromkeys(one.name for one in usable)]


def _usable(host: Host, family: ModelFamily | None) -> list[SingleFile]:
    from ..catalog.discovery import once_in_pass

    def find() -> list[SingleFile]:
        return [one for one in _found(host) if one.found.readable and not _header_of(one.path, family).reason]

    return once_in_pass(host, ("usable loras", _class_of(family)), find)


def lora_choices_and_details(host: Host, family: ModelFamily) -> tuple[list[str], list[str]]:
    """Return what `lora_choices` does, and a line for each LoRA, from one look at the models folders.

    The lines say its name, what it is for, and the settings it was made for.
    """
    usable, lines = _usable(host, family), []
    for one in usable:
        listed = _listed_by_name(one.path.name)
        advice = "" if listed is None else f"; made for {in_words(listed.settings)}"
        lines.append(f"{one.name}: {one.found.what.removeprefix('a ')}{advice}")
    return _choices(usable), lines


def _header_of(path: Path, family: ModelFamily | None) -> Summary:
    return _header_once(path, _class_of(family))


def _class_of(family: ModelFamily | None) -> str | None:
    classes = () if family is None else (spec.classes for spec in family.components if spec.name == LORA_COMPONENT)
    return next((names[0] for names in classes), None)


@cached_by_state
def _header_once(path: Path, class_name: str | None) -> Summary:
    from ..files.open import read_header
    from .file import judge

    return judge(read_header(path).entries, class_name).summary


@cached_by_state
def _numbers_once(path: Path, class_name: str | None) -> str:
    """Return why the numbers of a LoRA cannot be used, "" where they can."""
    from .file import check_numbers

    try:
        check_numbers(path, class_name)
    except PiyingError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def in_words(settings: Mapping[str, float]) -> str:
    """Return settings for people: "4 steps, cfg 1, shift 5"."""
    forms = {"steps": "{:g} steps", "cfg": "cfg {:g}", "shift": "shift {:g}", "strength": "strength {:g}"}
    return ", ".join(form.format(settings[name]) for name, form in forms.items() if name in settings)


def check_lora(name: str, host: Host, family: ModelFamily | None = None) -> None:
    """Accept a name from `lora_choices`, spelled with either slash, of a file whose numbers are finite.

    Raises:
        PiyingError: there is no such LoRA; a file of another kind says what it is.
    """
    if _plain(name) != NONE:
        _chosen(_plain(name), _found(host), host, family)


def _chosen(name: str, installed: list[SingleFile], host: Host, family: ModelFamily | None) -> Path:
    """Return the file of a LoRA; see `check_lora`."""
    from ..catalog.discovery import what_is

    path = next((one.path for one in installed if one.name == name and one.found.readable), None)
    if path is None:
        what = what_is(f"{FOLDER}/{name}", host) or what_is(name, host)
    else:
        what = _header_of(path, family).reason or _numbers_once(path, _class_of(family))
        if not what:
            return path
    others = ", ".join(one for one in lora_choices(host, family) if one != name)
    fault = f"cannot be used: {what.rstrip('.')}" if what else "is not installed"
    raise PiyingError(
        f"lora {name!r} {fault}. Here are: {others}. Choose one of them, or put the file under models/{FOLDER}."
    )


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix(f"{FOLDER}/")


def loras_on(part: str, loras: Sequence[LoraFile], *, has_two: bool) -> tuple[LoraFile, ...]:
    """Return the LoRAs that go on a component of a model.

    Args:
        has_two: whether the model has two experts; those for either of them go on the one transformer of others.
    """
    if not has_two:
        return tuple(loras) if part == LORA_COMPONENT else ()
    expert = {LORA_COMPONENT: HIGH, SECOND_EXPERT: LOW}.get(part)
    return tuple(one for one in loras if expert is not None and one.expert in ("", expert))


def lora_notes(loras: tuple[LoraFile, ...], *, has_two: bool) -> list[str]:
    """Return a sentence on each LoRA that says which expert it is on; none where there is nothing to say."""
    if has_two:
        return [
            f"LoRA {one.name} is on {f'the {one.expert}-noise expert' if one.expert else 'both experts'}, at "
            f"strength {one.strength:g}."
            for one in loras
        ]
    return [
        f"LoRA {one.name} is meant for the {one.expert}-noise expert of two; this model is one transformer, and it is "
        "on that."
        for one in loras
        if one.expert
    ]


def with_lora(
    handle: ModelHandle, name: str, strength: float, host: Host, *, expert: str = AUTO_EXPERT
) -> ModelHandle:
    """Return a handle with one LoRA more; the same handle for `none` and for a strength of 0.

    Args:
        expert: one of `experts.EXPERTS`; where it is auto the file's name says which.

    Raises:
        PiyingError: there is no such LoRA, it was made for another family or for a model of another size, or the
            strength is no number.
    """
    if expert not in EXPERTS:
        raise PiyingError(f"expert is {expert!r}. Choose one of: {', '.join(EXPERTS)}.")
    plain = _plain(name)
    path = None if plain == NONE else _chosen(plain, _found(host), host, handle.family)
    if not isfinite(strength):
        raise PiyingError(f"strength of lora {name!r} is {strength}. Give a number; 1 is what it was made for.")
    if path is None or strength == 0:
        return handle
    if not is_imagined(handle, host):
        _left_out_of(path, plain, choose_model(handle, host, quiet=True))
    has_experts = any(spec.name == SECOND_EXPERT for spec in handle.family.components)
    meant = EXPERTS[expert] if expert != AUTO_EXPERT else noise_of(plain) if has_experts else ""
    return replace(handle, loras=(*handle.loras, ChosenLora(plain, strength, meant)))


def _left_out_of(path: Path, name: str, model: InstalledModel) -> str:
    """Return what of a LoRA is not applied to a model and why, as far as headers tell; "" where all is.

    Raises:
        PiyingError: it is of another size, or a file of the model is damaged.
    """
    from ..checkpoints.components import find_component
    from ..checkpoints.fitness import described_tensors
    from ..files.open import read_header
    from .file import judge, unfitting

    component = find_component(LORA_COMPONENT, model.place(LORA_COMPONENT))
    described = described_tensors(component.class_name, component.config)
    if described is None:
        return _header_once(path, component.class_name).left_out  # nothing tells the tensors of such a class
    sizes = {**described.needed, **described.optional}
    present = sizes.keys() | {name.rpartition(".")[0] for name in sizes}
    verdict = judge(read_header(path).entries, component.class_name, present)
    if verdict.reason:
        raise PiyingError(f"lora {name!r} cannot be used with model {model.name}: {verdict.reason}")
    try:
        verdict.placement.left_out.update(unfitting(verdict, sizes.get))
    except ValueError as error:
        raise other_width(name, verdict.shape, model.name, str(error)) from error
    return verdict.left_out


def other_width(name: str, shape: LoraShape, model: str, why: str) -> PiyingError:
    """Return what to raise where a LoRA is of another size than a model."""
    return PiyingError(
        f"lora {name!r} is {shape.title}; it does not fit model {model} ({why}). "
        "Choose a LoRA made for this model, or another model."
    )


def lora_files(handle: ModelHandle, host: Host, model: InstalledModel | None = None) -> tuple[LoraFile, ...]:
    """Return the LoRAs of a handle, in the order in which they were added.

    Args:
        model: the one that they are put on; what is left out of a LoRA is told for it. None tells it for the class.

    Raises:
        PiyingError: one is not there any more, or is damaged; with `model`, one is of another size.
    """
    from ..catalog.discovery import once_in_pass

    installed = lru_cache(lambda: _found(host))

    def look(chosen: ChosenLora) -> LoraFile:
        path = _chosen(chosen.name, installed(), host, handle.family)
        header = _header_of(path, handle.family)
        left_out = header.left_out if model is None else _left_out_of(path, chosen.name, model)
        listed = listed_lora(path)
        return LoraFile(
            chosen.name,
            path,
            chosen.strength,
            header.shape,
            left_out,
            settings={} if listed is None else listed.settings,
            sampler="" if listed is None else listed.sampler,
            expert=chosen.expert,
        )

    place = None if model is None else model.place(LORA_COMPONENT)
    # Once in a pass: each node of a chain of LoRAs asks for all those before it.
    return tuple(
        once_in_pass(host, ("lora", chosen, handle.family.key, place), lambda: look(chosen))  # noqa: B023
        for chosen in handle.loras
    )


def made_for(files: tuple[LoraFile, ...]) -> Mapping[str, float]:
    """Return the `steps`, `cfg` and `shift` of the last LoRA that was made for any; empty where none was."""
    return next((one.settings for one in reversed(files) if one.settings), {})


def listed_lora(path: Path) -> ListedModel | None:
    """Return the manifest's entry of a distilled LoRA, which is known by its name, or by its size and sha256."""
    return _listed_by_name(path.name) or _listed_by_content(path)


def _distilled() -> list[ListedModel]:
    return [model for model in listed_models() if model.kind == KIND and model.settings]


def _listed_by_name(name: str) -> ListedModel | None:
    return next((model for model in _distilled() if PurePosixPath(model.files[0].path).name == name), None)


@cached_by_state
def _listed_by_content(path: Path) -> ListedModel | None:
    size = path.stat().st_size
    same = [model for model in _distilled() if model.files[0].bytes == size]
    if not same:
        return None
    from ..download.checksums import sha256_of

    digest = sha256_of(path)
    return next((model for model in same if model.files[0].sha256 == digest), None)
