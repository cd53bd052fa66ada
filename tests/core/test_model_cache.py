"""Model cache: what is in it is counted by the page's plan while a run puts models in."""

from __future__ import annotations

import pytest
import torch
from piying.core.executor.model_cache import cached_bytes, cached_model, evict_models


class Loading(torch.nn.Module):
    """A model during whose counting another one is loaded, as by a run in another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))

    def parameters(self, recurse: bool = True):
        cached_model("test/second", "b", lambda: torch.nn.Linear(1, 1, bias=False))
        return super().parameters(recurse)


@pytest.fixture(autouse=True)
def only_these():
    evict_models()
    yield
    evict_models()


def test_a_model_that_is_loaded_meanwhile_does_not_disturb_the_count():
    cached_model("test/first", "a", Loading)
    assert cached_bytes() == 16
    assert cached_bytes() == 20
