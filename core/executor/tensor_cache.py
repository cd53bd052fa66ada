"""Tensor cache: text embeddings, encoded tasks and latents kept on disk between runs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk_cache import DiskCache, entry_name
from ..errors import clipped
from ..files.dtypes import all_finite
from ..host.base import Host
from .retry import finite_check

if TYPE_CHECKING:
    import torch

    from ..planner.plan_types import PhasePlan


log = logging.getLogger("piying")


class TensorCache:
    """Tensors by name under keys, in the safetensors format, holding the `limit` last used entries."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._cache = DiskCache(folder, ".safetensors", max_entries=limit)

    def get(self, key: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
        """Return the tensors of a key, on the CPU, or None."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        data = self._cache.get(entry_name(key))
        try:
            found = None if data is None else load(data)
        except SafetensorError:  # in a type that an older version of the library does not know
            return None
        # What an older version of the pack stored may hold NaN.
        return found if found is not None and all(map(all_finite, found.values())) else None

    def put(self, key: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Write tensors under a key, and let the least recently used go."""
        from safetensors.torch import save

        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._cache.put(entry_name(key), save(plain))


KEPT_PROMPTS = 64  # 4 MB each for UMT5-xxl in bf16

Encoded = dict[str, "torch.Tensor"]


def encoded(
    prompts: Sequence[str],
    identity: str,
    choice: PhasePlan,
    host: Host,
    *,
    encode: Callable[[list[str]], list[Encoded]],
    logged: set[str] | None = None,
) -> list[Encoded]:
    """Return what the encoder makes of each prompt, on the CPU; log what it says beside the embeddings.

    Args:
        prompts: texts, in any number and order.
        identity: the encoder's files and their state. With the number types of `choice` and the text
            it is the cache key of embeddings.
        choice: the plan of the phase.
        encode: called with the prompts not seen before, where there are any. Texts under `notes` and `warnings`, in
            UTF-8 as uint8, are logged in every run, from the cache too.
        logged: lines that were logged before and are not logged again; new ones are added.

    Raises:
        NonFiniteError: an embedding is not finite; it is then not stored.
    """
    store = TensorCache(host.cache_folder() / "embeddings", KEPT_PROMPTS)
    distinct = list(dict.fromkeys(prompts))
    keys = {
        text: {"encoder": identity, "as": f"{choice.compute} {choice.storage} weighted", "prompt": text}
        for text in distinct
    }
    known = {text: store.get(keys[text]) for text in distinct}
    new = [text for text in distinct if known[text] is None]
    check = finite_check(choice)
    for text, tensors in zip(new, encode(new) if new else [], strict=True):
        for tensor in tensors.values():
            check(tensor, f"for {clipped(text, 40)!r}")
        known[text] = tensors
        store.put(keys[text], tensors)
    logged = set() if logged is None else logged
    for text in distinct:
        for name, level in (("notes", logging.INFO), ("warnings", logging.WARNING)):
            said = (known[text] or {}).get(name)
            lines = [] if said is None else said.numpy().tobytes().decode("utf-8", "replace").splitlines()
            for line in lines:
                if line not in logged:
                    log.log(level, "%s", line)
                    logged.add(line)
    return [known[text] or {} for text in prompts]


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a text that changes with any value, type or shape; the tensors are on the CPU."""
    found = hashlib.sha256()
    # Several at a time: a video is gigabytes, and hashlib releases the GIL.
    with ThreadPoolExecutor() as pool:
        for tensor in tensors:
            found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            for part in pool.map(_digest_of_one, _once(tensor)):
                found.update(part)
    return found.hexdigest()


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without what only repeats: an empty canvas is one value seen as gigabytes."""
    for axis, step in enumerate(tensor.stride()):
        tensor = tensor.narrow(axis, 0, 1) if step == 0 and tensor.shape[axis] else tensor
    return tensor


def _digest_of_one(piece: torch.Tensor) -> bytes:
    # numpy knows no bf16.
    plain = piece.float() if piece.is_floating_point() else piece
    return hashlib.sha256(plain.contiguous().numpy().data).digest()
