"""A quick look at latents while they are sampled, without running the VAE's decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from PIL.Image import Image

    from .host import Progress

STRIDE = 8  # pixels per latent pixel, of both VAEs
CARD = 16  # the colour card is CARD × CARD patches: 256 equations for at most 17 unknowns a channel


def step_callback(progress: Progress, preview: LatentPreview) -> Callable[..., dict[str, Any]]:
    """Return a diffusers step callback that reports; the host stops the run by raising from it."""

    def on_step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del pipeline, timestep
        progress.step(step + 1, lambda: preview.image(tensors["latents"]))
        return tensors

    return on_step_end


class LatentPreview:
    """Turns latents into a small picture by a linear map from latent channels to colour.

    The map is fitted once per VAE: a card of random coloured patches is encoded, and the patches'
    colours are regressed on its latents. One encode of a 128×128 picture replaces a table of
    constants for each VAE.
    """

    def __init__(self, vae: Any, scheduler: Any) -> None:
        self._vae = vae
        self._scheduler = scheduler
        self._map: torch.Tensor | None = None

    def image(self, latents: torch.Tensor) -> Image:
        """Return a picture of latents [1, z, H, W] or [1, z, T, H, W] (the middle frame of these)."""
        import torch
        from PIL import Image

        with torch.no_grad():
            clean = self._denoised(latents)[0].float().cpu()
            if clean.ndim == 4:
                clean = clean[:, clean.shape[1] // 2]
            pixels = torch.einsum("zhw,zc->hwc", clean, self._colours()[:-1]) + self._colours()[-1]
        array = (pixels.clamp(0, 1) * 255).byte().numpy()
        return Image.fromarray(array).resize(
            (array.shape[1] * STRIDE, array.shape[0] * STRIDE), Image.Resampling.BILINEAR
        )

    def _denoised(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the scheduler's latest guess of the clean latents; UniPC keeps it, DDPM does not."""
        outputs = getattr(self._scheduler, "model_outputs", None) or [None]
        return latents if outputs[-1] is None else outputs[-1]

    def _colours(self) -> torch.Tensor:
        """Return the map [z + 1, 3]: a row of RGB weights per latent channel, and a constant row."""
        if self._map is None:
            self._map = self._fit()
        return self._map

    def _fit(self) -> torch.Tensor:
        import torch

        colours = torch.rand(CARD, CARD, 3, generator=torch.Generator().manual_seed(0))
        latents = self._encode(colours.permute(2, 0, 1)).float().cpu()
        rows = torch.cat([latents.flatten(1).T, torch.ones(CARD * CARD, 1)], dim=1)
        return torch.linalg.lstsq(rows, colours.reshape(-1, 3)).solution

    def _encode(self, colours: torch.Tensor) -> torch.Tensor:
        """Return latents [z, CARD, CARD] of a card of colours [3, CARD, CARD] in 0..1."""
        card = colours.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)[None] * 2 - 1
        card = card.to(self._vae.device, self._vae.dtype)
        is_video = hasattr(self._vae.config, "z_dim")
        encoded = self._vae.encode(card[:, :, None] if is_video else card).latent_dist.mode()
        return self._normalised(encoded, is_video)

    def _normalised(self, encoded: torch.Tensor, is_video: bool) -> torch.Tensor:
        """Return encoder output in the scale the sampler works in."""
        import torch

        config = self._vae.config
        if not is_video:
            return encoded[0] * config.scaling_factor
        mean, std = (
            torch.tensor(values).view(-1, 1, 1, 1).to(encoded) for values in (config.latents_mean, config.latents_std)
        )
        return ((encoded[0] - mean) / std)[:, 0]
