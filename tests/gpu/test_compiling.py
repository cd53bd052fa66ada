"""The language model's step compiled on a CUDA card: the same tokens, once for all runs, and no memory that stays."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.host.headless import HeadlessHost
from piying.core.prompting.expand import ExpandRequest, expand
from piying.core.prompting.family import PROMPT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]


def test_a_queue_of_prompts_is_the_same_compiled(tmp_path):
    host = HeadlessHost(chosen_device="cuda:0", cache=tmp_path / "cache")
    plain = ModelHandle(PROMPT, "built-in", "fp32")
    for seed in (1, 2, 3):
        request = ExpandRequest("a red circle on blue" * seed, seed=seed)
        text, record = expand(replace(plain, compile_step=True), request, host)
        assert record["compiled"] is True
        assert text == expand(plain, request, host)[0]
        gc.collect()
        # cuBLAS keeps a workspace for each stream, of 32 MiB each on Hopper, and nobody anything else.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_allocated() < 2**25
