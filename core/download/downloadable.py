"""Downloadable models of a family: how large, from where, and whether they are here."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..catalog.component_sizes import listed_components
from ..host.model_folders import ModelsRoot
from .checksums import Ledger
from .hubs import HuggingFace, ModelScope
from .manifest import files_of, listed_models
from .verify import presence

LORA = "lora"


@dataclass(frozen=True)
class Downloadable:
    """A model that can be fetched.

    Attributes:
        id, kind, title, licence, min_vram_gb: as in the manifest; of kind `model` or `lora`.
        bytes: of the model and the parts it needs; None where only the hub knows.
        exact: whether `bytes` is what the files weigh, and not what their weights come to.
        sources: addresses of the repositories that keep it, for a person to look at.
        folder: where it goes, below the models folder.
        here: `yes`, `part` or `no`.
        place: the folder that its first file is in, or goes to.
    """

    id: str
    kind: str
    title: str
    licence: str
    min_vram_gb: int | None
    bytes: int | None
    exact: bool
    sources: tuple[str, ...]
    folder: str
    here: str
    place: str

    def to_json(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        return asdict(self)


def downloadable_models(family: str, root: ModelsRoot) -> list[Downloadable]:
    """Return the models of a family, the one to begin with first, and its LoRAs.

    Args:
        root: the models folder. No hub is asked.
    """
    ledger = Ledger.read(root)
    places = {"huggingface": HuggingFace().endpoint, "modelscope": f"{ModelScope().endpoint}/models"}
    found = []
    for model in listed_models():
        if model.family != family or model.kind not in ("model", LORA):
            continue
        sizes = [file.bytes for file in files_of([model])]
        size, exact = sum(size for size in sizes if size is not None), None not in sizes
        if not exact:
            # The manifest counts the weights of a repository whose files only the hub can list.
            size = sum(component.file_bytes() for component in listed_components(model.id).values())
        sources = [f"{places[hub]}/{source.repo}" for file in model.files for hub, source in file.sources.items()]
        found.append(
            Downloadable(
                id=model.id,
                kind=model.kind,
                title=model.title,
                licence=model.licence,
                min_vram_gb=model.min_vram_gb,
                bytes=size if exact else size or None,
                exact=exact,
                sources=tuple(dict.fromkeys(sources)),
                folder=model.folder,
                here=presence(model, root, ledger),
                place=str((root / model.files[0].path).parent),
            )
        )
    return found


def download_folder(family: str, root: ModelsRoot) -> Path:
    """Return the models folder that most of a family's files go to; each category may have one of its own."""
    files = [file for model in listed_models() if model.family == family for file in files_of([model])]
    places = [root / f"{category}/new" for category in {file.path.partition("/")[0]: None for file in files}]
    found = Counter(place.parent.parent for place in places).most_common(1)
    return found[0][0] if found else Path(str(root))
