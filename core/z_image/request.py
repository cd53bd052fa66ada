"""Requests: what to draw with Z-Image, and the sizes it draws."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PiyingError
from ..image_sizes import check_multiple

MIN_SIDE, MAX_SIDE = 64, 2048
# What the model card of Tongyi-MAI/Z-Image-Turbo draws best, and the sides of the same area.
SIZES = ((1024, 1024), (1152, 896), (896, 1152), (1280, 832), (832, 1280), (1344, 768), (768, 1344))
DEFAULT_WIDTH, DEFAULT_HEIGHT = 1024, 1024
# Of Turbo, which is distilled and takes no guidance; the base model is published with 50 steps and guidance.
DEFAULT_STEPS, DEFAULT_CFG, DEFAULT_SHIFT = 8, 1.0, 3.0
DEFAULT_STRENGTH = 0.6  # of diffusers' ZImageImg2ImgPipeline


@dataclass(frozen=True)
class ZImageRequest:
    """One image to make.

    Attributes:
        prompt: what the image shows, in Chinese or English.
        negative_prompt: what to steer away from; used when `cfg` > 1.
        width, height: pixels, multiples of 16.
        steps: denoising steps.
        cfg: classifier-free guidance scale; 1 turns guidance off. It is `guidance_scale + 1` of diffusers'
            pipeline, whose scale is added to the prompt's own prediction.
        shift: timestep shift of the flow-matching schedule.
        seed: 0 … 2**64-1.
        strength: denoising strength of image to image, 0..1; 1 regenerates the whole image.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = DEFAULT_WIDTH
    height: int = DEFAULT_HEIGHT
    steps: int = DEFAULT_STEPS
    cfg: float = DEFAULT_CFG
    shift: float = DEFAULT_SHIFT
    seed: int = 0
    strength: float = DEFAULT_STRENGTH


def check_side(name: str, value: int) -> None:
    """Accept a multiple of 16 between 64 and 2048.

    Raises:
        PiyingError: any other number; the nearest good ones are named.
    """
    check_multiple(name, value, "Z-Image", low=MIN_SIDE, high=MAX_SIDE)


def check_strength(strength: float) -> None:
    """Accept a strength that leaves at least a part of the steps.

    Raises:
        PiyingError: it is out of range.
    """
    if not 0 < strength <= 1:
        raise PiyingError(f"strength is {strength:g}. It goes from above 0 to 1, which regenerates the whole image.")
