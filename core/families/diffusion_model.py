"""The parts of a model in host memory, each read when a phase needs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..executor.model_cache import kept

if TYPE_CHECKING:
    from pathlib import Path

    from ..catalog.installed_model import InstalledModel
    from ..host.base import Host
    from ..lora.catalog import LoraFile
    from ..planner.plan_types import PhasePlan

log = logging.getLogger("piying")


READ = (".safetensors", ".gguf", ".json")
CHANGED = "transformer"  # the part that LoRAs change


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
        loras: what is put on the transformer.
    """

    family: str
    title: str
    found: InstalledModel
    host: Host
    block_lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    loras: tuple[LoraFile, ...] = ()

    def identity(self, part: str) -> str:
        """Return a text that changes when the files of a part do, or what is put on it."""
        # With the part's name: several may lie in one file.
        return f"{part} {self._files(part)}" + "".join(f" {lora.identity}" for lora in self._loras(part))

    def _loras(self, part: str) -> tuple[LoraFile, ...]:
        return self.loras if part == CHANGED else ()

    def _files(self, part: str) -> str:
        places = self.found.place(part)
        inside = [path for place in places for path in place.rglob("*") if path.suffix in READ]
        files = sorted([*inside, *(place for place in places if place.is_file())])
        return f"{places} {[(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]}"

    def load(self, part: str, choice: PhasePlan) -> Any:
        """Return a part in host memory, stored as the plan says.

        LoRAs of a run before come off and those of this one go on; the weights stay as they were read.

        Raises:
            PiyingError: its files are incomplete, damaged, or another model's.
        """
        from ..lora.apply import set_loras
        from ..quantization.fp8 import use_fp8_matmul

        self.host.check_cancelled()
        key = (self._files(part), choice.compute, choice.storage)
        model = kept(f"{self.family}/{part}", key, lambda: self._read(part, choice), self.host, choice.weights)
        set_loras(model, self._loras(part), choice.compute)
        use_fp8_matmul(model, choice.fp8_matmul)
        return model

    def _read(self, part: str, choice: PhasePlan) -> Any:
        from ..quantization.file_cache import CastFile, is_wanted

        log.info("Loading %s of %s", part.replace("_", " "), self.title)
        if choice.storage != "fp8" or not is_wanted():
            return self._load(part, choice)
        cast = f"{self._files(part)} {self.block_lists.get(part, ())} {self.keep.get(part, ())}"
        file = CastFile(part, self.found.place(part), cast, choice.compute)
        return file.load(lambda path: self._load(part, choice, path))

    def _load(self, part: str, choice: PhasePlan, cast: Path | None = None) -> Any:
        """Return a part from its own files, or from what was cast of them."""
        from ..checkpoints.load import config_beside, load_component

        places = self.found.place(part)
        return load_component(
            part,
            places if cast is None else cast,
            config=None if cast is None else config_beside(part, places),
            dtype=choice.compute,
            storage=choice.storage if choice.storage == "fp8" else None,
            block_lists=self.block_lists.get(part, ()),
            keep=self.keep.get(part, ()),
            cancelled=self.host.check_cancelled,
        )
