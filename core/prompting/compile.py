"""A language model whose step for one token is compiled; the pass over the prompt runs as it always does.

Compiled code is bound to sizes. The keys and values of all tokens therefore lie in a cache of one size, and prompts
of other lengths run by the same code. It takes the weights as inputs: it holds none of them, serves them wherever
they lie, and serves the same model read again. No CUDA graphs are recorded: a graph is bound to the places of the
weights, which come to the card anew for every run.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..errors import short_text
from .phases import fixed_cache_tokens

if TYPE_CHECKING:
    import torch
    from transformers import CompileConfig, PreTrainedModel, StaticCache

log = logging.getLogger("piying")


BACKEND = "inductor"  # torch's name of its compiler


@dataclass
class _Known:
    """What this process knows of a model: the sizes it has code for, and why it can have none."""

    sizes: set[int] = field(default_factory=set)
    problem: str = ""


_known: WeakKeyDictionary[torch.nn.Module, _Known] = WeakKeyDictionary()


def why_not(model: PreTrainedModel, placement: str) -> str:
    """Return why a model's step is not compiled where that was asked for; "" where it is.

    Args:
        model: in memory.
        placement: where the plan has it, one of `resident`, `streamed` and `cpu`.
    """
    from torch._dynamo.eval_frame import is_dynamo_supported

    if placement == "streamed":
        return "the weights are not all on the card, and streaming swaps them under the compiled code"
    if not model._can_compile_fullgraph:
        return f"transformers cannot compile {type(model).__name__}"
    if not is_dynamo_supported():
        return "torch.compile does not run on this Python"
    return _of(model).problem


def left_out(reason: str) -> dict[str, Any]:
    """Say why nothing is compiled where that was asked for, and return what to note of it."""
    log.info("compile_step is left out: %s.", reason)
    return {"compiled": False, "not_compiled": reason}


@contextmanager
def compiled_step(model: PreTrainedModel, notes: dict[str, Any]) -> Iterator[CompiledStep]:
    """Give what has a model write with compiled code inside the block; its cache is let go behind it.

    Args:
        model: on the device it computes on, for as long as the block lasts.
        notes: is told `compiled`, and `not_compiled` with the reason where compiling failed.
    """
    step = CompiledStep(model, notes)
    try:
        yield step
    finally:
        step.let_go()


class CompiledStep:
    """A cache of one size on the model's device, and the settings that make `generate` compile its step."""

    def __init__(self, model: PreTrainedModel, notes: dict[str, Any]) -> None:
        """Make nothing yet."""
        self._model, self._notes = model, notes
        self._cache: StaticCache | None = None
        self._made = False

    def use(self, write: Callable[..., torch.Tensor], prompt_tokens: int, max_new_tokens: int) -> torch.Tensor:
        """Return the tokens that `write` gives, by compiled code; where that cannot be made, without, and say so once.

        Args:
            write: calls `generate` with the arguments it is given; called again after compiling failed.
            prompt_tokens: the length of the prompt.
            max_new_tokens: the longest answer.
        """
        written = None
        if not _of(self._model).problem:
            written = self._compiled(write, fixed_cache_tokens(prompt_tokens, max_new_tokens))
        # Outside of what handles the error, whose frames hold the cache.
        return write() if written is None else written

    def let_go(self) -> None:
        """Free the cache."""
        self._cache = None
        if self._made:
            gc.collect()  # compiling leaves cycles that hold the cache

    def _compiled(self, write: Callable[..., torch.Tensor], tokens: int) -> torch.Tensor | None:
        """Return what `write` gives with a cache for so many tokens; None where no code can be made."""
        from torch._dynamo.exc import TorchDynamoException

        self._announce(tokens)
        try:
            written = write(past_key_values=self._cache_of(tokens), compile_config=_settings())
        except TorchDynamoException as error:
            self._give_up(error)
            return None
        _of(self._model).sizes.add(tokens)
        self._notes["compiled"] = True
        return written

    def _cache_of(self, tokens: int) -> StaticCache:
        """Return an empty cache for so many tokens; the one at hand, where its size is right."""
        from transformers import StaticCache

        if self._cache is None or self._cache.get_max_length() != tokens:
            self._cache = StaticCache(self._model.config, max_cache_len=tokens)
        self._cache.reset()
        return self._cache

    def _announce(self, tokens: int) -> None:
        if tokens not in _of(self._model).sizes:
            self._made = True
            log.info("Compiling the prompt model's step for up to %d tokens: this answer may take long.", tokens)

    def _give_up(self, error: Exception) -> None:
        """Note why there is no code, and do not try again with this model."""
        self._cache = None
        reason = short_text(error)
        _of(self._model).problem = f"it failed before ({reason})"
        self._notes |= {"compiled": False, "not_compiled": reason}
        log.warning("Compiling the prompt model failed (%s). Writing without compiled code.", reason)


def _of(model: PreTrainedModel) -> _Known:
    return _known.setdefault(model, _Known())


def _settings() -> CompileConfig:
    """Return how `generate` is to compile: every size by itself, and without CUDA graphs."""
    from transformers import CompileConfig

    settings: Any = CompileConfig(dynamic=False, backend=BACKEND, mode="default")
    settings._compile_all_devices = True  # generate() leaves a CPU out otherwise
    return settings  # type: ignore[no-any-return]
