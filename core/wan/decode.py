"""VAE decoding: latents → frames, a few at a time into their final place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .latent_scale import denormalised
from .latents import video_frames

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLWan

    from ..executor.retry import FiniteCheck


OnStep = Callable[[int], None]


def decode(
    vae: AutoencoderKLWan, latents: torch.Tensor, *, tiled: bool, on_step: OnStep, check: FiniteCheck | None = None
) -> torch.Tensor:
    """Return frames [N, H, W, 3] float32 in 0..1 on the CPU, equal to what diffusers' Wan pipelines decode in fp32.

    `AutoencoderKLWan.decode` holds the whole video on the device, twice while it appends to it.
    Here only the frames of one latent frame are there at a time.

    Args:
        vae: on the device it computes on.
        latents: [1, z, T, h, w] as the transformer leaves them.
        tiled: decode in overlapping tiles, blended as `AutoencoderKLWan.tiled_decode` blends them.
        on_step: called with how many of `decode_steps` are done.
        check: called with each piece before it is brought to 0..1, which hides what is not finite.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    z, fold = denormalised(vae.config, latents.to(vae.device)).to(vae.dtype), folded(vae)
    side = stride(vae)
    frames = torch.empty(video_frames(z.shape[2]), z.shape[3] * side, z.shape[4] * side, 3)
    pieces = _tiles(vae, z, on_step) if tiled and _larger_than_a_tile(vae, z) else _chunks(vae, z, on_step)
    for when, rows, columns, piece in pieces:
        if check is not None:
            check(piece, f"in the frames from {when.start or 0} on")
        if fold > 1:
            piece = unpatchify(piece, fold)
        shown = (piece[0].clamp(-1.0, 1.0) * 0.5 + 0.5).clamp(0, 1)
        frames[when, rows, columns] = shown.permute(1, 2, 3, 0).float().cpu()
    return frames


def decode_steps(vae: AutoencoderKLWan, latents: torch.Tensor, tiled: bool) -> int:
    """Return how many steps `decode` reports."""
    count = int(latents.shape[2])
    # As `decode` does: a video of one tile is decoded whole.
    if not (tiled and _larger_than_a_tile(vae, latents)):
        return count
    stride_h, stride_w = (one // stride(vae) for one in (vae.tile_sample_stride_height, vae.tile_sample_stride_width))
    return len(range(0, latents.shape[3], stride_h)) * len(range(0, latents.shape[4], stride_w)) * count


def stride(vae: AutoencoderKLWan) -> int:
    """Return how many pixels of a side a latent pixel stands for: 8, or 16 in Wan2.2-TI2V's."""
    found: int = vae.config["scale_factor_spatial"]
    return found


def folded(vae: AutoencoderKLWan) -> int:
    """Return how many pixels of a side a VAE folds into channels before it encodes: 1 or 2."""
    return vae.config["patch_size"] or 1


def _larger_than_a_tile(vae: AutoencoderKLWan, z: torch.Tensor) -> bool:
    height, width = stride(vae) * z.shape[3], stride(vae) * z.shape[4]
    return bool(height > vae.tile_sample_min_height or width > vae.tile_sample_min_width)


Piece = tuple[slice, slice, slice, "torch.Tensor"]


def _decode_in_time(
    vae: AutoencoderKLWan, z: torch.Tensor, *, is_tile: bool = False
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the frames of one latent frame after another, [1, 3, 1 or 4, H, W], and where they belong."""
    vae.clear_cache()
    try:
        start = 0
        # diffusers has all latent frames of a video through this layer at once, and those of a tile one by one; the
        # last bits depend on it.
        latents = z.split(1, dim=2) if is_tile else vae.post_quant_conv(z).split(1, dim=2)
        for index, latent in enumerate(latents):
            # The convolutions in time count themselves through the cache, from the first one for each latent frame.
            vae._conv_idx = [0]
            latent = vae.post_quant_conv(latent) if is_tile else latent
            out = vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0)
            yield slice(start, start + out.shape[2]), out
            start += out.shape[2]
    finally:
        vae.clear_cache()  # the cache holds device memory, after an error too


def _chunks(vae: AutoencoderKLWan, z: torch.Tensor, on_step: OnStep) -> Iterator[Piece]:
    everywhere = slice(None)
    for index, (when, piece) in enumerate(_decode_in_time(vae, z)):
        yield when, everywhere, everywhere, piece
        on_step(index + 1)


def _tiles(vae: AutoencoderKLWan, z: torch.Tensor, on_step: OnStep) -> Iterator[Piece]:
    """Yield finished tiles; each is blended with the ones above and to the left of it, in main memory.

    They are float32 whatever the VAE computes in: 16 bits would add a rounding to each blend.
    """
    import torch

    side, fold = stride(vae), folded(vae)
    steps = vae.tile_sample_stride_height // side, vae.tile_sample_stride_width // side
    high, wide = vae.tile_sample_min_height // side, vae.tile_sample_min_width // side
    # In pixels as the decoder gives them, where those of Wan2.2 are still folded.
    inner = side // fold
    above: list[torch.Tensor] = []
    done = 0
    for top in range(0, z.shape[3], steps[0]):
        row: list[torch.Tensor] = []
        for column, left in enumerate(range(0, z.shape[4], steps[1])):
            latents = z[:, :, :, top : top + high, left : left + wide]
            shape = (video_frames(z.shape[2]), latents.shape[3] * inner, latents.shape[4] * inner)
            tile = torch.empty(1, 3 * fold**2, *shape)
            for when, piece in _decode_in_time(vae, latents, is_tile=True):
                tile[:, :, when] = piece.cpu()
                done += 1
                on_step(done)
            if above:
                vae.blend_v(above[column], tile, (high - steps[0]) * inner)
            if row:
                vae.blend_h(row[-1], tile, (wide - steps[1]) * inner)
            row.append(tile)
            # What lies behind the stride is blended into the next tile first, and shown with that.
            shown = tile[:, :, :, : steps[0] * inner, : steps[1] * inner]
            rows, columns = (
                slice(side * at, side * at + fold * shown.shape[axis]) for axis, at in ((3, top), (4, left))
            )
            yield slice(None), rows, columns, shown
        above = row


@contextmanager
def tiling(vae: AutoencoderKLWan, on: bool) -> Iterator[None]:
    """Have the VAE encode in tiles inside the block, where `on`."""
    if not on:
        yield
        return
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
