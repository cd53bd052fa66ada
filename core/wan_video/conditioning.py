"""Conditioning: given frames as what the transformer reads of them, as `WanImageToVideoPipeline` has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ..executor.placement import placed
from ..image_sizes import fit_frames
from ..media.frames import check_finite, checked_frames
from ..wan.conditioning import Encode
from ..wan.latents import FRAME_STEP

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import CLIPVisionModel

    from ..host.base import DevicePolicy, Reporter
    from ..image_sizes import Fit
    from ..planner.plan_types import PhasePlan

log = logging.getLogger("piying")


@dataclass(frozen=True, eq=False)
class GivenFrames:
    """Pictures [H, W, 3] in 0..1 that a video begins and ends with; None where there is none."""

    first: torch.Tensor | None = None
    last: torch.Tensor | None = None

    @classmethod
    def of(cls, first: torch.Tensor | None, last: torch.Tensor | None) -> GivenFrames:
        """Return the first of some pictures [n, h, w, c], and the last of others; those left out are logged.

        Raises:
            PiyingError: there are none in a batch, or they are no pictures in colour, or hold NaN or infinity.
        """
        return cls(_picked(first, "first_frame", "first"), _picked(last, "last_frame", "last"))

    @property
    def pictures(self) -> list[torch.Tensor]:
        """Those that there are."""
        return [one for one in (self.first, self.last) if one is not None]

    def fitted(self, width: int, height: int, fit: Fit) -> GivenFrames:
        """Return them at the video's size."""
        return GivenFrames(
            *(None if one is None else fit_frames(one[None], width, height, fit)[0] for one in (self.first, self.last))
        )


def _picked(pictures: torch.Tensor | None, name: str, which: Literal["first", "last"]) -> torch.Tensor | None:
    if pictures is None:
        return None
    frames = checked_frames(pictures, name)
    if len(frames) > 1:
        log.info("%s holds %d pictures: the %s one is taken.", name, len(frames), which)
    frame = frames[0 if which == "first" else -1].float().cpu()
    check_finite(frame, name)
    return frame


def encode_beside(encode: Encode, frames: GivenFrames, num_frames: int, stride: int) -> torch.Tensor:
    """Return the channels beside the latents [1, 4 + z, T, h, w]: which frames are given, and the video around them.

    The video is gray between the given frames.

    Args:
        encode: called with the video.
        num_frames: 4n+1.
        stride: of the VAE.
    """
    (shape,) = {picture.shape for picture in frames.pictures}
    height, width, _ = shape
    video, mask = torch.zeros(1, 3, num_frames, height, width), torch.zeros(1, 1, num_frames, 1, 1)
    for place, picture in ((0, frames.first), (num_frames - 1, frames.last)):
        if picture is not None:
            video[0, :, place] = picture.permute(2, 0, 1) * 2 - 1
            mask[:, :, place] = 1
    latents = encode(video)
    # The first latent frame holds one frame where the others hold four.
    mask = torch.cat([mask[:, :, :1].expand(-1, -1, FRAME_STEP, -1, -1), mask[:, :, 1:]], dim=2)
    mask = mask.view(1, -1, FRAME_STEP, 1, 1).transpose(1, 2)
    return torch.cat([mask.expand(-1, -1, -1, height // stride, width // stride).to(latents), latents], dim=1)


def encode_first(encode: Encode, frames: GivenFrames) -> torch.Tensor:
    """Return the latents [1, z, 1, h, w] of the first frame, which stand in those of the video."""
    assert frames.first is not None
    return encode(frames.first.permute(2, 0, 1)[None, :, None] * 2 - 1)


@dataclass(frozen=True, eq=False)
class BesideLatents:
    """Channels that are read beside the latents.

    Attributes:
        condition: from `encode_beside`.
    """

    condition: torch.Tensor

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the transformer reads in a step; see `denoise.ModelInput`."""
        return torch.cat([latents, self.condition.to(latents)], dim=1), timestep.expand(1)


@dataclass(frozen=True, eq=False)
class InLatents:
    """A first frame that stands in the latents, with a timestep of 0 for its tokens; without one all have the step's.

    Attributes:
        first: [1, z, 1, h, w], or None.
    """

    first: torch.Tensor | None

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the transformer reads in a step; see `denoise.ModelInput`."""
        tokens = latents.shape[3] // 2 * (latents.shape[4] // 2)
        times = timestep.expand(latents.shape[2] * tokens).clone()
        if self.first is not None:
            times[:tokens] = 0
        return self.result(latents), times[None]

    def result(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents with the first frame in them."""
        if self.first is None:
            return latents
        return torch.cat([self.first.to(latents), latents[:, :, 1:]], dim=2)


def look(
    encoder: CLIPVisionModel,
    processor: Path | None,
    pictures: Sequence[torch.Tensor],
    choice: PhasePlan,
    *,
    device: str,
    policy: DevicePolicy,
    reporter: Reporter,
) -> torch.Tensor:
    """Return what an image encoder makes of pictures [n, tokens, width], on the CPU: its states before the last block.

    Args:
        processor: the folder that says how pictures are brought to it; None for CLIP's own ways.
        pictures: [H, W, 3] in 0..1.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = encoder.config.image_size
    prepare = (
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        if processor is None
        else CLIPImageProcessorPil.from_pretrained(processor, local_files_only=True)
    )
    shown = [(picture * 255).round().byte().numpy() for picture in pictures]
    pixels = prepare(images=shown, return_tensors="pt")["pixel_values"]
    progress = reporter.progress("Looking at the frames", 1, seconds=choice.seconds)
    with placed(encoder, choice, device, policy, blocks=list(encoder.encoder.layers)):
        on = choice.on(device)
        states = encoder(pixels.to(on, encoder.dtype), output_hidden_states=True).hidden_states[-2]
        progress.step(1)
        result: torch.Tensor = states.cpu()
    return result
