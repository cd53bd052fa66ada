"""Fast decoders: TAEHV files in models/vae_approx, which decode Wan's latents in place of the VAE.

Needs neither torch nor the files' weights: the node is declared at ComfyUI's start.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PiyingError, check_choice
from ..postprocessing.model_files import AUTO, ModelKind
from .latents import CHANNELS, TI2V_CHANNELS

if TYPE_CHECKING:
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..host.base import Host

log = logging.getLogger("piying")

VAE = "vae"
RESULT_AND_PREVIEWS, PREVIEWS_ONLY = "result and previews", "previews only"
USES = (RESULT_AND_PREVIEWS, PREVIEWS_ONLY)  # saved in workflow files: changing one breaks those that use it
DECODERS = ModelKind("vae_approx", (VAE,))
# TAEHV of other models has the same layers: for `auto` the name has to say that it is for Wan, in the channels of what
# the model makes. Those of Wan2.2-TI2V's VAE are taew2_2.
FOR_WAN = {CHANNELS: "taew2_1", TI2V_CHANNELS: "taew2_2"}
FIRST_LAYER = "decoder.1.weight"
# LightX2V's were made for latents in the scale of the VAE, and only their names tell them from taehv's.
IN_SCALE_OF_VAE = "lighttae"


@dataclass(frozen=True)
class FastDecoders:
    """The files that decode in place of the VAE.

    Attributes:
        result: for the frames; None for the VAE.
        previews: for those of the steps; None for the linear map of latents to colours.
    """

    result: Path | None = None
    previews: Path | None = None


def decoders_of(handle: ModelHandle, host: Host) -> FastDecoders:
    """Return the files of a handle's decoders.

    Raises:
        PiyingError: one is not there.
    """
    names = handle.decoder, handle.preview_decoder
    return FastDecoders(*(DECODERS.chosen(name, host) if name else None for name in names))


def with_decoder(handle: ModelHandle, decoder: str, host: Host, use: str = RESULT_AND_PREVIEWS) -> ModelHandle:
    """Return a handle whose latents are decoded by a choice of `DECODERS`.

    Args:
        use: one of `USES`: what is decoded by it.

    Raises:
        PiyingError: the file is not there, is damaged, or is no such decoder.
    """
    check_choice("use", use, USES)
    DECODERS.check(decoder, host)
    name, files = decoder.replace("\\", "/"), DECODERS.files(host)
    if name == AUTO:
        made = _made_by(handle, host)
        wanted = FOR_WAN.get(made, "taew2_")
        fitting = (file for file, path in files.items() if wanted in path.name.lower() and _channels(path) == made)
        name = next(fitting, VAE)
        if name == VAE:
            log.warning(
                "No %s file for this model is in models/%s: the VAE decodes. Put %s.safetensors of "
                "https://github.com/madebyollin/taehv there.",
                wanted.rstrip("_"),
                DECODERS.folder,
                FOR_WAN.get(made, FOR_WAN[CHANNELS]),
            )
    if name == VAE:
        return replace(handle, decoder="", preview_decoder="")
    if _channels(files[name]) is None:
        raise PiyingError(f"{files[name]}: is no TAEHV decoder, such as taew2_1.safetensors. Choose another file.")
    return replace(handle, decoder=name if use == RESULT_AND_PREVIEWS else "", preview_decoder=name)


def _channels(path: Path) -> int | None:
    """Return how many latent channels a decoder reads, from its file's header; None where it is no decoder."""
    from ..files.open import read_header

    entry = read_header(path).entries.get(FIRST_LAYER)
    return entry.shape[1] if entry is not None and len(entry.shape) == 4 else None


def reads_scale_of_vae(path: Path) -> bool:
    """Return whether a decoder reads latents in the scale of the VAE, as LightX2V's do by their names."""
    return IN_SCALE_OF_VAE in path.name.lower()


def _made_by(handle: ModelHandle, host: Host) -> int:
    """Return how many channels the latents of a handle's model have; where it is not here, those of most."""
    from ..catalog.selection import choose_model, is_imagined

    return CHANNELS if is_imagined(handle, host) else _latent_channels(choose_model(handle, host, quiet=True))


def _latent_channels(model: InstalledModel) -> int:
    from ..checkpoints.components import find_component

    return int(find_component("vae", model.place("vae")).config["z_dim"])


def check_decoders(decoders: FastDecoders, model: InstalledModel) -> None:
    """Accept decoders for a model: sampling may take an hour before one is read.

    Raises:
        PiyingError: one reads other latents than the model makes.
    """
    for path in dict.fromkeys((decoders.result, decoders.previews)):
        if path is not None and (reads := _channels(path)) != (makes := _latent_channels(model)):
            raise PiyingError(
                f"decoder {path.name!r} reads latents of {reads} channels, and {model.name} makes {makes}. Set "
                "decoder to vae, or choose a file for this model."
            )
