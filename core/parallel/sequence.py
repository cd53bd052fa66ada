"""Sequence split: a share of a video's tokens for every rank, and attention over all of them.

Where the ranks divide the heads, each rank attends with its share of the heads to all tokens, for which queries, keys
and values change places by all-to-all (Jacobs et al. 2023, DeepSpeed-Ulysses, arXiv 2309.14509). Where they do not,
keys and values of all ranks are gathered, and each rank attends with all heads from its own tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .group import Group

# Queries, keys and values [batch, tokens, heads, width] → their attention, shaped like the queries.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
ALIGNED = 8  # shares begin at multiples of it, so that one token in so many is the same whoever holds it


@dataclass(frozen=True)
class SequenceSplit:
    """The tokens of one prediction, shared between the ranks of a group.

    Attributes:
        tokens: how many there are.
    """

    group: Group
    tokens: int

    @property
    def share(self) -> int:
        """How many every rank has, with those of the last ones that stand for none."""
        each = -(-self.tokens // self.group.size)
        return -(-each // ALIGNED) * ALIGNED

    @property
    def own(self) -> int:
        """How many of this rank's are tokens of the video."""
        return max(0, min(self.share, self.tokens - self.group.rank * self.share))

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of a tensor [batch, tokens, …], zeros behind its end."""
        begin = self.group.rank * self.share
        own = tensor[:, begin : begin + self.own]
        missing = self.share - self.own
        if not missing:
            return own.clone(memory_format=torch.contiguous_format)  # a view would hold all of it
        return torch.cat([own, own.new_zeros(own.shape[0], missing, *own.shape[2:])], dim=1)

    def join(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor [batch, tokens, …] whose shares the ranks have."""
        return torch.cat(self.group.all_gather(tensor), dim=1)[:, : self.tokens]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Return the attention of this rank's queries to all tokens, of which none stands for no token of the video.

        Args:
            query, key, value: [batch, share, heads, width].
            attend: computes it.
        """
        if query.shape[2] % self.group.size:
            whole_key, whole_value = self.join(key), self.join(value)
            return attend(query, whole_key, whole_value)
        some_query = self._heads_of_all(query)
        some_key = self._heads_of_all(key)[:, : self.tokens]
        some_value = self._heads_of_all(value)[:, : self.tokens]
        return self._own_of_heads(attend(some_query, some_key, some_value))

    def _heads_of_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all tokens with this rank's heads, of this rank's tokens with all heads."""
        by_rank = tensor.unflatten(2, (self.group.size, -1)).permute(2, 0, 1, 3, 4)
        given = self.group.all_to_all(by_rank)
        return given.permute(1, 0, 2, 3, 4).flatten(1, 2)

    def _own_of_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this rank's tokens with all heads, of all tokens with this rank's heads."""
        by_rank = tensor.unflatten(1, (self.group.size, -1)).permute(1, 0, 2, 3, 4)
        given = self.group.all_to_all(by_rank)
        return given.permute(1, 2, 0, 3, 4).flatten(2, 3)
