"""Current host: the one that was set, or ComfyUI where the pack runs inside it."""

from __future__ import annotations

import sys

from ..errors import PiyingError
from .base import Host

_host: Host | None = None


def set_host(host: Host | None) -> None:
    """Make `host` the one the pack uses; None returns to detection."""
    global _host
    _host = host


def get_host() -> Host:
    """Return the host that was set, or ComfyUI where the pack runs inside it.

    Raises:
        PiyingError: neither is the case.
    """
    if _host is not None:
        return _host
    if "folder_paths" in sys.modules:
        from .comfy import ComfyHost

        return ComfyHost()
    raise PiyingError(
        "Piying runs inside ComfyUI or through `python -m runner`; from your own code call set_host() first."
    )
