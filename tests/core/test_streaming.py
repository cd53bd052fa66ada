"""Models whose blocks visit the device one after the other give what they give when they are whole."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.executor.packed_tensors import ALIGNMENT, PackedTensors
from piying.core.executor.streaming import HostToDeviceCopier, Traffic, streamed
from piying.core.wan.transformer import block_order, predict

from .linear_layers import Float8Linear, LoRALinear


@pytest.fixture(scope="module")
def transformer():
    from diffusers import WanVACETransformer3DModel

    path = built_in("wan_vace").path / "transformer"
    return WanVACETransformer3DModel.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def encoder():
    from transformers import UMT5EncoderModel

    path = built_in("wan_vace").path / "text_encoder"
    return UMT5EncoderModel.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def hunyuan():
    from diffusers import HunyuanDiT2DModel

    path = built_in("hunyuan_dit").path / "transformer"
    return HunyuanDiT2DModel.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


class Stack(torch.nn.Module):
    """Linear layers one behind the other, between two more."""

    def __init__(self, layers=5, width=32):
        super().__init__()
        self.first = torch.nn.Linear(8, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU()) for _ in range(layers)
        )
        self.last = torch.nn.Linear(width, 8)

    def forward(self, given):
        hidden = self.first(given)
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(hidden)


def stack(layers=5, width=32):
    torch.manual_seed(0)
    return Stack(layers, width)


GIVEN = torch.linspace(-1, 1, 24).view(3, 8)


def block_bytes(block):
    """The bytes of a block in a slot, counted by hand: every tensor begins at a multiple of 512."""
    tensors = {id(tensor): tensor for tensor in [*block.parameters(), *block.buffers()]}.values()
    return sum(-(-tensor.numel() * tensor.element_size() // 512) * 512 for tensor in tensors)


def tables(module):
    """Every name's object and memory."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: (id(tensor), tensor.data_ptr(), tensor.untyped_storage().data_ptr()) for name, tensor in named}


def vace_inputs(model):
    generator = torch.Generator().manual_seed(1)
    config = model.config
    latents = torch.randn(1, config.in_channels, 3, 6, 8, generator=generator)
    control = torch.randn(1, config.vace_in_channels, 3, 6, 8, generator=generator)
    embeds = [torch.randn(1, 20, config.text_dim, generator=generator) for _ in range(2)]
    return {"latents": latents, "timestep": torch.tensor([400.0]), "embeds": embeds, "control": control}


@pytest.mark.parametrize("slots", [2, 3, 6, 20])
def test_wan_vace(transformer, slots):
    given = vace_inputs(transformer)
    expected = [
        transformer(
            given["latents"],
            given["timestep"],
            embed,
            control_hidden_states=given["control"],
            return_dict=False,
        )[0]
        for embed in given["embeds"]
    ]
    before = tables(transformer)
    with streamed(transformer, block_order(transformer), "cpu", slots=slots) as traffic:
        for _ in range(3):
            assert all(map(torch.equal, predict(transformer, **given), expected))
    assert tables(transformer) == before
    assert traffic.late == 0
    # 6 blocks, 3 steps: each block once a step for both prompts, or once in all where all have a slot
    assert traffic.copies == (6 if slots >= 6 else 3 * 6 + slots - 1)
    assert traffic.device_bytes == min(slots, 6) * max(map(block_bytes, block_order(transformer))) + outside_bytes(
        transformer, block_order(transformer)
    )


def outside_bytes(module, blocks):
    inside = {id(tensor) for block in blocks for tensor in [*block.parameters(), *block.buffers()]}
    tensors = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return sum(tensor.nbytes for key, tensor in tensors.items() if key not in inside)


def test_diffusers_own_order_of_blocks(transformer):
    """All VACE blocks, then all main blocks, as diffusers' forward runs them."""
    latents, timestep, embeds, control = vace_inputs(transformer).values()
    arguments = {"control_hidden_states": control, "return_dict": False}
    expected = transformer(latents, timestep, embeds[0], **arguments)[0]
    with streamed(transformer, [*transformer.vace_blocks, *transformer.blocks], "cpu") as traffic:
        assert torch.equal(transformer(latents, timestep, embeds[0], **arguments)[0], expected)
    assert traffic.late == 0


def test_text_encoder(encoder):
    ids = torch.arange(2, 26).view(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    expected = encoder(ids, attention_mask=mask).last_hidden_state
    before, blocks = tables(encoder), list(encoder.encoder.block)
    with streamed(encoder, blocks, "cpu") as traffic:
        assert torch.equal(encoder(ids, attention_mask=mask).last_hidden_state, expected)
    assert tables(encoder) == before
    slots = 2 * max(map(block_bytes, blocks))
    assert traffic.device_bytes == slots + outside_bytes(encoder, blocks)


def test_hunyuan_dit_with_skips_and_a_pooler_that_reads_weights(hunyuan):
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    heads = hunyuan.config.attention_head_dim
    arguments = {
        "encoder_hidden_states": noise(2, 77, 64),
        "text_embedding_mask": torch.ones(2, 77),
        "encoder_hidden_states_t5": noise(2, 256, 64),
        "text_embedding_mask_t5": torch.ones(2, 256),
        "image_rotary_emb": get_2d_rotary_pos_embed(heads, ((0, 0), (4, 4)), (4, 4), output_type="pt"),
        "return_dict": False,
    }
    latents, timestep = noise(2, 4, 8, 8), torch.tensor([300.0, 300.0])
    expected = hunyuan(latents, timestep, **arguments)[0]
    before = tables(hunyuan)
    with streamed(hunyuan, list(hunyuan.blocks), "cpu") as traffic:
        for _ in range(2):
            assert torch.equal(hunyuan(latents, timestep, **arguments)[0], expected)
    assert tables(hunyuan) == before
    assert traffic.late == 0


def test_lora_layers(transformer):
    """Adapters are streamed with the block they were added to."""
    model = copy.deepcopy(transformer)
    torch.manual_seed(3)
    for block in [model.blocks[1], model.vace_blocks[0]]:
        block.attn1.to_q = LoRALinear(block.attn1.to_q)
    given = vace_inputs(model)
    expected, without = predict(model, **given), predict(transformer, **given)
    assert not torch.equal(expected[0], without[0])
    with streamed(model, block_order(model), "cpu"):
        assert all(map(torch.equal, predict(model, **given), expected))


def test_peft_layers(transformer):
    peft = pytest.importorskip("peft", reason="peft is optional")
    model = copy.deepcopy(transformer)
    torch.manual_seed(3)
    targets = ["to_q", "to_v", "proj_out"]
    model.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    given = vace_inputs(model)
    expected = predict(model, **given)
    with streamed(model, block_order(model), "cpu"):
        assert all(map(torch.equal, predict(model, **given), expected))


def test_float8_layers():
    model = stack(width=33)
    for block in model.blocks:
        block[0] = Float8Linear(block[0])
    expected, before = model(GIVEN), tables(model)
    with streamed(model, list(model.blocks), "cpu") as traffic:
        assert torch.equal(model(GIVEN), expected)
        assert model.blocks[4][0].weight.dtype == torch.float8_e4m3fn
    assert tables(model) == before
    assert traffic.bytes / traffic.copies == 3 * 512 + 512 + 512  # 33×33 bytes, 33×4, 33×2


def test_own_fp8_layers(transformer):
    from piying.core.quantization.casting import cast_module
    from piying.core.quantization.policy import CastRules

    model = copy.deepcopy(transformer)
    assert cast_module(
        model, "fp8", CastRules(("blocks", "vace_blocks"), {"*.proj_in": "sensitive", "*.proj_out": "sensitive"})
    )
    given = vace_inputs(model)
    expected = predict(model, **given)
    with streamed(model, block_order(model), "cpu"):
        assert all(map(torch.equal, predict(model, **given), expected))


def test_weights_mapped_from_a_file_stay_mapped(tmp_path):
    from safetensors.torch import load_file, save_file

    model = stack()
    expected = model(GIVEN)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    before = tables(model)
    with streamed(model, list(model.blocks), "cpu"):
        assert torch.equal(model(GIVEN), expected)
    assert tables(model) == before


@pytest.mark.parametrize("where", ["within a block", "between blocks", "block and outside"])
def test_tied_parameters(where):
    model = stack()
    first = model.blocks[0]
    if where == "within a block":
        first.append(torch.nn.Linear(32, 32))
        first[2].weight = first[0].weight
    elif where == "between blocks":
        model.blocks[3][0].weight = first[0].weight
    else:
        model.first = torch.nn.Sequential(model.first, torch.nn.Linear(32, 32))
        model.first[1].weight = first[0].weight
    expected, before = model(GIVEN), tables(model)
    with streamed(model, list(model.blocks), "cpu") as traffic:
        assert torch.equal(model(GIVEN), expected)
        if where == "within a block":
            assert first[2].weight is first[0].weight
    assert tables(model) == before
    sizes = [block_bytes(block) for block in model.blocks]
    assert traffic.bytes == sum(sizes) + sizes[0]  # each once, and the first again for the next step


def test_a_module_used_inside_and_outside_the_blocks_is_outside():
    model = stack()
    shared = torch.nn.Linear(32, 32)
    model.blocks[2].append(shared)
    model.first = torch.nn.Sequential(model.first, shared)
    expected = model(GIVEN)
    with streamed(model, list(model.blocks), "cpu") as traffic:
        assert torch.equal(model(GIVEN), expected)
    assert traffic.bytes == 6 * block_bytes(stack().blocks[0])


@pytest.mark.parametrize(
    ("make", "stride"),
    [
        (lambda w: w[:32].t(), (1, 32)),
        (lambda w: w[::2], (32, 1)),
        (lambda w: w[:1].expand(32, 32), (32, 1)),
        (lambda w: w[7:39], (32, 1)),
    ],
)
def test_any_strides(make, stride):
    """A transposed weight keeps its order in memory; holes in it are not copied."""
    model = stack(width=32)
    torch.manual_seed(4)
    weight = make(torch.randn(64, 32))
    # Products round by the order in memory: what is expected comes from a weight in the order that is streamed.
    compact = torch.empty_strided(weight.shape, stride).copy_(weight)
    model.blocks[1][0].weight = torch.nn.Parameter(compact, requires_grad=False)
    expected, seen = model(GIVEN), []
    model.blocks[1][0].weight = torch.nn.Parameter(weight, requires_grad=False)
    model.blocks[1].register_forward_hook(lambda block, *_: seen.append(block[0].weight.stride()))
    with streamed(model, list(model.blocks), "cpu"):
        assert torch.equal(model(GIVEN), expected)
    assert seen == [stride]


def test_inference_mode_inside_and_outside():
    model = stack()
    expected = model(GIVEN)
    with torch.inference_mode(), streamed(model, list(model.blocks), "cpu"):
        assert torch.equal(model(GIVEN), expected)
    with streamed(model, list(model.blocks), "cpu"):
        with torch.inference_mode():
            assert torch.equal(model(GIVEN), expected)
        assert torch.equal(model(GIVEN), expected)
    with torch.enable_grad(), streamed(model, list(model.blocks), "cpu"):
        assert torch.equal(model(GIVEN), expected)


def test_only_the_running_block_is_bound():
    """What is not running is in host memory, so that a state dict or a second model sees the weights."""
    model, own = stack(), []
    pointers = [block[0].weight.data_ptr() for block in model.blocks]

    def look(*_):
        own.append([block[0].weight.data_ptr() == p for block, p in zip(model.blocks, pointers, strict=True)])

    for block in model.blocks:
        block.register_forward_hook(look)
    with streamed(model, list(model.blocks), "cpu"):
        model(GIVEN)
    assert own == [[other != running for other in range(5)] for running in range(5)]


@pytest.mark.parametrize("when", ["forward", "pre-hook", "hook"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_or_a_cancelled_run_all_is_as_before(when, error):
    model = stack()
    expected, before = model(GIVEN), tables(model)

    def stop(*_):
        raise error("stop")

    target = model.blocks[2]
    if when == "forward":
        target.forward = stop
    else:
        register = target.register_forward_pre_hook if when == "pre-hook" else target.register_forward_hook
        handle = register(stop)
    with pytest.raises(error, match="stop"), streamed(model, list(model.blocks), "cpu"):
        model(GIVEN)
    assert tables(model) == before
    if when == "forward":
        del target.forward
    else:
        handle.remove()
    assert all(not block._forward_hooks and not block._forward_pre_hooks for block in model.blocks)
    assert torch.equal(model(GIVEN), expected)


def test_it_goes_on_after_an_error_that_was_caught_inside():
    model = stack()
    expected, fail = model(GIVEN), [True]

    def stop_once(*_):
        if fail.pop() if fail else False:
            raise RuntimeError("once")

    model.blocks[2].register_forward_pre_hook(stop_once)
    with streamed(model, list(model.blocks), "cpu") as traffic:
        with pytest.raises(RuntimeError, match="once"):
            model(GIVEN)
        assert torch.equal(model(GIVEN), expected)
    assert traffic.late == 1


def test_a_copy_that_failed_half_way_is_made_again(monkeypatch):
    model = stack()
    expected, fail, send = model(GIVEN), [False, False, True], HostToDeviceCopier.send

    def breaks_once(self, flat, slot):
        if fail and fail.pop(0):
            self.slots[slot].fill_(7)
            raise MemoryError("half way")
        send(self, flat, slot)

    monkeypatch.setattr(HostToDeviceCopier, "send", breaks_once)
    with streamed(model, list(model.blocks), "cpu"):
        with pytest.raises(MemoryError):
            model(GIVEN)
        assert torch.equal(model(GIVEN), expected)


@pytest.mark.parametrize("allocation", range(2))
def test_an_error_while_it_is_set_up_leaves_no_trace(monkeypatch, allocation):
    model, before = stack(), None
    before, count, empty = tables(model), [], torch.empty

    def full(*arguments, **options):
        if options.get("dtype") is torch.uint8:
            count.append(None)
            if len(count) > allocation:
                raise torch.OutOfMemoryError("full")
        return empty(*arguments, **options)

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError), streamed(model, list(model.blocks), "cpu"):
        pass
    monkeypatch.undo()
    assert tables(model) == before
    assert all(not block._forward_hooks and not block._forward_pre_hooks for block in model.blocks)


def test_blocks_out_of_turn_are_fetched_then():
    model = stack()

    def backwards():
        hidden = model.first(GIVEN)
        for index in (0, 4, 2, 2, 3, 1):
            hidden = model.blocks[index](hidden)
        return model.last(hidden)

    expected = backwards()
    with streamed(model, list(model.blocks), "cpu") as traffic:
        assert torch.equal(backwards(), expected)
        assert traffic.late == 3  # 4, 2 and 1; 3 was sent ahead while 2 ran
        assert torch.equal(backwards(), expected)


def test_a_block_may_come_twice_in_the_order():
    model = stack(3)
    first, second, third = model.blocks
    order = [first, second, first, third]

    def two_prompts():
        hidden = [model.first(GIVEN), model.first(-GIVEN)]
        for block in order:
            hidden = [block(each) for each in hidden]
        return model.last(torch.cat(hidden))

    expected = two_prompts()
    with streamed(model, order, "cpu") as traffic:
        assert torch.equal(two_prompts(), expected)
        assert torch.equal(two_prompts(), expected)
    assert traffic.late == 0
    assert traffic.bytes < 9 * block_bytes(first)


class Buffers(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps count of the byte tensors that are alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self.made = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.empty.memory_format and result.dtype is torch.uint8:
            storage = result.untyped_storage()
            self.alive[storage._cdata] = storage.nbytes()
            self.made += 1
            self.most = max(self.most, sum(self.alive.values()))
            weakref.finalize(storage, self.alive.pop, storage._cdata)
        return result


@pytest.mark.parametrize("slots", [2, 3])
def test_memory_is_that_of_the_slots(transformer, slots):
    """Nothing is allocated per block or per step, and nothing is left."""
    given, order = vace_inputs(transformer), block_order(transformer)
    with Buffers() as buffers:
        with streamed(transformer, order, "cpu", slots=slots):
            for _ in range(3):
                predict(transformer, **given)
            assert len(buffers.alive) == slots
        assert buffers.made == slots
        assert buffers.most == slots * max(map(block_bytes, order))
        assert not buffers.alive


def test_no_slot_is_left_behind_by_a_failed_run():
    """Not even while the error, whose traceback holds the blocks' calls, is still being looked at."""
    model = stack()
    model.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with Buffers() as buffers:
        with pytest.raises(ZeroDivisionError) as error, streamed(model, list(model.blocks), "cpu"):
            model(GIVEN)
        assert buffers.made == 2
        assert not buffers.alive
    assert error.traceback


def test_what_cannot_be_streamed_is_refused():
    model = stack()
    with pytest.raises(ValueError, match="slots is 1"), streamed(model, list(model.blocks), "cpu", slots=1):
        pass
    with pytest.raises(ValueError, match="order names no block"), streamed(model, [], "cpu"):
        pass
    with pytest.raises(ValueError, match="not inside the module"), streamed(model, [torch.nn.Linear(2, 2)], "cpu"):
        pass
    nested = [model.blocks[0], model.blocks[0][0]]
    with pytest.raises(ValueError, match="inside another"), streamed(model, nested, "cpu"):
        pass
    with pytest.raises(ValueError, match="on meta"), streamed(model.to("meta"), list(model.blocks), "cpu"):
        pass


def test_tensors_of_a_class_of_their_own_are_refused():
    class Packed(torch.nn.Parameter):
        pass

    model = stack()
    model.blocks[0][0].weight = Packed(model.blocks[0][0].weight.detach())
    with pytest.raises(TypeError, match="Packed cannot be streamed"), streamed(model, list(model.blocks), "cpu"):
        pass


@pytest.mark.parametrize("chunk", [1, 100, 512, 4096, 10**6])
def test_a_flat_block_is_read_in_chunks_of_any_size(chunk):
    """As the pinned ring of a CUDA card reads it."""
    torch.manual_seed(5)
    module = torch.nn.Module()
    module.a = torch.nn.Parameter(torch.randn(17, 5))
    module.b = torch.nn.Parameter(torch.randn(3).to(torch.float8_e4m3fn), requires_grad=False)
    module.c = torch.nn.Parameter(torch.randn(6, 4).to(torch.bfloat16).t(), requires_grad=False)
    module.register_buffer("d", torch.tensor([True, False]))
    module.register_buffer("e", torch.zeros(0))
    module.register_buffer("f", torch.tensor(3))
    flat = PackedTensors([module])
    assert flat.size % ALIGNMENT == 0
    buffer = torch.zeros(flat.size, dtype=torch.uint8)
    for start in range(0, flat.size, chunk):
        flat.read(start, buffer[start : start + chunk])
    for original, view in zip(flat.originals, flat.views(buffer), strict=True):
        assert (view.dtype, view.shape, view.stride()) == (original.dtype, original.shape, original.stride())
        assert view.storage_offset() * view.element_size() % ALIGNMENT == 0
        assert torch.equal(view.float(), original.float())


def test_the_lane_of_other_devices_stages_what_it_sends():
    """Devices without streams of their own; here the meta device, which only counts."""
    model, traffic = stack(), Traffic()
    flat = PackedTensors([model.blocks[0][0]])
    lane = HostToDeviceCopier(torch.device("meta"), flat.size, 2, traffic)
    lane.send(flat, 1)
    assert lane.slots[1].device.type == "meta"
    assert traffic.device_bytes == 2 * flat.size
