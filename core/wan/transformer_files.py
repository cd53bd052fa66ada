"""Transformers in single files: whole ones, VACE modules on text-to-video models, and pairs of experts of either."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ..catalog.experts import HIGH, lone_experts, noise_of, pair_name, paired
from ..families.base import LORA_COMPONENT, SECOND_EXPERT
from .component_files import text_width_problem
from .layouts import IMAGE_TO_VIDEO, TEXT_OR_FIRST, TEXT_TO_VIDEO, VACE, VACE_MODULE

if TYPE_CHECKING:
    from pathlib import Path

    from ..catalog.discovery import FileCatalog, SingleFile
    from ..catalog.installed_model import InstalledModel
    from ..families.base import ModelFamily


class Transformers(NamedTuple):
    """A model's transformer, or its two experts.

    Attributes:
        name: it is offered under.
        first: the files it is made of, or the expert of high noise.
        second: those of the expert of low noise; empty where there is one transformer.
    """

    name: str
    first: tuple[SingleFile, ...]
    second: tuple[SingleFile, ...] = ()


def _by_title(files: FileCatalog) -> Mapping[str, list[SingleFile]]:
    found: defaultdict[str, list[SingleFile]] = defaultdict(list)
    for one in files.all:
        for part in one.found.parts if one.found.readable else ():
            found[part.title].append(one)
    return found


def base_transformers(files: FileCatalog) -> Iterator[Transformers]:
    """Yield the transformers without VACE, and the pairs of experts, each under the name it is offered by."""
    found = _by_title(files)
    for title in (TEXT_TO_VIDEO, IMAGE_TO_VIDEO, TEXT_OR_FIRST):
        pairs, rest = _pairs(found[title])
        for high, low in pairs:
            if _sees(high, files) == _sees(low, files):
                yield Transformers(pair_name(high.name, low.name), (high,), (low,))
            else:
                rest += [high, low]
        yield from (Transformers(one.name, (one,)) for one in rest)


def _sees(transformer: SingleFile, files: FileCatalog) -> bool:
    """Return whether a transformer reads what an image encoder makes of its frames, as those of Wan2.1 do."""
    return any(".image_embedder." in name for name in files.shapes(transformer.path, LORA_COMPONENT))


def transformers(files: FileCatalog) -> Iterator[Transformers]:
    """Yield the transformers with VACE, and the pairs of experts, each under the name it is offered by.

    A VACE module goes with each text-to-video model of its width, and a pair of modules with each pair of such. Where
    there is one alone, the model has the module's name.
    """
    found = _by_title(files)
    whole, rest = _pairs(found[VACE])
    yield from (Transformers(pair_name(high.name, low.name), (high,), (low,)) for high, low in whole)
    yield from (Transformers(one.name, (one,)) for one in rest)
    modules, single_modules = _pairs(found[VACE_MODULE])
    bases, single_bases = _pairs(found[TEXT_TO_VIDEO])
    for high, low in modules:
        fitting = [pair for pair in bases if pair[0].width == high.width]
        name = pair_name(high.name, low.name)
        for base in fitting:
            whose = name if len(fitting) == 1 else f"{name} + {pair_name(base[0].name, base[1].name)}"
            yield Transformers(whose, (base[0], high), (base[1], low))
        single_modules += [] if fitting else [high, low]
    for module in single_modules:
        yield from _on_bases(module, bases, single_bases)


def _on_bases(
    module: SingleFile, pairs: Sequence[tuple[SingleFile, SingleFile]], singles: Sequence[SingleFile]
) -> Iterator[Transformers]:
    """Yield a VACE module on each text-to-video model of its width.

    One that is for no expert in particular, as those of Wan2.1 are, goes on both experts of a pair, and on the one of
    low noise alone, which does all steps of a video by itself.
    """
    noise = noise_of(module.name)
    offered: list[Transformers] = []
    for high, low in (pair for pair in pairs if pair[0].width == module.width):
        name = f"{module.name} + {pair_name(high.name, low.name)}"
        if not noise:
            offered.append(Transformers(name, (high, module), (low, module)))
        own = high if noise == HIGH else low
        offered.append(Transformers(f"{module.name} + {own.name}", (own, module)))
    offered += [
        Transformers(f"{module.name} + {one.name}", (one, module)) for one in singles if one.width == module.width
    ]
    yield from offered if len(offered) > 1 else [one._replace(name=module.name) for one in offered]


def _pairs(files: Sequence[SingleFile]) -> tuple[list[tuple[SingleFile, SingleFile]], list[SingleFile]]:
    """Return the pairs of experts of one width, and the other files."""
    pairs, rest = paired(files)
    apart = [pair for pair in pairs if pair[0].width != pair[1].width]
    return [pair for pair in pairs if pair not in apart], [*rest, *(one for pair in apart for one in pair)]


def why_not_alone(made_of: Transformers, files: FileCatalog) -> str:
    """Return what is to be said of one of two experts that is here without the other; "" for any other model."""
    base, module = made_of.first[0], made_of.first[-1]
    # A module of Wan2.1 goes on the expert of low noise by intent.
    if not noise_of(module.name) and noise_of(base.name) != HIGH:
        return ""
    lacking = lone_experts(made_of.first, files.all) or ["a text-to-video model for each expert"]
    return (
        f"{made_of.name} is one of two experts, and takes all steps, which it was not trained for: not here: "
        f"{', '.join(lacking)}. Put the other one beside it."
    )


def single_file_model(
    family: ModelFamily, made_of: Transformers, beside: Mapping[str, tuple[Path, ...]], files: FileCatalog
) -> InstalledModel:
    """Return the model of a transformer, or of two experts.

    Args:
        beside: {component or tokenizer: where it is}, of the others.
    """
    first, second = made_of.first, made_of.second
    parts = {**beside, LORA_COMPONENT: tuple(one.path for one in first)}
    if not second:
        found = files.model(family, first, parts, made_of.name)
        found = replace(found, caution=why_not_alone(made_of, files))
    else:
        found = files.model(family, first, {**parts, SECOND_EXPERT: tuple(one.path for one in second)}, made_of.name)
        other = files.model(family, second, {})
        found = replace(found, details=f"two experts: {found.details}; and {other.details}")
    problems = (text_width_problem(files, [one.path for one in expert], parts) for expert in (first, second) if expert)
    return replace(found, problem=found.problem or next(filter(None, problems), ""))


def half_of_a_pair(file: str, made_of: Iterable[Transformers]) -> str | None:
    """Return that a file is one of two experts, of which the pair is offered; None where it is not."""
    for one in made_of:
        if one.second and any(part.name == file for part in (*one.first, *one.second)):
            return f"it is one of two experts of one model: choose {one.name}"
    return None
