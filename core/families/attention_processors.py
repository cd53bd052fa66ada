"""Attention processors: who computes the attention layers of diffusers' transformers, for a while another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def processed_by(processor: object, layers: Sequence[Any]) -> Iterator[None]:
    """Have attention layers done by another processor inside the `with` block."""
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.processor = processor
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.processor = own
