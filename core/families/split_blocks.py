"""Split blocks: stretches of a transformer's blocks through which each rank takes a share of the tokens.

The transformer's own forward pass stays as it is: hooks take a share of what its first block is given, and put
together what comes out behind the last one. All that is between has to work on tokens one by one, but for
self-attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..parallel.sequence import SequenceSplit

if TYPE_CHECKING:
    from ..parallel.group import Group


class TokenShares:
    """Shares of the tokens that a transformer's blocks are given in a call.

    Attributes:
        current: those of the stretch of blocks that is running, which its attention goes by.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._rotary: tuple[object, Any] = (None, None)
        self.current = SequenceSplit(group, 0)

    def begin(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of tokens [batch, tokens, dim], at the beginning of a stretch."""
        self.current, self._rotary = SequenceSplit(self._group, tokens.shape[1]), (None, None)
        return self.current.take(tokens)

    def of_rotary(self, rotary: Any) -> Any:
        """Return this rank's share of a rotary embedding: a tensor [batch, tokens, …], or several [tokens, …].

        The blocks of a stretch are given the same one, of which the share is made once.
        """
        if self._rotary[0] is not rotary:
            take = self.current.take
            several = isinstance(rotary, tuple)
            self._rotary = rotary, tuple(take(one[None])[0] for one in rotary) if several else take(rotary)
        return self._rotary[1]


@contextmanager
def blocks_split(
    shares: TokenShares, blocks: Sequence[torch.nn.Module], end: torch.nn.Module, *, rotary: int | str
) -> Iterator[None]:
    """Have each rank take its share of the tokens through a stretch of blocks inside the `with` block.

    Args:
        blocks: in the order in which they run; the first thing that each is given are the tokens [batch, tokens, dim].
        end: a block or a module behind them whose output [batch, tokens, …] is that of all tokens again.
        rotary: the place, or the name, of the blocks' argument that is a rotary embedding.
    """

    def before(block: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given: dict[Any, Any] = {**dict(enumerate(args)), **named}
        if block is blocks[0]:
            given[0] = shares.begin(given[0])
        given[rotary] = shares.of_rotary(given[rotary])
        return tuple(given[place] for place in range(len(args))), {name: given[name] for name in named}

    def after(_end: torch.nn.Module, _args: Any, share: torch.Tensor) -> torch.Tensor:
        return shares.current.join(share)

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(end.register_forward_hook(after).remove)
        yield
