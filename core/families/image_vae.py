"""AutoencoderKL of diffusers, the VAE of several image families: what it costs, and pictures from latents.

Bytes come from live tensors of the real configuration on torch's meta device (tests/core/test_plan_peaks.py runs it
again), for 128 channels at full size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..planner.phases import Component, Phase, Variant
from ..planner.plan_types import Compute, PhaseName, PhasePlan

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from ..executor.execute_plan import Meter
    from .diffusion_model import ModelParts

CHANNELS = 128
DECODE_BYTES, ENCODE_BYTES = 1537, 1281  # per pixel, in 16-bit types
DECODE_FLOPS, ENCODE_FLOPS = 9.46e6, 4.13e6  # per pixel, in convolutions
ATTENTION_FLOPS = 0.5  # per pair of pixels: one position for 8 × 8 of them attends to all, in 512 channels
TILE = 512  # pixels of a tile's side, a quarter of which overlaps
BYTES_PER_PIXEL = 12  # three float32


def vae_phase(
    name: PhaseName, vae: Component, width: int, height: int, *, computes: tuple[Compute, ...], decodes: bool = True
) -> Phase:
    """Return the phase of decoding latents to a picture of that size, or of encoding one.

    Args:
        computes: number types, best first.
        decodes: False where a picture is encoded.
    """
    return Phase(
        name=name,
        component=vae,
        computes=computes,
        storages=computes[:1],
        flops=_flops(vae, width * height, decodes=decodes),
        linear_share=0.0,
        passes=1,
        variants=vae_memory(vae, width, height, decodes=decodes),
        streamable=False,
        convolutional=True,
        movable=True,
        host=2 * BYTES_PER_PIXEL * width * height,
    )


def vae_memory(vae: Component, width: int, height: int, *, decodes: bool = True) -> tuple[Variant, ...]:
    """Return what the VAE holds on the device: whole, and in tiles of `TILE` that overlap by a quarter."""
    each = (DECODE_BYTES if decodes else ENCODE_BYTES) * vae.hidden / CHANNELS
    whole = Variant("whole", int(each * width * height))
    if width <= TILE and height <= TILE:
        return (whole,)
    wide, high = _tiles(width), _tiles(height)
    # Tiles stay on the device until they are blended and put together.
    kept = 6 * (sum(wide) * sum(high) + width * height) if decodes else 0
    flops = sum(_flops(vae, one * other, decodes=decodes) for one in wide for other in high)
    again = flops / _flops(vae, width * height, decodes=decodes)
    return whole, Variant("tiled", int(each * min(width, TILE) * min(height, TILE)) + kept, again, words="in pieces")


def _flops(vae: Component, pixels: int, *, decodes: bool) -> float:
    wide = vae.hidden / CHANNELS
    convolutions = wide**2 * (DECODE_FLOPS if decodes else ENCODE_FLOPS) * pixels
    return convolutions + wide * ATTENTION_FLOPS * pixels**2


def _tiles(length: int) -> list[int]:
    """Return the sides of the tiles along a side of a picture."""
    return [min(TILE, length - start) for start in range(0, length, TILE * 3 // 4)]


def set_tiling(vae: AutoencoderKL, tiled: bool) -> None:
    """Have a VAE work in tiles, or whole."""
    vae.use_tiling = tiled
    # diffusers' own tile is as large as the largest picture the VAE was trained on.
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // 8


def decode_phase(parts: ModelParts, choice: PhasePlan, meter: Meter, latents: torch.Tensor) -> torch.Tensor:
    """Return pictures [1, H, W, 3] float32 in 0..1 on the CPU, as the pipelines of diffusers decode latents.

    Args:
        parts: of the model; its `vae` is loaded.
        choice: the plan of the phase.
        meter: measures it.
        latents: [1, z, H / 8, W / 8], as a sampler leaves them.
    """
    from diffusers.image_processor import VaeImageProcessor

    from ..executor.placement import placed
    from ..executor.retry import finite_check

    progress = parts.host.progress("Decoding", 1, seconds=choice.seconds)
    with meter.phase(choice):
        vae = parts.load("vae", choice)
        set_tiling(vae, choice.variant == "tiled")
        with placed(vae, choice, meter.device, parts.host):
            scaled = latents.to(vae.device, vae.dtype) / vae.config["scaling_factor"]
            if vae.config.get("shift_factor"):
                scaled = scaled + vae.config["shift_factor"]
            decoded = vae.decode(scaled, return_dict=False)[0]
            finite_check(choice)(decoded, "in the picture")
            image: torch.Tensor = VaeImageProcessor().postprocess(decoded, output_type="pt", do_denormalize=[True])
            image = image.permute(0, 2, 3, 1).float().cpu().contiguous()
    progress.step(1)
    return image
