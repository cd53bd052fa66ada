"""`python -m runner --inspect FILE`: what a file of weights is."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.checkpoints.inspect import as_json, as_text, inspect
from ..core.errors import PiyingError


def inspected(path: Path, as_table: bool) -> str:
    """Return what a file is, in lines or as one JSON object.

    Raises:
        PiyingError: it is damaged, or no file of weights.
    """
    if not path.is_file():
        raise PiyingError(f"{path}: there is no such file. Name one file of weights.")
    found = inspect(path)
    return json.dumps(as_json(found), ensure_ascii=False) if as_table else as_text(found)
