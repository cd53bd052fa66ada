"""Streaming on a CUDA card: the same bits as the resident model, in the slots' memory, at nearly its speed."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.executor.streaming import CHUNK, streamed
from piying.core.wan.transformer import block_order, predict

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
CARD = "cuda:0"


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
    gc.collect()
    torch.cuda.empty_cache()


class Stack(torch.nn.Module):
    """Linear blocks whose weights and work can be chosen apart."""

    def __init__(self, layers, width, repeats):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.repeats = repeats
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(layers))
        for block in self.blocks:
            block.weight.data = torch.randn(width, width, generator=generator).bfloat16() / width**0.5

    def forward(self, hidden):
        for block in self.blocks:
            for _ in range(self.repeats):
                hidden = block(hidden)
        return hidden


def milliseconds(call, times=5):
    """Return the median time of a call on the card."""
    found = []
    for _ in range(times):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        found.append(begun.elapsed_time(ended))
    return sorted(found)[times // 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slots", [2, 3])
def test_wan_vace_gives_the_same_bits(dtype, slots):
    from diffusers import WanVACETransformer3DModel

    path = built_in("wan_vace").path / "transformer"
    model = WanVACETransformer3DModel.from_pretrained(path, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=generator).to(CARD, dtype)

    latents, control = noise(1, 9, 3, 6, 8), noise(1, 82, 3, 6, 8)
    given = {
        "latents": latents,
        "timestep": torch.tensor([400.0], device=CARD),
        "embeds": [noise(1, 20, 64), noise(1, 20, 64)],
        "control": control,
    }
    expected = predict(copy.deepcopy(model).to(CARD), **given)
    with streamed(model, block_order(model), CARD, slots=slots) as traffic:
        for _ in range(20):
            assert all(map(torch.equal, predict(model, **given), expected))
    assert all(tensor.device.type == "cpu" for tensor in [*model.parameters(), *model.buffers()])
    assert traffic.late == 0


@pytest.mark.parametrize("repeats", [1, 40])
@pytest.mark.parametrize("slots", [2, 3])
def test_big_blocks_give_the_same_bits(repeats, slots):
    """Copies that take longer than the work, and the other way round; blocks larger than the ring's spare."""
    model = Stack(layers=7, width=8192, repeats=repeats)
    hidden = torch.randn(256, 8192, generator=torch.Generator().manual_seed(2)).bfloat16().to(CARD)
    with streamed(model, list(model.blocks), CARD, slots=slots):
        found = [model(hidden) for _ in range(3)]
    expected = model.to(CARD)(hidden)
    assert all(torch.equal(each, expected) for each in found)


def test_a_slow_block_is_not_overwritten():
    """The card sleeps inside blocks, so that copies could overtake what still has to be read."""
    model = Stack(layers=5, width=2048, repeats=1)
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: torch.cuda._sleep(20_000_000))
    hidden = torch.randn(64, 2048, generator=torch.Generator().manual_seed(2)).bfloat16().to(CARD)
    with streamed(model, list(model.blocks), CARD):
        found = [model(hidden) for _ in range(4)]
    expected = model.to(CARD)(hidden)
    assert all(torch.equal(each, expected) for each in found)


def test_memory_is_that_of_the_slots():
    model = Stack(layers=12, width=4096, repeats=1)
    block = 4096 * 4096 * 2
    hidden = torch.zeros(1, 4096, dtype=torch.bfloat16, device=CARD)
    copy.deepcopy(model.blocks[0]).to(CARD)(hidden)  # cuBLAS keeps its workspace from the first use on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with streamed(model, list(model.blocks), CARD) as traffic:
        model(hidden)
        inside = torch.cuda.max_memory_allocated() - before
    assert 2 * block <= inside <= 2 * block + 2**20
    assert torch.cuda.memory_allocated() == before
    assert traffic.pinned_bytes <= block + 3 * CHUNK


def copy_milliseconds(size):
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=CARD)
    return milliseconds(lambda: target.copy_(pinned, non_blocking=True))


def resident_milliseconds(model, hidden):
    resident = copy.deepcopy(model).to(CARD)
    resident(hidden)
    return milliseconds(lambda: resident(hidden))


def test_copies_hide_behind_the_work():
    """Where a block's work takes far longer than its copy, streaming costs next to nothing."""
    model = Stack(layers=8, width=8192, repeats=1)
    hidden = torch.randn(4096, 8192).bfloat16().to(CARD)
    # The host fills the ring more slowly than the bus empties it: work of twelve copies is enough for both.
    work = resident_milliseconds(model, hidden) / 8
    model.repeats = int(12 * copy_milliseconds(8192 * 8192 * 2) / work) + 1
    whole = resident_milliseconds(model, hidden)
    with streamed(model, list(model.blocks), CARD) as traffic:
        model(hidden)
        passing = milliseconds(lambda: model(hidden))
    assert passing <= 1.03 * whole
    assert traffic.stall_seconds < 0.1 * 6 * whole / 1000


def test_after_a_failed_run_nothing_is_left_on_the_card():
    model = Stack(layers=6, width=4096, repeats=1)
    hidden = torch.zeros(1, 4096, dtype=torch.bfloat16, device=CARD)
    copy.deepcopy(model.blocks[0]).to(CARD)(hidden)
    before = torch.cuda.memory_allocated()
    model.blocks[3].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), streamed(model, list(model.blocks), CARD):
        model(hidden)
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    assert all(tensor.device.type == "cpu" for tensor in model.parameters())


def test_an_out_of_memory_while_it_is_set_up_leaves_nothing():
    model = Stack(layers=4, width=8192, repeats=1)
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(CARD).total_memory
    torch.cuda.set_per_process_memory_fraction((before + 8192 * 8192 * 3) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError), streamed(model, list(model.blocks), CARD):
            pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() == before
    assert all(tensor.device.type == "cpu" for tensor in model.parameters())
