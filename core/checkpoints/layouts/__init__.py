"""Layouts: how components lie in files: names, splits, and the architecture from shapes.

A layout says which component a set of tensor names is, brings the names to those of the diffusers or
transformers class, and reads that class's configuration from shapes. None of this needs torch. What
families share is here; what one of them has alone is in its own package.
"""

from __future__ import annotations

from .base import Layout, Shapes
from .t5 import T5_GGUF, T5_ORIGINAL, T5_TRANSFORMERS

# A T5 is a part of several families; what several share belongs to none.
SHARED_LAYOUTS: tuple[Layout, ...] = (T5_TRANSFORMERS, T5_ORIGINAL, T5_GGUF)

__all__ = ["SHARED_LAYOUTS", "Layout", "Shapes"]
