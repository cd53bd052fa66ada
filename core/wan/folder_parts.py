"""Whether the components in a model's folder belong together: each reads what the one before it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..families.base import SECOND_EXPERT
from ..files.folder import CONFIG, CONFIG_BYTES
from ..files.json_file import read_json_or_empty
from .component_files import vae_channels
from .latents import STRIDE

# What two experts read and make alike, as they are given the same; with the defaults of diffusers' classes.
SHARED: Mapping[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "text_dim": 4096,
    "image_dim": None,
    "pos_embed_seq_len": None,
    "vace_in_channels": 96,
}
# Components whose output the transformer reads: their own name for its width, and the transformer's.
READ = (("text_encoder", "d_model", "text_dim"), ("image_encoder", "hidden_size", "image_dim"))


def parts_problem(place: Path) -> str:
    """Return that a folder's encoders or its second expert are another model's; "" where its configurations agree.

    What a configuration does not say counts as in order: weights in their authors' names have none.
    """
    transformer = _config(place, "transformer")
    for part, own, read in READ:
        made, wanted = _config(place, part).get(own), transformer.get(read)
        if made is not None and wanted is not None and made != wanted:
            return f"{place}: its {part} has a width of {made}, and its transformer reads {wanted}. Fetch it again."
    second = _config(place, SECOND_EXPERT)
    for name, default in SHARED.items() if transformer and second else ():
        one, other = transformer.get(name, default), second.get(name, default)
        if one != other:
            return (
                f"{place}: its transformer has {name} {one}, and its transformer_2 {other}: they are no two experts "
                "of one model. Fetch it again."
            )
    return ""


def vace_problem(place: Path) -> str:
    """Return that a folder's VAE is not the one that its VACE transformer was made for; "" where it may be."""
    transformer, channels = _config(place, "transformer"), vae_channels(place)
    if problem := latents_problem(place, transformer.get("in_channels", channels), channels):
        return problem
    stride = _config(place, "vae").get("scale_factor_spatial", STRIDE)
    if stride != STRIDE:
        return f"{place}: its vae has a stride of {stride}, and VACE reads one of {STRIDE}. Fetch it again."
    return ""


def latents_problem(place: Path, made: int, decoded: int) -> str:
    """Return that a folder's VAE decodes other latents than its transformer makes; "" where they are the same."""
    if made == decoded:
        return ""
    return f"{place}: its transformer makes latents of {made} channels, and its vae has {decoded}. Fetch it again."


def _config(place: Path, part: str) -> Mapping[str, Any]:
    return read_json_or_empty(place / part / CONFIG, CONFIG_BYTES)
