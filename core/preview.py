"""Latent previews: small pictures of latents while they are sampled, without running the VAE's decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from PIL.Image import Image

    from .executor.retry import FiniteCheck
    from .host.base import Progress

STRIDE = 8  # pixels per latent pixel, of all VAEs but Wan2.2-TI2V's
CARD = 16  # the colour card is CARD × CARD patches: 256 equations for at most 17 unknowns a channel


def step_report(
    progress: Progress, preview: LatentPreview, check: FiniteCheck, steps: int, *, first: int = 0
) -> Callable[..., None]:
    """Return a function that reports a step, given how many are done, the latents and, where known, clean ones.

    The host stops the run by raising from it.

    Args:
        check: called with the latents of each step: what has gone wrong costs one step and not all of them.
        steps: how many there are.
        first: how many were done before `progress` began.
    """

    def report(done: int, latents: torch.Tensor, clean: torch.Tensor | None = None) -> None:
        check(latents, f"at step {done} of {steps}")
        progress.step(done - first, preview.of(latents if clean is None else clean))

    return report


def step_callback(
    progress: Progress, preview: LatentPreview, check: FiniteCheck, steps: int
) -> Callable[..., dict[str, Any]]:
    """Return `step_report` as a step callback of diffusers."""
    report = step_report(progress, preview, check, steps)

    def on_step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del pipeline, timestep
        report(step + 1, tensors["latents"])
        return tensors

    return on_step_end


class LatentPreview:
    """Turns latents into a small picture by a linear map from latent channels to colour.

    Attributes:
        colours: the map [z + 1, 3] of `fit_colours`.
        scheduler: asked for its latest guess of the clean latents; None where it is told those.
        skip: latent frames in front that are no part of the video.
        stride: pixels per latent pixel.
    """

    def __init__(self, colours: torch.Tensor, scheduler: Any = None, *, skip: int = 0, stride: int = STRIDE) -> None:
        self.colours = colours
        self.scheduler = scheduler
        self.skip = skip
        self.stride = stride

    def of(self, latents: torch.Tensor) -> StepPreview:
        """Return a preview of latents [1, z, H, W] or [1, z, T, H, W], made when a host asks for it."""
        return StepPreview(self, latents)

    def release(self) -> None:
        """Free what it holds on a device: nothing, since a matrix is enough for it."""

    def image(self, latents: torch.Tensor) -> Image:
        """Return a picture of latents [1, z, H, W] or [1, z, T, H, W] (the middle frame of these)."""
        frames = self._frames(latents)
        middle = frames[frames.shape[0] // 2 :][:1]
        return resized(self._pixels(middle)[0], self.stride)

    def frames(self, latents: torch.Tensor, side: int, most: int) -> list[Image]:
        """Return up to `most` frames, evenly taken; the longest side of each is `side` pixels."""
        frames = self._frames(latents)
        taken = frames[:: -(-frames.shape[0] // most)]
        return [resized(frame, side / max(taken.shape[-2:])) for frame in self._pixels(taken)]

    def _frames(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the clean latents frame by frame [T, z, H, W]; a picture is one frame."""
        clean = self._denoised(latents)[0]
        return clean[:, self.skip :].movedim(1, 0) if clean.ndim == 4 else clean[None]

    def _pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """Return colours [T, H, W, 3], 0 to 255."""
        import torch

        with torch.no_grad():
            clean = frames.float().cpu()
            pixels = torch.einsum("tzhw,zc->thwc", clean, self.colours[:-1]) + self.colours[-1]
            return (pixels.clamp(0, 1) * 255).byte()

    def _denoised(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the scheduler's latest guess of the clean latents; UniPC keeps it, DDPM does not."""
        outputs = getattr(self.scheduler, "model_outputs", None) or [None]
        return latents if outputs[-1] is None else outputs[-1]


class FlowPreview(LatentPreview):
    """Previews of flow matching by Euler steps, whose latents are mostly noise until near the end."""

    def __init__(self, colours: torch.Tensor, scheduler: Any) -> None:
        super().__init__(colours, scheduler)
        self._before: tuple[torch.Tensor, float] | None = None

    def of(self, latents: torch.Tensor) -> StepPreview:
        """Return a preview of the clean latents that the last step points to, made when a host asks for it."""
        sigma = float(self.scheduler.sigmas[self.scheduler.step_index])
        clean = latents
        if self._before is not None and self._before[1] != sigma:
            before, noise = self._before
            # An Euler step goes along a straight line, whose end at sigma 0 are the clean latents.
            clean = latents - (before - latents) * (sigma / (noise - sigma))
        self._before = (latents, sigma)
        return super().of(clean)


@dataclass(frozen=True)
class StepPreview:
    """The preview of one step."""

    preview: LatentPreview
    latents: torch.Tensor

    def __call__(self) -> Image:
        """Return a still picture."""
        return self.preview.image(self.latents)

    def moving(self, side: int, most: int) -> list[Image]:
        """Return up to `most` frames whose longest side is `side` pixels."""
        return self.preview.frames(self.latents, side, most)


def resized(pixels: torch.Tensor, scale: float) -> Image:
    """Return a frame [H, W, 3] of bytes as a picture, so many times as large."""
    from PIL import Image

    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BILINEAR)


def fit_colours(vae: Any) -> torch.Tensor:
    """Return the map [z + 1, 3] on the CPU: a row of RGB weights per latent channel, and a constant row.

    A card of random coloured patches is encoded, and the patches' colours are regressed on its
    latents. One encode of a 128×128 picture replaces a table of constants for each VAE.
    """
    import torch

    colours = torch.rand(CARD, CARD, 3, generator=torch.Generator().manual_seed(0))
    # A VAE that overflows in fp16 costs the preview its colours, not the run.
    latents = _encode(vae, colours.permute(2, 0, 1)).float().cpu().nan_to_num(0.0, 0.0, 0.0)
    rows = torch.cat([latents.flatten(1).T, torch.ones(CARD * CARD, 1)], dim=1)
    fitted: torch.Tensor = torch.linalg.lstsq(rows, colours.reshape(-1, 3)).solution
    return fitted


def _encode(vae: Any, colours: torch.Tensor) -> torch.Tensor:
    """Return latents [z, CARD, CARD] of a card of colours [3, CARD, CARD] in 0..1, in the sampler's scale."""
    import torch

    stride = getattr(vae.config, "scale_factor_spatial", STRIDE)  # of a VAE of videos
    card = colours.repeat_interleave(stride, 1).repeat_interleave(stride, 2)[None] * 2 - 1
    card = card.to(vae.device, vae.dtype)
    if not hasattr(vae.config, "z_dim"):  # a VAE of pictures
        image: torch.Tensor = vae.encode(card).latent_dist.mode()[0]
        shift: float = getattr(vae.config, "shift_factor", None) or 0.0
        return (image - shift) * float(vae.config.scaling_factor)
    encoded: torch.Tensor = vae.encode(card[:, :, None]).latent_dist.mode()
    mean, std = (
        torch.tensor(values).view(-1, 1, 1, 1).to(encoded)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return ((encoded[0] - mean) / std)[:, 0]
