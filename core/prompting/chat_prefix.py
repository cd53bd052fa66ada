"""Chat prefixes: keys and values of the system prompt and the worked examples, kept in memory between answers.

They are most of a chat and the same for every line. Whether they were kept or not, they are computed in a pass of
their own: an answer does not depend on what ran before it.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .chat_template import ChatTokens, encode

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

    from .messages import Chat

MOST_PREFIXES = 6  # of a model: two languages, with the examples that are nearest to a line and with all
# Weak: a model that is dropped from memory takes its prefixes with it.
_prefixes: WeakKeyDictionary[torch.nn.Module, OrderedDict[tuple[int, ...], Any]] = WeakKeyDictionary()


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name of a model's argument for its cache, which transformers renamed from `past_key_values`."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def prefix_length(tokenizer: PreTrainedTokenizerBase, chat: Chat, encoded: ChatTokens) -> int:
    """Return how many tokens at the beginning of a chat do not depend on its last message."""
    other = encode(tokenizer, None, replace(chat, user="", opening=""), None)
    ours, theirs = encoded.inputs["input_ids"][0], other.inputs["input_ids"][0]
    count = min(len(ours), len(theirs)) - 1
    different = (ours[:count] != theirs[:count]).nonzero()
    return int(different[0]) if len(different) else count


def chat_prefix(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: Chat, encoded: ChatTokens, *, device: str
) -> DynamicCache | None:
    """Return a cache for `generate` that holds a chat's prefix; None where there is none.

    Args:
        model: on the device it computes on.
        tokenizer: of the model.
        chat: the messages.
        encoded: their tokens.
        device: of the model.
    """
    import torch
    from transformers import DynamicCache

    length = prefix_length(tokenizer, chat, encoded)
    forward: Any = model
    if length < 1 or not forward._supports_default_dynamic_cache():
        return None
    kept = _prefixes.setdefault(model, OrderedDict())
    tokens = encoded.inputs["input_ids"][:, :length]
    key = tuple(tokens[0].tolist())
    if key not in kept:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            filled = {cache_argument(model): cache}
            forward(input_ids=tokens.to(device), use_cache=True, logits_to_keep=1, **filled)
        kept[key] = _moved(cache, "cpu")
        while len(kept) > MOST_PREFIXES:
            kept.popitem(last=False)
        return cache  # a second copy would need its room on the device once more
    kept.move_to_end(key)
    return _moved(kept[key], device)


def _moved(cache: DynamicCache, device: str) -> DynamicCache:
    """Return a copy of a cache on a device."""
    found, layers = copy.copy(cache), list[Any]()
    for layer in cache.layers:
        moved: Any = copy.copy(layer)
        moved.keys, moved.values = (one.detach().to(device, copy=True) for one in (moved.keys, moved.values))
        layers.append(moved)
    found.layers = layers
    return found
