"""Tensors that are worth keeping between runs: text embeddings, and latents until their video is safe."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger("piying")


class TensorStore:
    """A folder of safetensors files, one per key, holding the `limit` last used.

    A file that cannot be read counts as absent and a file that cannot be written is left out: the
    store saves time and is never needed for a result.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def get(self, key: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
        """Return the tensors kept under a key, on the CPU, or None."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(key)
        try:
            tensors: dict[str, torch.Tensor] = load_file(path)
            os.utime(path)
        except (OSError, SafetensorError):
            return None
        return tensors

    def put(self, key: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep tensors under a key, and let the least recently used go."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._path(key)
        beside = path.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, beside)
            beside.replace(path)
            self._let_go()
        except (OSError, SafetensorError) as error:
            log.debug("%s cannot be written (%s): nothing is kept for the next run.", path, error)
            with suppress(OSError):
                beside.unlink()

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True, ensure_ascii=True, default=str)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"

    def _let_go(self) -> None:
        files = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[self._limit :]:
            path.unlink(missing_ok=True)
