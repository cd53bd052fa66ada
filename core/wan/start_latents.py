"""Start latents: what sampling begins from in place of noise alone, and what it leaves: a LATENT of ComfyUI's.

A LATENT's samples are in the scale of the VAE. Latents x = (1 - s) · clean + s · noise that are not finished are in it
as x / (1 - s), as `CONST.inverse_noise_scaling` of comfy/model_sampling.py leaves those of flows, with s beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import PiyingError, clipped
from ..files.dtypes import all_finite, largest_number
from .latent_scale import denormalised, normalised
from .latents import latent_frames, video_frames
from .model import WanModel
from .request import WanRequest

log = logging.getLogger("piying")

SAMPLES, NOISE_MASK = "samples", "noise_mask"  # keys of ComfyUI's LATENT
NOISE_LEVEL, REFERENCES = "noise_level", "references"  # keys of ours beside them
CLOSE = 1e-4  # noise levels so near are one: schedules are computed in float32
LARGEST = 1e6  # of latents; unfinished ones are divided by 1 - s
ALL_NOISE = 0.999  # from here on nothing is to be seen of the latents


@dataclass(frozen=True, eq=False)
class StartLatents:
    """What sampling begins from.

    Attributes:
        video: float32 [1, z, T, h, w], normalised, on the CPU.
        level: the noise level they stand at, 0..1; 0: they are clean, and noise is added.
        references: [1, z, R, h, w], those in front of a video that was not finished; None where there are none.
    """

    video: torch.Tensor
    level: float = 0.0
    references: torch.Tensor | None = None

    @classmethod
    def of(cls, latent: Mapping[str, Any], request: WanRequest, model: WanModel) -> StartLatents:
        """Return those of a LATENT.

        Raises:
            PiyingError: they are not the latents of a video of that model, size and length.
        """
        samples = latent.get(SAMPLES) if isinstance(latent, Mapping) else latent
        _check_shape(samples, request, model)
        assert isinstance(samples, torch.Tensor)
        samples = samples.detach().float().cpu()
        if not all_finite(samples):
            raise PiyingError("latents holds values that are no numbers (NaN or infinite). Give others.")
        if (largest := largest_number(samples)) > LARGEST:
            raise PiyingError(f"latents holds {largest:.3g}, and a VAE's are within {LARGEST:g}. Give others.")
        if latent.get(NOISE_MASK) is not None:
            log.warning("The noise mask of latents is left out. VACE: Inpaint makes parts of a video anew.")
        level, references = latent.get(NOISE_LEVEL, 0.0), latent.get(REFERENCES)
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level < 1:
            raise PiyingError(
                f"latents have the noise level {clipped(repr(level))}, which is no number from 0 to below 1. Give "
                "those of another sampler."
            )
        return cls(
            normalised(model.vae_config, samples) * (1 - level),
            float(level),
            references if isinstance(references, torch.Tensor) else None,
        )

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors that the run depends on."""
        return [self.video, *([] if self.references is None else [self.references])]

    def at(self, level: float, noise: torch.Tensor, front: torch.Tensor) -> torch.Tensor:
        """Return latents [1, z, R + T, h, w] at the noise level of a step.

        Args:
            level: 0..1.
            noise: [1, z, R + T, h, w].
            front: [1, z, R, h, w], what references are without noise.
        """
        own, count = self.references, front.shape[2]
        # Another sampler's references may be others, or of another size.
        if not (self.level and own is not None and own.shape == front.shape):
            own = torch.lerp(front, noise[:, :, :count], level)
        video = self.video if self.level else torch.lerp(self.video, noise[:, :, count:], level)
        return torch.cat([own, video], dim=2)

    def check_level(self, levels: Sequence[float], start: int) -> None:
        """Accept the first step.

        Args:
            levels: the noise level of each step.
            start: the first step, from 0.

        Raises:
            PiyingError: it begins at another noise level than these latents stand at.
        """
        level = levels[start]
        if not self.level:
            if level > ALL_NOISE:
                log.warning(
                    "latents are without effect: start_at_step %d begins with noise alone. Set it higher.", start
                )
            return
        if abs(level - self.level) < CLOSE:
            return
        fitting = [step for step, one in enumerate(levels) if abs(one - self.level) < CLOSE]
        if fitting:
            raise PiyingError(
                f"latents stand at noise level {self.level:.4f}, and step {start} of this sampler begins at "
                f"{level:.4f}. Set start_at_step to {fitting[0]}."
            )
        raise PiyingError(
            f"latents stand at noise level {self.level:.4f}, at which no step of this sampler begins. Give both "
            "samplers the same steps, shift, sampler and scheduler."
        )


def _check_shape(samples: Any, request: WanRequest, model: WanModel) -> None:
    channels, stride = model.vae_config["z_dim"], model.vae_config["scale_factor_spatial"]
    sides = request.height // stride, request.width // stride
    # Others hold no numbers of their own at each place.
    is_video = isinstance(samples, torch.Tensor) and samples.layout == torch.strided and not samples.is_complex()
    if not is_video or samples.ndim != 5 or samples.shape[:2] != (1, channels):
        given = "×".join(map(str, samples.shape)) if isinstance(samples, torch.Tensor) else type(samples).__name__
        raise PiyingError(
            f"latents are {given}, and {model.found.name} takes one video of {channels} channels: 1×{channels}×frames×"
            "height×width. Give those of another sampler with this model, or of its VAE's VAE Encode."
        )
    frames, height, width = samples.shape[2:]
    if (frames, height, width) != (latent_frames(request.num_frames), *sides):
        own = width * stride, height * stride, video_frames(frames)
        raise PiyingError(
            f"latents are those of {own[2]} frames of {own[0]}×{own[1]}, and the sampler is set to "
            f"{request.num_frames} of {request.width}×{request.height}. Set width to {own[0]}, height to {own[1]} and "
            f"num_frames to {own[2]}."
        )


def as_latent(
    config: Mapping[str, Any], video: torch.Tensor, level: float = 0.0, references: torch.Tensor | None = None
) -> dict[str, Any]:
    """Return ComfyUI's LATENT of a video.

    Args:
        config: of the model's VAE.
        video: normalised, [1, z, T, h, w].
        level: the noise level it stands at; 0 where it is finished.
        references: in front of it, where it is not.
    """
    latent: dict[str, Any] = {SAMPLES: denormalised(config, video / (1 - level))}
    if level:
        latent[NOISE_LEVEL] = level
        if references is not None and references.shape[2]:
            latent[REFERENCES] = references
    return latent
