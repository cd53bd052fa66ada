"""Text embeddings kept between runs, so that a prompt seen before loads no encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..host import Host
from .store import TensorStore

if TYPE_CHECKING:
    import torch

    from .planned import PhasePlan

KEPT_PROMPTS = 64  # 4 MB each for UMT5-xxl in bf16

Encoded = dict[str, "torch.Tensor"]


def encoded(
    prompts: Sequence[str],
    identity: str,
    choice: PhasePlan,
    host: Host,
    encode: Callable[[list[str]], list[Encoded]],
) -> list[Encoded]:
    """Return what the encoder makes of each prompt, on the CPU.

    Args:
        prompts: texts, in any number and order.
        identity: the encoder's files and their state. With the number types of `choice` and the text
            it is what embeddings are remembered by.
        choice: the plan of the phase.
        encode: called with the prompts not seen before, where there are any.
    """
    store = TensorStore(host.cache_folder() / "embeddings", KEPT_PROMPTS)
    distinct = list(dict.fromkeys(prompts))
    keys = {
        text: {"encoder": identity, "as": f"{choice.compute} {choice.storage}", "prompt": text} for text in distinct
    }
    known = {text: store.get(keys[text]) for text in distinct}
    new = [text for text in distinct if known[text] is None]
    for text, tensors in zip(new, encode(new) if new else [], strict=True):
        known[text] = tensors
        store.put(keys[text], tensors)
    return [known[text] or {} for text in prompts]
