"""Downloadable models of a family: how large, from where, and whether they are here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..catalog.component_sizes import listed_components
from .checksums import Ledger
from .hubs import HuggingFace, ModelScope
from .manifest import ListedModel, files_of, listed_models
from .verify import presence


@dataclass(frozen=True)
class Downloadable:
    """A model that can be fetched.

    Attributes:
        id, title, licence, min_vram_gb: as in the manifest.
        bytes: of the model and the parts it needs; None where nobody knows before the hub is asked.
        exact: whether `bytes` is what the files weigh, and not what their weights come to.
        sources: addresses of the repositories that keep it, for a person to look at.
        folder: where it goes, below the models folder.
        here: `yes`, `part` or `no`.
    """

    id: str
    title: str
    licence: str
    min_vram_gb: int | None
    bytes: int | None
    exact: bool
    sources: tuple[str, ...]
    folder: str
    here: str

    def to_json(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        return asdict(self)


def downloadable_models(family: str, root: Path) -> list[Downloadable]:
    """Return the models of a family, the one to begin with first.

    Args:
        root: the models folder. No hub is asked.
    """
    ledger = Ledger.read(root)
    return [
        _offer(model, root, ledger) for model in listed_models() if (model.family, model.kind) == (family, "model")
    ]


def _offer(model: ListedModel, root: Path, ledger: Ledger) -> Downloadable:
    sizes = [file.bytes for file in files_of([model])]
    known = sum(size for size in sizes if size is not None)
    exact = None not in sizes
    return Downloadable(
        id=model.id,
        title=model.title,
        licence=model.licence,
        min_vram_gb=model.min_vram_gb,
        bytes=known if exact else _estimate(model),
        exact=exact,
        sources=_addresses(model),
        folder=model.folder,
        here=presence(model, root, ledger),
    )


def _estimate(model: ListedModel) -> int | None:
    """Return the bytes of the weights, from their counts in the manifest."""
    return sum(component.file_bytes() for component in listed_components(model.id).values()) or None


def _addresses(model: ListedModel) -> tuple[str, ...]:
    places = {"huggingface": HuggingFace().endpoint, "modelscope": f"{ModelScope().endpoint}/models"}
    found = [f"{places[hub]}/{source.repo}" for file in model.files for hub, source in file.sources.items()]
    return tuple(dict.fromkeys(found))
