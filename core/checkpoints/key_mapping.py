"""Key mapping: from the tensors of a file to those of the module's class, names, shapes and scales."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import PiyingError
from ..files.stored_tensor import StoredTensor, TransformedTensor
from ..quantization.policy import WEIGHT
from ..quantization.stored_formats import DECLARATION, join_scales
from .components import FileComponent
from .fitness import places
from .layouts.base import LeftOut, Place, Split, SwapHalves


def translated(part: FileComponent, tensors: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    """Return one component's tensors under the names of its class.

    Args:
        part: which names of the file it has, and how it is laid out.
        tensors: those of the file.
        source: the file, for messages.

    Raises:
        PiyingError: a name is none of the layout's, or two tensors go to one place.
    """
    own = {name: tensors[full] for name, full in part.names.items()}
    for name, full in part.names.items():  # what the header's text declares has no name in the file
        said = f"{full.removesuffix(WEIGHT)}.{DECLARATION}"
        if name.endswith(WEIGHT) and said in tensors:
            own[f"{name.removesuffix(WEIGHT)}.{DECLARATION}"] = tensors[said]
    joined = join_scales(own)
    if part.layout is None:
        return joined
    try:
        placed = list(places(part.layout, {name: stored.shape for name, stored in joined.items()}))
    except PiyingError as error:
        raise PiyingError(f"{source}: {error}") from error
    return dict(new for name, place in placed for new in _moved(place, joined[name]))


def _moved(place: Place, stored: StoredTensor) -> list[tuple[str, StoredTensor]]:
    """Return the tensors of the class that one of a file becomes, by name."""
    if isinstance(place, LeftOut):
        return []
    if isinstance(place, Split):
        return list(zip(place.names, stored.split(len(place.names)), strict=True))
    if isinstance(place, SwapHalves):
        half = stored.shape[0] // 2
        return [(place.name, TransformedTensor(stored, stored.shape, lambda tensor: tensor.roll(half, dims=0)))]
    if place.squeeze and len(stored.shape) == 4:
        return [(place.name, TransformedTensor(stored, stored.shape[:2], lambda tensor: tensor[:, :, 0, 0]))]
    return [(place.name, stored)]
