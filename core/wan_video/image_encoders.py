"""The image encoder of a Wan2.1 image-to-video model, among the CLIP encoders that lie in a models folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import PiyingError

if TYPE_CHECKING:
    from pathlib import Path

    from ..catalog.discovery import FileCatalog
    from ..catalog.installed_model import InstalledModel

Shapes = Mapping[str, tuple[int, ...]]
# Others of the same shape were trained on other texts: no header tells them apart, so the published name comes first.
PUBLISHED = "clip_vision_h"


def width_read(transformer: Shapes) -> int | None:
    """Return the width of the embeddings of pictures that a transformer reads; None where it reads none.

    Args:
        transformer: the shapes of WanTransformer3DModel.
    """
    return transformer.get("condition_embedder.image_embedder.norm1.weight", (None,))[0]


def find_image_encoder(
    width: int, files: FileCatalog, lenders: Sequence[InstalledModel]
) -> dict[str, tuple[Path, ...]]:
    """Return the first image encoder of a width: of models in folders, then of files; none where there is none."""
    from ..checkpoints.layouts.clip_vision import CLIP_VISION_TITLE

    encoders = [one.path for one in files.all if one.found.readable and one.title == CLIP_VISION_TITLE]
    encoders.sort(key=lambda path: not path.name.startswith(PUBLISHED))
    lent = [place for one in lenders for (place,) in files.lent_by([one], ("image_encoder",)).values()]
    return next(({"image_encoder": (place,)} for place in (*lent, *encoders) if _width(place, files) == width), {})


def _width(encoder: Path, files: FileCatalog) -> int:
    """Return the width of what an encoder makes; 0 where it cannot be read."""
    try:
        shapes = files.shapes(encoder, "image_encoder")
    except PiyingError:  # which the judgement of its model tells
        return 0
    return next((shape[0] for name, shape in shapes.items() if name.endswith("embeddings.class_embedding")), 0)
