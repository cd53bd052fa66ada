"""Folders that diffusers and transformers read themselves: what they raise on a bad one, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import PiyingError


@contextmanager
def reading(folder: Path, title: str) -> Iterator[None]:
    """Turn what diffusers, transformers and safetensors raise on a bad folder into a sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PiyingError(
            f"{folder}: cannot be read as a {title} model ({type(error).__name__}: {reason}). "
            "Fetch the folder again, or choose another model."
        ) from error
