"""`models_manifest.json`: the models that can be fetched, and from where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MANIFEST = Path(__file__).resolve().parents[2] / "models_manifest.json"


@dataclass(frozen=True)
class Listed:
    """One model of the manifest.

    Attributes:
        id: its name on the command line.
        family: `wan_vace`, `hunyuan_dit` or `prompt`.
        title, licence: for people.
        folder: where its files go, below the models folder.
        sources: {hub: {"repo": name}}.
    """

    id: str
    family: str
    title: str
    licence: str
    folder: str
    sources: dict[str, dict[str, str]]


@cache
def listed_models() -> tuple[Listed, ...]:
    """Return the models of the manifest, the one to begin with first in each family."""
    return tuple(Listed(**entry) for entry in json.loads(MANIFEST.read_text(encoding="utf-8"))["models"])


def first_of(family: str) -> Listed:
    """Return the model a newcomer to a family should fetch."""
    return next(model for model in listed_models() if model.family == family)
