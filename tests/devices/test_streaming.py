"""Streaming on a device that is asynchronous: the weights of every block, at every time that is allowed."""

from __future__ import annotations

import ast
import gc
import random
import sys
import types
from pathlib import Path

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.executor import streaming
from piying.core.executor.packed_tensors import PackedTensors
from piying.core.wan.transformer import block_order, predict

from ..core.linear_layers import Float8Linear, LoRALinear
from .pretend import attached

DEVICE = "pretend:0"
MIB = 2**20
GIVEN = torch.linspace(-1, 1, 24).view(3, 8)


class Stack(torch.nn.Module):
    """Linear layers one behind the other, of two sizes, between two more."""

    def __init__(self, layers=5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)
        self.blocks = torch.nn.ModuleList()
        for index in range(layers):
            width = 32 + 16 * (index % 2)
            self.blocks.append(torch.nn.Sequential(torch.nn.Linear(32, width), torch.nn.Linear(width, 32)))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, given):
        hidden = self.first(given)
        for block in self.blocks:
            hidden = block(hidden).tanh()
        return self.last(hidden)


def run(module=streaming, *, slots=2, passes=3, chance=None, rates=None):
    """Stream a stack through a device, in chunks of 1 KiB; return the statistics and the machine.

    Args:
        rates: bytes a second over the link and of the host's filling, and seconds for anything computed.

    Raises:
        AssertionError: something is wrong in the results, left on the device, or used out of order.
    """
    model = Stack()
    expected = model(GIVEN)
    with attached(MIB, chance=chance) as here:
        here.link, here.filling, here.operation = rates or (here.link, here.filling, here.operation)
        given = GIVEN.to(DEVICE)
        with module.streamed(model, list(model.blocks), DEVICE, slots=slots) as traffic:
            found = [model(given) for _ in range(passes)]
        if not all(torch.equal(each.cpu(), expected) for each in found):
            here.timeline.faults.append("The results are wrong.")
        del given, found
        assert (here.devices[0].allocated, here.pinned) == (0, 0)
    assert all(tensor.device.type == "cpu" for tensor in model.parameters())
    return traffic, here.timeline


def largest(model):
    return max(PackedTensors(block.modules()).size for block in model.blocks)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", 1024)


@pytest.mark.parametrize(("slots", "seed"), [(2, None), (2, 0), (2, 1), (2, 2), (3, None), (3, 3), (6, 4)])
def test_every_block_finds_its_weights(monkeypatch, slots, seed):
    chance = None if seed is None else random.Random(seed)
    monkeypatch.setattr(streaming, "SPARE_CHUNKS", (seed or 0) % 3)
    traffic, _ = run(slots=slots, chance=chance)
    assert traffic.late == 0
    ring = -(-largest(Stack()) // 1024) + (seed or 0) % 3
    assert traffic.pinned_bytes == 1024 * ring


# Everything in the copier that puts something in order, or that has copies and work go on together.
ORDERS = {"wait_stream", "wait_event", "synchronize", "record", "stream"}
TRANSPARENT = {"non_blocking", "pin_memory"}


def orders():
    """Yield what each order is in the source, and how to leave it out of the source's tree."""
    tree = ast.parse(Path(streaming.__file__).read_text(encoding="utf-8"))
    copiers = [node for node in tree.body if getattr(node, "name", "") in ("SideStreamCopier", "StreamCopier")]
    for method in (node for copier in copiers for node in copier.body if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(method):
            call = node.value if isinstance(node, ast.Expr) else None
            if isinstance(node, ast.With):
                call = node.items[0].context_expr
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ORDERS:
                yield f"{method.name}: {ast.unparse(call)}"
            if isinstance(node, ast.keyword) and node.arg in TRANSPARENT:
                yield f"{method.name}: {ast.unparse(node)}"


class Neglect(ast.NodeTransformer):
    """Leaves one order out."""

    def __init__(self, order):
        self.method, _, self.text = order.partition(": ")
        self.inside, self.found = "", 0

    def visit_FunctionDef(self, node):
        self.inside = node.name
        return self.generic_visit(node)

    def _is_it(self, node):
        it = self.inside == self.method and ast.unparse(node) == self.text
        self.found += it
        return it

    def visit_Expr(self, node):
        return ast.copy_location(ast.Pass(), node) if self._is_it(node.value) else self.generic_visit(node)

    def visit_With(self, node):
        self.generic_visit(node)
        return node.body if self._is_it(node.items[0].context_expr) else node

    def visit_keyword(self, node):
        if self._is_it(node):
            node.value = ast.copy_location(ast.Constant(False), node.value)
        return node


def without(monkeypatch, order):
    """Return the streaming module with one order left out."""
    neglect = Neglect(order)
    tree = neglect.visit(ast.parse(Path(streaming.__file__).read_text(encoding="utf-8")))
    assert neglect.found == 1
    made = types.ModuleType(f"{streaming.__name__}_without")
    made.__package__ = streaming.__package__
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(compile(ast.fix_missing_locations(tree), streaming.__file__, "exec"), made.__dict__)
    made.CHUNK = 1024
    return made


def check_results(module):
    """Every result is right, and nothing is used out of order."""
    run(module, passes=2)


def check_time(module):
    """Where the link is slow it never rests, and what the compute stream waits is counted to the end."""
    traffic, timeline = run(module, slots=3, passes=2, rates=(1e6, 2e6, 1e-9))
    compute, side = timeline.queues
    assert traffic.stall_seconds == pytest.approx(compute.waited, rel=0.01), "waiting is counted"
    # What is outside the blocks is copied before; the first chunk is filled while nothing is sent.
    assert side.busy == pytest.approx(traffic.bytes / 1e6, rel=0.05), "weights come over the link"
    assert timeline.seconds - compute.busy <= 1.1 * side.busy, "the link never rests"


def check_overlap(module):
    """Where the work is slow nothing waits for a block but the first."""
    _, timeline = run(module, passes=2, rates=(1e6, 2e6, 0.1))
    compute = timeline.queues[0]
    assert compute.seconds <= compute.busy + 0.1, "copies hide behind the work"


CHECKS = [check_results, check_time, check_overlap]


@pytest.mark.parametrize("check", CHECKS)
def test_with_every_order_all_is_well(check):
    check(streaming)


@pytest.mark.parametrize("order", orders())
def test_each_order_is_needed(monkeypatch, order):
    """The pretend device finds out when one is left out."""
    module, failed = without(monkeypatch, order), []
    for check in CHECKS:
        try:
            check(module)
        except (AssertionError, RuntimeError) as error:
            failed.append(f"{check.__name__}: {error}")
            break
    assert failed
    print(order, "->", failed[0])


def stored(kind, folder):
    """Return a stack whose weights are kept in one of the ways there are."""
    from safetensors.torch import load_file, save_file

    model = Stack()
    if kind == "mapped":
        save_file(model.state_dict(), folder / "model.safetensors")
        model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    for block in model.blocks if kind in ("float8", "lora") else []:
        block[0] = Float8Linear(block[0]) if kind == "float8" else LoRALinear(block[0])
    if kind == "tied":
        model.blocks[2][0].weight = model.blocks[0][0].weight
        model.blocks[3][1].bias = model.first.bias
    if kind == "transposed":
        for block in model.blocks:
            block[0].weight = torch.nn.Parameter(block[0].weight.t().contiguous().t(), requires_grad=False)
    return model


@pytest.mark.parametrize("kind", ["float8", "lora", "mapped", "tied", "transposed"])
def test_weights_kept_in_any_way(tmp_path, kind):
    model = stored(kind, tmp_path)
    expected = model(GIVEN)
    with attached(MIB, chance=random.Random(1)) as here:
        given = GIVEN.to(DEVICE)
        with streaming.streamed(model, list(model.blocks), DEVICE):
            found = [model(given).cpu() for _ in range(2)]
        assert all(torch.equal(each, expected) for each in found)
        del given
        assert (here.devices[0].allocated, here.pinned) == (0, 0)


def vace(kind):
    from diffusers import WanVACETransformer3DModel
    from piying.core.quantization.casting import cast_module
    from piying.core.quantization.policy import CastRules

    path = built_in("wan_vace").path / "transformer"
    model = WanVACETransformer3DModel.from_pretrained(path, dtype=torch.float32).eval()
    if kind == "fp8":
        rules = CastRules(("blocks", "vace_blocks"), {"*.proj_in": "sensitive", "*.proj_out": "sensitive"})
        assert cast_module(model, "fp8", rules)
    return model


@pytest.mark.parametrize("kind", ["fp32", "fp8"])
def test_wan_vace(monkeypatch, kind):
    """Two prompts a block, two kinds of blocks, and weights in our own format."""
    monkeypatch.setattr(streaming, "CHUNK", 2**16)
    model, generator = vace(kind), torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    latents, control = noise(1, 9, 2, 4, 4), noise(1, 82, 2, 4, 4)
    embeds, timestep = [noise(1, 20, 64), noise(1, 20, 64)], torch.tensor([400.0])
    expected = predict(model, latents, timestep, embeds=embeds, control=control)
    with attached(8 * MIB) as here:
        given, moved = [latents.to(DEVICE), timestep.to(DEVICE)], [each.to(DEVICE) for each in embeds]
        with streaming.streamed(model, block_order(model), DEVICE) as traffic:
            found = predict(model, *given, embeds=moved, control=control.to(DEVICE))
        assert all(torch.equal(each.cpu(), right) for each, right in zip(found, expected, strict=True))
        assert traffic.late == 0
        del given, moved, found
        assert (here.devices[0].allocated, here.pinned) == (0, 0)


def test_blocks_out_of_turn():
    model = Stack()

    def backwards(given):
        hidden = model.first(given)
        for index in (0, 4, 2, 2, 3, 1):
            hidden = model.blocks[index](hidden)
        return model.last(hidden)

    expected = backwards(GIVEN)
    with attached(MIB):
        given = GIVEN.to(DEVICE)
        with streaming.streamed(model, list(model.blocks), DEVICE) as traffic:
            found = [backwards(given) for _ in range(2)]
        assert all(torch.equal(each.cpu(), expected) for each in found)
        assert traffic.late > 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["forward", "pre-hook", "hook"])
def test_after_a_run_that_was_stopped_nothing_is_on_the_device(when, error):
    """Copies were on their way into the slots: they have ended before the memory is anybody else's."""
    model = Stack()

    def stop(*_):
        raise error("stop")

    target = model.blocks[2]
    if when == "forward":
        target.forward = stop
    else:
        (target.register_forward_pre_hook if when == "pre-hook" else target.register_forward_hook)(stop)
    with attached(MIB) as here:
        given = GIVEN.to(DEVICE)
        with pytest.raises(error, match="stop") as raised, streaming.streamed(model, list(model.blocks), DEVICE):
            model(given)
        side = here.timeline.queues[1]
        assert side.done == len(side.tasks)
        gc.collect()
        # While somebody still looks at the traceback: results of a few layers, and no weights.
        assert here.devices[0].allocated < largest(model)
        del raised, given
        gc.collect()
        assert (here.devices[0].allocated, here.pinned) == (0, 0)
    assert all(tensor.device.type == "cpu" for tensor in model.parameters())


def test_a_block_that_arrived_in_part_is_copied_again(monkeypatch):
    """A copy that was stopped left part of a block where another was whole: neither counts as there."""
    model, read, calls = Stack(), PackedTensors.read, []
    last, hidden = model.blocks[-1], torch.linspace(-1, 1, 96).view(3, 32)
    expected = model(GIVEN), last(hidden)

    def stop_once(packed, start, into):
        calls.append(start)
        if len(calls) == 2:  # of the chunks of one block
            raise KeyboardInterrupt
        read(packed, start, into)

    with attached(MIB):
        given = GIVEN.to(DEVICE)
        with streaming.streamed(model, list(model.blocks), DEVICE):
            model(given)
            monkeypatch.setattr(PackedTensors, "read", stop_once)
            with pytest.raises(KeyboardInterrupt):
                model(given)  # while the second block arrives where the last one is
            assert torch.equal(last(hidden.to(DEVICE)).cpu(), expected[1])
            assert torch.equal(model(given).cpu(), expected[0])


def test_memory_is_that_of_the_slots():
    model = Stack()
    slots = 3 * largest(model)
    with attached(MIB) as here:
        given, device = GIVEN.to(DEVICE), here.devices[0]
        with streaming.streamed(model, list(model.blocks), DEVICE, slots=3) as traffic:
            model(given)
        # Beside the slots: two layers outside the blocks, what is given, and results of a few layers.
        assert slots <= traffic.device_bytes <= slots + 4 * 1024
        assert slots <= device.peak <= slots + 8 * 1024


@pytest.mark.parametrize("missing", [1, 2])
def test_out_of_memory_while_it_is_set_up_leaves_nothing(missing):
    """There is room for what is outside the blocks, and not for all slots."""
    model = Stack()
    with attached(4 * 512 + 2 * largest(model) - missing * 512) as here:
        with pytest.raises(torch.OutOfMemoryError), streaming.streamed(model, list(model.blocks), DEVICE):
            pass
        gc.collect()
        assert (here.devices[0].allocated, here.pinned) == (0, 0)
    assert all(tensor.device.type == "cpu" for tensor in model.parameters())
