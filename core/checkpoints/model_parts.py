"""The parts of a model in host memory, each read when a phase needs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..memory.kept import kept

if TYPE_CHECKING:
    from ..host import Host
    from ..memory.planned import PhasePlan
    from .found import FoundModel

log = logging.getLogger("piying")


@dataclass(frozen=True)
class ModelParts:
    """Where a model's parts are, and how they are cast.

    Attributes:
        family: the slot's name among the models kept, such as `wan_vace`.
        title: the model's name, for people.
        found: where its parts are.
        host: asked for cancelling while files are read.
        block_lists: for each part the dotted names of its lists of blocks.
        keep: for each part the layers that FP8 leaves alone.
    """

    family: str
    title: str
    found: FoundModel
    host: Host
    block_lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def identity(self, part: str) -> str:
        """Return a text that changes when the files of a part do."""
        places = self.found.place(part)
        inside = [path for place in places for path in place.rglob("*") if path.suffix in (".safetensors", ".json")]
        files = sorted([*inside, *(place for place in places if place.is_file())])
        return f"{places} {[(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]}"

    def load(self, part: str, choice: PhasePlan) -> Any:
        """Return a part in host memory, stored as the plan says.

        Raises:
            PiyingError: its files are incomplete, damaged, or another model's.
        """
        from ..memory.fp8 import use_fp8_matmul

        self.host.check_cancelled()
        key = (self.identity(part), choice.compute, choice.storage)
        model = kept(f"{self.family}/{part}", key, lambda: self._read(part, choice), self.host, choice.weights)
        use_fp8_matmul(model, choice.fp8_matmul)
        return model

    def _read(self, part: str, choice: PhasePlan) -> Any:
        from .load import load_component

        log.info("Loading %s of %s", part.replace("_", " "), self.title)
        return load_component(
            part,
            self.found.place(part),
            dtype=choice.compute,
            storage=choice.storage if choice.storage == "fp8" else None,
            block_lists=self.block_lists.get(part, ()),
            keep=self.keep.get(part, ()),
            cancelled=self.host.check_cancelled,
        )
