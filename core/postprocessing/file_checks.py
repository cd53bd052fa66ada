"""File checks: model files of post-processing are read before a run, whose frames may have taken an hour to make.

What reads them is imported where it is used: the nodes are declared at ComfyUI's start.
"""

from __future__ import annotations

import importlib.util

from ..host.base import Host
from .choices import INTERPOLATION, UPSCALING, spandrel_missing


def check_upscaler(model: str, host: Host) -> None:
    """Accept a name from `UPSCALING.choices`, where what reads it is installed, and reads it.

    Raises:
        PiyingError: there is no such file, no spandrel, or the file is damaged or of another kind.
    """
    path = UPSCALING.chosen(model, host)
    if path is None:
        return
    if importlib.util.find_spec("spandrel") is None:
        raise spandrel_missing(path.name, "it is not installed")
    from .upscale import upscaler_traits

    upscaler_traits(path)


def check_interpolator(model: str, host: Host) -> None:
    """Accept a name from `INTERPOLATION.choices` whose file is a RIFE network; its header is read.

    Raises:
        PiyingError: there is no such file, or it is damaged or of another kind.
    """
    path = INTERPOLATION.chosen(model, host)
    if path is not None:
        from .rife import rife_work

        rife_work(path, 1, 1)
