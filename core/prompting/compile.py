"""Compilation of a language model's step for one token; the pass over the chat runs uncompiled.

Compiled code is bound to sizes. The keys and values of all tokens are therefore in a cache of fixed size, and chats
of different lengths run by the same code. The code takes the weights as inputs: it works wherever they are, also
for the same model loaded again. CUDA graphs are off: a graph is bound to the addresses of the weights, which are
copied to the card for every run.
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
from .chat_prefix import cache_argument
from .phases import fixed_cache_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, StaticCache

    from ..planner.plan_types import Placement

log = logging.getLogger("piying")

BACKEND = "inductor"  # torch's name of its compiler


@dataclass
class _CompileState:
    """What this process knows of a model: the cache sizes it has code for, and why it can have none."""

    sizes: set[int] = field(default_factory=set)
    problem: str = ""


# Weak: a model that is dropped from memory must not be held by what is known of it.
_states: WeakKeyDictionary[torch.nn.Module, _CompileState] = WeakKeyDictionary()


def unsupported_reason(model: PreTrainedModel, placement: Placement) -> str:
    """Return why a model's step cannot be compiled; "" where it can.

    Args:
        model: in memory.
        placement: where the plan puts it.
    """
    from torch._dynamo.eval_frame import is_dynamo_supported

    if placement == "streamed":
        return "the weights are not all on the card, and streaming swaps them under the compiled code"
    if not model._can_compile_fullgraph:
        return f"transformers cannot compile {type(model).__name__}"
    if not is_dynamo_supported():
        return "torch.compile does not run on this Python"
    return _state_of(model).problem


def log_not_compiled(reason: str) -> dict[str, Any]:
    """Log why a requested compilation does not take place, and return what to record of it."""
    log.info("compile_step is left out: %s.", reason)
    return {"compiled": False, "not_compiled": reason}


@contextmanager
def compiled_step(model: PreTrainedModel, record: dict[str, Any]) -> Iterator[CompiledStep]:
    """Yield a step that generates with compiled code; its cache is freed behind the block.

    Args:
        model: on the device it computes on, for as long as the block lasts.
        record: gets `compiled`, and `not_compiled` with the reason where compilation failed.
    """
    step = CompiledStep(model, record)
    try:
        yield step
    finally:
        step.release()


class CompiledStep:
    """A fixed-size cache on the model's device, and the settings that make `generate` compile its step."""

    def __init__(self, model: PreTrainedModel, record: dict[str, Any]) -> None:
        """Allocate nothing yet."""
        self._model, self._record = model, record
        self._cache: StaticCache | None = None
        self._has_compiled = False

    def generate(self, run: Callable[..., torch.Tensor], prompt_tokens: int, max_new_tokens: int) -> torch.Tensor:
        """Return the tokens that `run` returns, by compiled code; uncompiled where there can be none.

        Compilation is off for a model with which it failed before: `run` is called once, without arguments. Where
        it fails now, `run` is called again without arguments, and the log and the record say why.

        Args:
            run: calls transformers' `generate` with the arguments it is given.
            prompt_tokens: the length of the chat.
            max_new_tokens: the longest answer.
        """
        state = _state_of(self._model)
        if state.problem:
            return run()
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._generate_compiled(run, fixed_cache_tokens(prompt_tokens, max_new_tokens))
        except TorchDynamoException as error:
            self._cache = None
            reason = short_text(error)
            # Compilation takes long to fail; this model is not tried again in this process.
            state.problem = f"it failed before ({reason})"
            self._record |= {"compiled": False, "not_compiled": reason}
            log.warning("Compiling the prompt model failed (%s). Writing without compiled code.", reason)
        # Outside of the error's handler, whose traceback holds the cache.
        return run()

    def release(self) -> None:
        """Free the cache."""
        self._cache = None
        if self._has_compiled:
            gc.collect()  # compilation leaves reference cycles that hold the cache

    def _generate_compiled(self, run: Callable[..., torch.Tensor], size: int) -> torch.Tensor:
        """Return what `run` returns with a cache for `size` tokens.

        Raises:
            TorchDynamoException: compilation fails.
        """
        from transformers import CompileConfig, StaticCache

        state = _state_of(self._model)
        if size not in state.sizes:
            self._has_compiled = True
            log.info("Compiling the prompt model's step for up to %d tokens: this answer may take long.", size)
        settings: Any = CompileConfig(dynamic=False, backend=BACKEND, mode="default")
        settings._compile_all_devices = True  # generate() compiles on cards alone otherwise
        if self._cache is None or self._cache.get_max_length() != size:
            self._cache = StaticCache(self._model.config, max_cache_len=size)
        self._cache.reset()
        tokens = run(**{cache_argument(self._model): self._cache}, compile_config=settings)
        state.sizes.add(size)
        self._record["compiled"] = True
        # Of an earlier plan, which could not be compiled and ran out of memory.
        self._record.pop("not_compiled", None)
        return tokens


def _state_of(model: PreTrainedModel) -> _CompileState:
    return _states.setdefault(model, _CompileState())
