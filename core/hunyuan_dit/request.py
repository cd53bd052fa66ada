"""What to draw, and the sizes Hunyuan-DiT draws."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PiyingError
from ..image_sizes import nearest_shape

# (width, height) Hunyuan-DiT was trained on: diffusers' SUPPORTED_SHAPE, in that order.
SIZES = [
    (1024, 1024),
    (1280, 1280),
    (1024, 768),
    (1152, 864),
    (1280, 960),
    (768, 1024),
    (864, 1152),
    (960, 1280),
    (1280, 768),
    (768, 1280),
]
# Sizes the built-in toy model draws as well, quick on a CPU.
TOY_SIZES = [(64, 64), (96, 64), (64, 96), (128, 128)]

# Defaults of diffusers' HunyuanDiTPipeline.
DEFAULT_WIDTH, DEFAULT_HEIGHT = 1024, 1024
DEFAULT_STEPS, DEFAULT_CFG = 50, 5.0


@dataclass(frozen=True)
class ImageRequest:
    """One image to make.

    Attributes:
        prompt: what the image shows, in Chinese or English.
        negative_prompt: what to steer away from; used when `cfg` > 1.
        width, height: one of `SIZES`; for the built-in model also `TOY_SIZES`.
        steps: denoising steps.
        cfg: classifier-free guidance scale; 1 turns guidance off.
        seed: 0 … 2**64-1.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = DEFAULT_WIDTH
    height: int = DEFAULT_HEIGHT
    steps: int = DEFAULT_STEPS
    cfg: float = DEFAULT_CFG
    seed: int = 0


def check_size(width: int, height: int, is_built_in: bool) -> None:
    """Accept a (width, height) that the built-in model draws, or that published ones do.

    Raises:
        PiyingError: any other size; the nearest good one and the whole list are named.
    """
    sizes = SIZES + TOY_SIZES if is_built_in else SIZES
    if (width, height) in sizes:
        return
    near = nearest_shape(width, height, sizes)
    listed = ", ".join(f"{w}×{h}" for w, h in sizes)
    raise PiyingError(
        f"width × height is {width}×{height}, which this model was not trained on. "
        f"Nearest: {near[0]}×{near[1]}. All sizes: {listed}."
    )
