"""The pretend device does what a card does, and finds what a card would suffer from."""

from __future__ import annotations

import random

import pytest
import torch

from .pretend import Event, Stream, attached, sleep, stream

DEVICE = "pretend:0"
MIB = 2**20


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_it_computes_what_the_cpu_computes():
    layers = torch.nn.Sequential(
        torch.nn.Conv3d(2, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(96, 5)
    )
    given = numbers(1, 2, 4, 5, 4)
    expected = [layers(given), given.to(torch.float8_e4m3fn).float().sum(), given[:, 1:].transpose(1, 3).amax((0, 2))]
    with attached(64 * MIB):
        moved = given.to(DEVICE)
        found = [layers.to(DEVICE)(moved), moved.to(torch.float8_e4m3fn).float().sum()]
        found.append(moved[:, 1:].transpose(1, 3).amax((0, 2)))
        assert all(each.device == torch.device(DEVICE) and type(each) is torch.Tensor for each in found)
        assert all(map(torch.equal, [each.cpu() for each in found], expected))
        layers.to("cpu")


def test_nothing_is_computed_before_somebody_waits_for_it():
    with attached(MIB) as here:
        total = numbers(8).to(DEVICE).sum()
        queue = here.devices[0].compute
        assert queue.done < len(queue.tasks)
        assert total.item() == pytest.approx(float(numbers(8).sum()))
        assert queue.done == len(queue.tasks)


def test_memory_that_nobody_wrote_is_no_number():
    with attached(MIB):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
            assert torch.empty(4, dtype=dtype, device=DEVICE).float().isnan().all()


def test_a_tensor_on_the_wrong_side_is_refused():
    with attached(MIB, MIB):
        for other in ("cpu", "pretend:1"):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                numbers(4).to(DEVICE) + numbers(4).to(other)
        assert (numbers(4).to(DEVICE) + torch.tensor(1.0)).device == torch.device(DEVICE)


def test_memory_ends():
    with attached(MIB) as here:
        card = torch.get_device_module(DEVICE)
        half = torch.empty(MIB // 2, dtype=torch.uint8, device=DEVICE)
        with pytest.raises(torch.OutOfMemoryError, match="pretend:0 out of memory"):
            torch.empty(MIB // 2 + 1, dtype=torch.uint8, device=DEVICE)
        assert card.mem_get_info(DEVICE) == (MIB // 2, MIB)
        del half
        whole = torch.empty(MIB, dtype=torch.uint8, device=DEVICE)
        assert (card.memory_allocated(DEVICE), card.max_memory_allocated(DEVICE)) == (MIB, MIB)
        card.set_per_process_memory_fraction(0.25, DEVICE)
        del whole
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(MIB // 2, dtype=torch.uint8, device=DEVICE)
        assert here.devices[0].refused == 2


def test_memory_given_back_stays_with_the_process_until_its_cache_is_emptied():
    with attached(MIB, MIB) as here:
        card = torch.get_device_module(DEVICE)
        half = torch.empty(MIB // 2, dtype=torch.uint8, device=DEVICE)
        del half
        assert card.mem_get_info(DEVICE) == (MIB // 2, MIB)
        assert (card.memory_allocated(DEVICE), card.memory_reserved(DEVICE)) == (0, MIB // 2)
        again = torch.empty(MIB // 4, dtype=torch.uint8, device=DEVICE)
        assert (card.memory_allocated(DEVICE), card.memory_reserved(DEVICE)) == (MIB // 4, MIB // 2)
        del again
        whole = torch.empty(MIB, dtype=torch.uint8, device=DEVICE)
        assert (card.memory_reserved(DEVICE), card.memory_reserved("pretend:1")) == (MIB, 0)
        assert here.devices[0].refused == 0
        del whole
        card.empty_cache()
        assert card.mem_get_info(DEVICE) == (MIB, MIB)


def test_a_copy_reads_page_locked_memory_late():
    with pytest.raises(AssertionError, match="page-locked host memory.*fill_.*the host writes"), attached(MIB):
        source = torch.empty(4, pin_memory=True).fill_(1.0)
        target = torch.empty(4, device=DEVICE).copy_(source, non_blocking=True)
        source.fill_(2.0)
        assert target.tolist() == [2.0] * 4


def test_a_copy_from_other_memory_is_done_when_it_returns():
    with attached(MIB):
        source = torch.full((4,), 1.0)
        target = torch.empty(4, device=DEVICE).copy_(source, non_blocking=True)
        source.fill_(2.0)
        assert target.tolist() == [1.0] * 4


def test_the_host_reads_a_result_before_it_has_arrived():
    with pytest.raises(AssertionError, match="the host reads"), attached(MIB):
        result = torch.empty(4, pin_memory=True).fill_(0.0)
        result.copy_(torch.ones(4, device=DEVICE), non_blocking=True)
        assert result.clone().tolist() == [0.0] * 4


def side_copy(order):
    """Return the sum of ones and of what a side stream copies; `order` names what is waited for."""
    side, arrived, seen = Stream(DEVICE), Event(), torch.ones(1000, device=DEVICE)
    source = torch.empty(1000, pin_memory=True).fill_(1.0)
    slot = torch.empty(1000, device=DEVICE)
    if "memory" in order:
        side.wait_stream(torch.get_device_module(DEVICE).current_stream(DEVICE))
    with stream(side):
        slot.copy_(source, non_blocking=True)
    arrived.record(side)
    if "arrival" in order:
        torch.get_device_module(DEVICE).current_stream(DEVICE).wait_event(arrived)
    result = slot + seen
    return result.sum().item()


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_what_is_in_order_is_right_whenever_it_is_done(seed):
    with attached(MIB, chance=None if seed is None else random.Random(seed)):
        assert side_copy({"memory", "arrival"}) == 2000


@pytest.mark.parametrize("left_out", ["memory", "arrival"])
def test_what_is_not_in_order_is_found(left_out):
    with pytest.raises(AssertionError, match="nothing orders it behind"), attached(MIB):
        side_copy({"memory", "arrival"} - {left_out})


def test_what_is_used_before_it_has_arrived_is_no_number():
    with pytest.raises(AssertionError, match="nothing orders it behind"), attached(MIB):
        assert torch.tensor(side_copy({"memory"})).isnan()


def test_memory_given_back_while_another_stream_uses_it_is_found():
    def use(recorded):
        side, held = Stream(DEVICE), torch.ones(1000, device=DEVICE)
        side.wait_stream(torch.get_device_module(DEVICE).current_stream(DEVICE))
        with stream(side):
            total = held.sum()
        if recorded:
            held.record_stream(side)
        del held
        torch.get_device_module(DEVICE).current_stream(DEVICE).wait_stream(side)
        return total.item()

    with pytest.raises(AssertionError, match="release on the compute stream.*sum"), attached(MIB):
        use(recorded=False)
    with attached(MIB):
        assert use(recorded=True) == 1000


def test_time_passes_where_something_waits():
    with attached(MIB) as here:
        side, begun, ended = Stream(DEVICE), Event(enable_timing=True), Event(enable_timing=True)
        begun.record()
        sleep(2.0, DEVICE)
        with stream(side):
            sleep(5.0, DEVICE)
        done = side.record_event()
        sleep(1.0, DEVICE)
        done.wait()
        ended.record()
        ended.synchronize()
        assert begun.elapsed_time(ended) == pytest.approx(5000.0)
        assert here.timeline.seconds == pytest.approx(5.0)


def test_copies_between_devices_keep_the_order_of_both():
    with attached(MIB, MIB) as here:
        first = numbers(100).to("pretend:0") * 2
        second = first.to("pretend:1") + 1
        assert torch.equal(second.cpu(), numbers(100) * 2 + 1)
        assert [device.allocated for device in here.devices] == [512, 512]
        first.zero_()
