"""What a video without VACE costs: the phases of a run, their arithmetic and their memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from ..planner.phases import Component, Phase, encoding
from ..wan.latents import STRIDE
from ..wan.phases import VideoWork, decode_phase, encode_phase, sample_phase, samplers, storages_of, vae_phase
from ..wan.request import WanRequest
from .frame_inputs import TEXT, FrameInputs, default_boundary

IMAGE_TOKENS = 257  # of CLIP-ViT-H for a picture
CARD_SIDE = 128  # pixels of the card of colours that is encoded where no frame is (core/preview.py)


@dataclass(frozen=True)
class FramesWork(VideoWork):
    """What the planner must know of a video from text and frames.

    Attributes:
        first, last: whether it is given that frame.
        inputs: what its model reads.
    """

    _: KW_ONLY
    first: bool = False
    last: bool = False
    inputs: FrameInputs = TEXT

    @classmethod
    def of_frames(
        cls, request: WanRequest, inputs: FrameInputs, *, first: bool, last: bool, **named: Any
    ) -> FramesWork:
        """Return the work of a request as the user made it; for what is named see `VideoWork.of`."""
        return cls.of(request, has_task=False, **named).reading(inputs, first=first, last=last)

    def reading(self, inputs: FrameInputs, *, first: bool | None = None, last: bool | None = None) -> FramesWork:
        """Return the work of a model that reads other frames."""
        return replace(
            self,
            inputs=inputs,
            first=self.first if first is None else first,
            last=self.last if last is None else last,
            stride=inputs.stride,
            has_vace=False,
            token_times=inputs.replaces,
            boundary=self.boundary or default_boundary(inputs),
        )


def phases(components: Mapping[str, Component], work: FramesWork) -> tuple[Phase, ...]:
    """Return the phases of a run.

    Args:
        components: `transformer`, `text_encoder` and `vae`, `transformer_2` of a model of two experts, and
            `image_encoder` of one that sees its frames.
    """
    samples, pictures = samplers(components, work), work.first + work.last
    seen: tuple[Phase, ...] = ()
    if work.inputs.sees and pictures and "image_encoder" in components:
        seen = (_look(components["image_encoder"], work, pictures),)
    return (
        encode_phase(components["text_encoder"], samples, work),
        *seen,
        _condition(components["vae"], work),
        *(sample_phase(transformer, of_one) for transformer, of_one in samples),
        decode_phase(components["vae"], work),
    )


def _look(encoder: Component, work: VideoWork, pictures: int) -> Phase:
    flops, variant = encoding(encoder, IMAGE_TOKENS)
    return Phase(
        name="encode_image",
        component=encoder,
        computes=("bf16",),
        storages=storages_of(encoder),
        flops=flops,
        linear_share=0.0,
        passes=pictures,
        variants=(variant,),
        streamable=True,
        movable=True,
        cast_last_resort=True,
    )


def _condition(vae: Component, work: FramesWork) -> Phase:
    """Return the phase of the frames: a video gray between them, or one frame, or the card of colours alone."""
    if work.inputs.replaces and work.first:
        return vae_phase("condition", vae, replace(work, num_frames=1), passes=1)
    if work.first or work.last:
        return vae_phase("condition", vae, work, passes=1)
    side = CARD_SIDE * work.inputs.stride // STRIDE
    return vae_phase("condition", vae, replace(work, width=side, height=side, num_frames=1), passes=1)
