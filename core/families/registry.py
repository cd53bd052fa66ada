"""The registry of model families: the one place that names them all."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ..controls.family import DEPTH, DETECTOR, POSE, SEGMENTATION
from ..hunyuan_dit.family import HUNYUAN_DIT
from ..prompting.family import PROMPT
from ..wan.family import WAN_VACE
from ..wan_video.family import WAN_VIDEO
from ..z_image.family import Z_IMAGE
from .base import ComponentSpec, ModelFamily

if TYPE_CHECKING:
    from ..checkpoints.layouts.base import Description, Layout

FAMILIES: tuple[ModelFamily, ...] = (
    WAN_VACE,
    HUNYUAN_DIT,
    PROMPT,
    Z_IMAGE,
    WAN_VIDEO,
    DEPTH,
    SEGMENTATION,
    POSE,
    DETECTOR,
)


def family_named(key: str) -> ModelFamily:
    """Return the family with that key.

    Raises:
        KeyError: there is none.
    """
    return next((family for family in FAMILIES if family.key == key), None) or _unknown(key)


def _unknown(key: str) -> ModelFamily:
    raise KeyError(f"{key!r} is no family of models; there are {', '.join(family.key for family in FAMILIES)}.")


def planned_families() -> list[ModelFamily]:
    """Return the families whose models go to a sampler, and have memory plans."""
    return [family for family in FAMILIES if family.socket]


@cache
def layouts() -> tuple[Layout, ...]:
    """Return the layouts in which components lie in files; where several match, the first one counts."""
    from ..checkpoints.layouts import SHARED_LAYOUTS

    own = (replace(layout, family=family.key) for family in FAMILIES for layout in family.layouts())
    return (*own, *SHARED_LAYOUTS)


@cache
def component_specs(kind: str) -> tuple[ComponentSpec, ...]:
    """Return what all families say of a kind of component, such as "text_encoder"."""
    return tuple(spec for family in FAMILIES for spec in family.components if kind in (spec.kind, spec.name))


@cache
def description(class_name: str) -> Description | None:
    """Return what says which tensors a class has; None where nothing does."""
    found = (family.descriptions().get(class_name) for family in FAMILIES)
    return next((one for one in found if one is not None), None)


@cache
def model_types(class_name: str) -> tuple[str, ...]:
    """Return what transformers calls the models of a class that a folder may name; none where nothing says so."""
    found = (family.model_types.items() for family in FAMILIES)
    return tuple(kind for kinds in found for kind, name in kinds if name == class_name)


@cache
def layout_kinds(component: str) -> frozenset[str]:
    """Return the kinds of layouts whose files may hold a component, by its name or its kind."""
    return frozenset(spec.layout_kind or spec.kind for spec in component_specs(component))


@cache
def component_names() -> tuple[str, ...]:
    """Return the names of all components, such as "transformer" and "text_encoder_2"."""
    return tuple(dict.fromkeys(spec.name for family in FAMILIES for spec in family.components))


def lora_model(width: int) -> str:
    """Return the model that a LoRA for transformers of this width was made for; "" where none is known."""
    return next((family.lora_widths[width] for family in FAMILIES if width in family.lora_widths), "")
