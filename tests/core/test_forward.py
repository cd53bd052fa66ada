"""Wan VACE a block at a time for several prompts: the same numbers as diffusers' own forward, in less memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.wan.transformer import block_order, predict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@pytest.fixture(scope="module")
def transformer():
    from diffusers import WanVACETransformer3DModel

    path = built_in("wan_vace").path / "transformer"
    return WanVACETransformer3DModel.from_pretrained(path, dtype=torch.float32).eval()


def larger(layers=12, vace_layers=(0, 2, 4, 6, 8, 10)):
    """A transformer of the 1.3B's shape in small, with random weights."""
    from diffusers import WanVACETransformer3DModel

    torch.manual_seed(0)
    model = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=96,
        num_layers=layers,
        vace_layers=list(vace_layers),
        vace_in_channels=12,
    )
    return model.eval()


def inputs(model, prompts=2, frames=3, batch=1, control_frames=None, words=20):
    generator = torch.Generator().manual_seed(1)
    config = model.config

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    latents = noise(batch, config.in_channels, frames, 6, 8)
    control = noise(batch, config.vace_in_channels, control_frames or frames, 6, 8)
    return {
        "latents": latents,
        "timestep": torch.full((batch,), 400.0),
        "embeds": [noise(batch, words, config.text_dim) for _ in range(prompts)],
        "control": control,
    }


def plain(model, latents, timestep, embeds, control, scale=None):
    with torch.no_grad():
        return [
            model(
                latents,
                timestep,
                embed,
                control_hidden_states=control,
                control_hidden_states_scale=scale,
                return_dict=False,
            )[0]
            for embed in embeds
        ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 4])
def test_equals_diffusers(transformer, prompts, frames):
    given = inputs(transformer, prompts, frames)
    with torch.no_grad():
        found = predict(transformer, **given)
    assert_same(found, plain(transformer, **given))
    if prompts > 1:
        assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("vace_layers", [(0,), (0, 1, 2, 3), (0, 3), (0, 2)])
def test_equals_diffusers_wherever_the_vace_layers_are(vace_layers):
    model = larger(4, vace_layers)
    given = inputs(model)
    with torch.no_grad():
        assert_same(predict(model, **given), plain(model, **given))


def test_each_layer_has_its_own_strength(transformer):
    given, scale = inputs(transformer), torch.tensor([0.3, 1.7])
    expected = plain(transformer, **given, scale=scale)
    with torch.no_grad():
        assert_same(predict(transformer, **given, scale=scale), expected)
        assert_same(predict(transformer, **given, scale=[0.3, 1.7]), expected)
        assert_same(predict(transformer, **given, scale=0.5), plain(transformer, **given, scale=torch.full((2,), 0.5)))
        assert not torch.equal(predict(transformer, **given)[0], expected[0])


def test_a_wrong_number_of_strengths_is_refused(transformer):
    with pytest.raises(ValueError, match="scale has 3 numbers; the transformer has 2 VACE layers"):
        predict(transformer, **inputs(transformer), scale=[1.0, 1.0, 1.0])


def test_a_control_shorter_than_the_video_is_padded(transformer):
    """Tokens behind the control's, such as those of more latent frames than it has, get none."""
    given = inputs(transformer, frames=4, control_frames=3)
    with torch.no_grad():
        assert_same(predict(transformer, **given), plain(transformer, **given))


def test_every_prompt_may_have_its_own_video(transformer):
    """As in batches of one: nothing leaks from one prompt's way to another's."""
    latents, timestep, embeds, control = inputs(transformer).values()
    other = latents.flip(2)
    with torch.no_grad():
        found = predict(transformer, [latents, other], timestep, embeds=embeds, control=[control, control * 0.5])
    expected = [
        *plain(transformer, latents, timestep, embeds[:1], control),
        *plain(transformer, other, timestep, embeds[1:], control * 0.5),
    ]
    assert_same(found, expected)


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_prompts_in_one_batch_are_predicted_alike(transformer, prompts):
    given = inputs(transformer, prompts)
    ran = []
    hook = transformer.blocks[0].register_forward_pre_hook(lambda _, taken: ran.append(len(taken[0])))
    with torch.no_grad():
        found = predict(transformer, **given, batched=True)
    hook.remove()
    assert ran == [prompts]
    for ours, theirs in zip(found, plain(transformer, **given), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_in_one_batch_every_prompt_keeps_its_own_video_and_strengths(transformer):
    given, scale = inputs(transformer), [0.3, 1.7]
    latents, control = given["latents"], given["control"]
    given |= {"latents": [latents, latents.flip(2)], "control": [control, control * 0.5]}
    with torch.no_grad():
        apart = predict(transformer, **given, scale=scale)
        together = predict(transformer, **given, scale=scale, batched=True)
    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_batches(transformer):
    given = inputs(transformer, batch=2)
    with torch.no_grad():
        assert_same(predict(transformer, **given), plain(transformer, **given))


def test_references_and_masks_through_the_pipeline(transformer):
    """The inputs that diffusers' own pipeline gives its transformer for an edit with two reference pictures."""
    from diffusers import WanVACEPipeline
    from PIL import Image

    pipeline = WanVACEPipeline.from_pretrained(built_in("wan_vace").path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    calls = []

    def recorded(**arguments):
        calls.append(arguments)
        return forward(**arguments)

    forward, pipeline.transformer.forward = pipeline.transformer.forward, recorded
    frames = [Image.new("RGB", (64, 48), (40 * index, 90, 200)) for index in range(5)]
    masks = [Image.new("L", (64, 48), 255 * (index % 2)) for index in range(5)]
    pipeline(
        video=frames,
        mask=masks,
        reference_images=[Image.new("RGB", (64, 48), "red"), Image.new("RGB", (48, 48), "blue")],
        conditioning_scale=[0.6, 1.2],
        prompt="a red circle",
        negative_prompt="static",
        width=64,
        height=48,
        num_frames=5,
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    pipeline.transformer.forward = forward
    assert len(calls) == 2
    assert calls[0]["hidden_states"].shape[2] == 2 + 2
    with torch.no_grad():
        expected = [pipeline.transformer(**call)[0] for call in calls]
        found = predict(
            pipeline.transformer,
            calls[0]["hidden_states"],
            calls[0]["timestep"],
            embeds=[call["encoder_hidden_states"] for call in calls],
            control=calls[0]["control_hidden_states"],
            scale=calls[0]["control_hidden_states_scale"],
        )
    assert_same(found, expected)


def test_blocks_run_in_block_order_each_for_every_prompt():
    model = larger()
    ran = []
    hooks = [block.register_forward_pre_hook(lambda block, _: ran.append(block)) for block in block_order(model)]
    with torch.no_grad():
        predict(model, **inputs(model, prompts=3))
    for hook in hooks:
        hook.remove()
    assert ran == [block for block in block_order(model) for _ in range(3)]
    assert set(ran) == {*model.blocks, *model.vace_blocks}


def test_the_check_can_stop_it_before_every_block():
    model, calls = larger(), []

    class CancelledError(Exception):
        pass

    def check():
        calls.append(None)
        if len(calls) == 5:
            raise CancelledError

    ran = []
    hooks = [block.register_forward_hook(lambda *_: ran.append(None)) for block in block_order(model)]
    with torch.no_grad(), pytest.raises(CancelledError):
        predict(model, **inputs(model), check_cancelled=check)
    for hook in hooks:
        hook.remove()
    assert len(ran) == 2 * 4


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, but for those of `known`."""

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.storages = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor.untyped_storage())
        return result

    def _meet(self, storage):
        if storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key):
        self.now -= self.storages.pop(key)


def peak(model, call, given):
    tensors = [given["latents"], given["timestep"], *given["embeds"], given["control"]]
    known = [*model.parameters(), *model.buffers(), *tensors]
    with torch.no_grad(), Alive(known) as alive:
        result = call(model, **given)
    assert alive.now >= sum(tensor.nbytes for tensor in result)
    return alive.peak


TOKENS, DIM = 8 * 3 * 4, 48
ACTIVATION = TOKENS * DIM * 4


def few_words(model, prompts):
    return inputs(model, prompts, frames=8, words=1)


def test_hints_are_not_kept():
    """diffusers' peak grows by an activation with every VACE layer; ours does not, with one prompt or two."""
    few, many = larger(12, (0, 6)), larger(12, (0, 2, 4, 6, 8, 10))
    one, two = few_words(few, 1), few_words(few, 2)
    assert peak(many, plain, one) - peak(few, plain, one) >= 4 * ACTIVATION
    assert peak(many, predict, one) == peak(few, predict, one)
    assert peak(many, predict, two) == peak(few, predict, two)
    assert peak(few, predict, two) < peak(many, plain, one)


def test_a_second_prompt_costs_two_activations():
    """Its video tokens and its control stream; what the prompts share is held once."""
    model = larger()
    extra = peak(model, predict, few_words(model, 2)) - peak(model, predict, few_words(model, 1))
    words_and_time = (1 + 1 + 6) * DIM * 4
    assert 2 * ACTIVATION <= extra <= 2 * ACTIVATION + words_and_time
