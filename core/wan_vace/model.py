"""The WanVACEPipeline of a handle, in host memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..checkpoints.choose import ModelHandle, choose_model
from ..checkpoints.folders import load_pipeline
from ..checkpoints.found import FoundModel
from ..host import Host
from ..memory.devices import resolve_dtype
from ..memory.kept import kept
from .request import VACERequest

if TYPE_CHECKING:
    import torch
    from diffusers import WanVACEPipeline

log = logging.getLogger("piying")

# A picture of under 200×200 has too few patches for a model trained at 480×832.
SMALLEST_TRAINED_AREA = 256 * 256


def load(handle: ModelHandle, host: Host) -> tuple[WanVACEPipeline, FoundModel]:
    """Return the handle's pipeline and the model it was read from.

    The VAE is read in fp32, as its authors advise: in 16 bit it shows in flat areas.

    Raises:
        PiyingError: the model is not installed or cannot be read.
    """
    found = choose_model(handle, host)
    dtype = resolve_dtype(handle.precision, host.device())
    host.check_cancelled()
    return kept("wan_vace", (found.path, dtype), lambda: _read(found, dtype)), found


def _read(found: FoundModel, dtype: torch.dtype) -> WanVACEPipeline:
    import torch
    from diffusers import WanVACEPipeline

    log.info("Loading Wan VACE: %s", found.name)
    dtypes = {"default": dtype, "vae": torch.float32}
    return load_pipeline(WanVACEPipeline, found.path, "Wan VACE", dtypes)


def warn_if_untrained(request: VACERequest, found: FoundModel) -> None:
    """Say so when a real model is asked for a size it never saw."""
    if not found.is_built_in and request.width * request.height < SMALLEST_TRAINED_AREA:
        log.warning(
            "%d×%d is far below what %s was trained for (832×480, 81 frames); expect noise.",
            request.width,
            request.height,
            found.name,
        )
    if request.num_frames > 81:
        log.warning(
            "num_frames is %d; Wan2.1 was trained on 81 and tends to repeat itself beyond.",
            request.num_frames,
        )
