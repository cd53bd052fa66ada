"""How the models we read are laid out in files: names, splits, and architecture from shapes.

A layout says which component a set of tensor names is, brings the names to those of the diffusers or
transformers class, and reads that class's configuration from shapes. None of this needs torch.
"""

from __future__ import annotations

from ...hunyuan_dit.layouts import HUNYUAN_DIFFUSERS, HUNYUAN_ORIGINAL
from ...wan.layouts import WAN_DIFFUSERS, WAN_ORIGINAL
from ...wan.vae_layouts import WAN_VAE_DIFFUSERS, WAN_VAE_ORIGINAL
from .base import Layout, Shapes
from .bert import BERT
from .kl_vae import KL_DIFFUSERS, KL_ORIGINAL
from .language_model import PROMPT_MODEL
from .t5 import T5_ORIGINAL, T5_TRANSFORMERS

LAYOUTS: tuple[Layout, ...] = (
    WAN_DIFFUSERS,
    WAN_ORIGINAL,
    WAN_VAE_DIFFUSERS,
    WAN_VAE_ORIGINAL,
    T5_TRANSFORMERS,
    T5_ORIGINAL,
    BERT,
    HUNYUAN_DIFFUSERS,
    HUNYUAN_ORIGINAL,
    KL_DIFFUSERS,
    KL_ORIGINAL,
    PROMPT_MODEL,
)

__all__ = ["LAYOUTS", "Layout", "Shapes"]
