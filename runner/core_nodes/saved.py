"""What savers share: embedded texts, and how a saved file is told to the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PREFIX_TOOLTIP = (
    "The prefix for the file to save. This may include formatting information such as %date:yyyy-MM-dd% or "
    "%Empty Latent Image.width% to include values from nodes."
)
SAVER_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def embedded_texts(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """Return the texts ComfyUI embeds: `prompt`, and one for each key of `extra_pnginfo`."""
    texts = {} if prompt is None else {"prompt": json.dumps(prompt)}
    return texts | {name: json.dumps(value) for name, value in (extra_pnginfo or {}).items()}


def saved_entry(path: Path, folder: Path, kind: str) -> dict[str, str]:
    """Return ComfyUI's description of a saved file, as found under `images` in a node's results."""
    relative = path.relative_to(folder)
    subfolder = "" if relative.parent == Path() else relative.parent.as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": kind}
