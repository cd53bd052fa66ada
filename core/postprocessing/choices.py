"""Widget choices of the post-processing nodes, which nodes declare and core compares; free of heavy imports."""

from __future__ import annotations

import sys
from importlib import metadata

from ..errors import PiyingError
from .model_files import ModelKind

# These values are saved in workflow files: changing one breaks the workflows that use it.
NONE = "none"
LANCZOS, BICUBIC = "lanczos", "bicubic"
METHODS = (LANCZOS, BICUBIC)
OPTICAL_FLOW = "optical flow"

UPSCALING = ModelKind("upscale_models", (NONE,))
INTERPOLATION = ModelKind("frame_interpolation", (OPTICAL_FLOW,))


def spandrel_missing(name: str, reason: str) -> PiyingError:
    """Return an error that says how to install spandrel, which has to leave torch as it is.

    spandrel needs torchvision, and that comes for one version and build of torch.
    """
    version, _, build = metadata.version("torch").partition("+")
    index = f" --extra-index-url https://download.pytorch.org/whl/{build}" if build else ""
    command = f'"{sys.executable}" -m pip install spandrel torchvision "torch=={version}"{index}'
    return PiyingError(
        f"model {name!r} is read with the Python package spandrel, which cannot be used ({reason}). Set model to "
        f"none, or install it with the torchvision that goes with this torch: `{command}`"
    )
