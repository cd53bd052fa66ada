"""`python -m runner --inspect FILE`: what a file of weights is."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.checkpoints import layers
from ..core.checkpoints.inspect import as_json, as_text, inspect
from ..core.errors import PiyingError


def inspected(path: Path, as_table: bool, with_layers: bool = False) -> str:
    """Return what a file is, in lines or as one JSON object.

    Args:
        path: the file.
        as_table: JSON.
        with_layers: say also what each layer is held in where weights are stored in fewer bits, and why.

    Raises:
        PiyingError: it is damaged, or no file of weights.
    """
    if not path.is_file():
        raise PiyingError(f"{path}: there is no such file. Name one file of weights.")
    found = inspect(path)
    held = layers.layers(path) if with_layers else None
    if as_table:
        table = as_json(found) if held is None else {**as_json(found), "layers": layers.as_json(held)}
        return json.dumps(table, ensure_ascii=False)
    return as_text(found) if held is None else f"{as_text(found)}\n{layers.as_text(held)}"
