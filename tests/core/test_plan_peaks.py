"""The formulas of memory peaks against live tensors of the real architectures, counted on the meta device."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from piying.core.catalog.component_sizes import listed_components
from piying.core.families import image_vae
from piying.core.hunyuan_dit import phases as hunyuan
from piying.core.wan import phases as wan
from torch.utils._python_dispatch import TorchDispatchMode

GIB = 2**30


class LiveTensors(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make; the model's own and its inputs are not counted."""

    def __init__(self, *given):
        super().__init__()
        self.given = [tensor.untyped_storage() for tensor in given]
        self.known = {storage._cdata for storage in self.given}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak(module, run, *inputs):
    """Return the peak bytes of `run()`, beside the module's own tensors and the inputs."""
    gc.collect()
    live = LiveTensors(*module.parameters(), *module.buffers(), *inputs)
    with torch.no_grad(), live:
        run()
    return live.peak


def on_meta(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture(autouse=True)
def attention_counts_by_its_output(monkeypatch):
    """As the kernels of a card work; torch's fallback on the meta device makes the scores."""
    import diffusers.models.transformers.transformer_wan as transformer_wan

    def output_sized(query, *others, **options):
        return torch.empty_like(query)

    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", output_sized)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", output_sized)


def in_bf16(model):
    """Return a model of diffusers without gradients, in bf16 but for what its class keeps in fp32."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if not any(island in name for island in model._keep_in_fp32_modules):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def transformer(heads, inner):
    """The real width with four of the blocks: interleaved, the peak is the same with all."""
    from diffusers import WanVACETransformer3DModel

    with torch.device("meta"):
        model = WanVACETransformer3DModel(
            num_attention_heads=heads, ffn_dim=inner, num_layers=4, vace_layers=[0, 2], text_dim=4096
        )
    return in_bf16(model)


WAN_ROWS = [("wan2.1-vace-1.3b", 12, 8960), ("wan2.1-vace-14b", 40, 13824)]


@pytest.mark.parametrize(("name", "heads", "inner"), WAN_ROWS)
@pytest.mark.parametrize(
    ("width", "height", "branches", "batched"), [(832, 480, 2, False), (1280, 720, 1, False), (832, 480, 2, True)]
)
def test_sampling_a_video(name, heads, inner, width, height, branches, batched):
    from piying.core.wan.transformer import predict

    model, shape = transformer(heads, inner), (21, height // 8, width // 8)
    latents, control, timestep = on_meta(1, 16, *shape), on_meta(1, 96, *shape), on_meta(1)
    embeds = [on_meta(1, 512, 4096) for _ in range(branches)]
    measured = peak(
        model,
        lambda: predict(model, latents, timestep, embeds=embeds, control=control, batched=batched),
        latents,
        control,
        timestep,
        *embeds,
    )
    component = listed_components(name)["transformer"]
    predicted = wan.sampling_memory(component, 21 * width * height // 256, branches, batched=batched).peak("bf16")
    assert predicted == pytest.approx(measured, rel=0.05)
    assert predicted >= measured  # the latents that the loop holds are in the prediction alone


class RankAlone:
    """A rank whose exchanges take the memory that they do, and give nothing."""

    def __init__(self, size):
        self.rank, self.size = 0, size

    def all_gather(self, tensor):
        return list(tensor.contiguous().new_empty(self.size, *tensor.shape).unbind())

    def all_to_all(self, tensor):
        return torch.empty_like(tensor.contiguous())


@pytest.mark.parametrize(("name", "heads", "inner"), WAN_ROWS)
@pytest.mark.parametrize(("ranks", "batched"), [(2, False), (2, True), (3, False), (8, False)])
def test_sampling_a_share_of_a_video(monkeypatch, name, heads, inner, ranks, batched):
    """Heads of 14B are divided by 2 and 8, those of 1.3B by 2 and 3; else keys and values are gathered."""
    from piying.core.wan import split_attention
    from piying.core.wan.transformer import predict

    monkeypatch.setattr(split_attention, "dispatch_attention_fn", lambda query, *others: torch.empty_like(query))
    model, shape = transformer(heads, inner), (21, 60, 104)
    latents, control, timestep = on_meta(1, 16, *shape), on_meta(1, 96, *shape), on_meta(1)
    embeds, tokens = [on_meta(1, 512, 4096) for _ in range(2)], 21 * 60 * 104 // 4
    with split_attention.attention_split(model, RankAlone(ranks)) as split:
        measured = peak(
            model,
            lambda: predict(model, latents, timestep, embeds=embeds, control=control, batched=batched, split=split),
            latents,
            control,
            timestep,
            *embeds,
        )
    component = listed_components(name)["transformer"]
    options = {"share": -(-tokens // ranks), "gathers": not wan.heads_divide(component, ranks)}
    predicted = wan.sampling_memory(component, tokens, 2, batched=batched, **options).peak("bf16")
    assert predicted == pytest.approx(measured, rel=0.18)
    assert predicted >= measured


def base_transformer(heads, inner, **changes):
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(num_attention_heads=heads, ffn_dim=inner, num_layers=2, **changes)
    return in_bf16(model)


SEES = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
BASE_ROWS = {
    "wan2.1-t2v-1.3b": (12, 8960, {}, 8),
    "wan2.1-i2v-14b-480p": (40, 13824, SEES, 8),
    "wan2.2-ti2v-5b": (24, 14336, {"in_channels": 48, "out_channels": 48}, 16),
}


@pytest.mark.parametrize("name", BASE_ROWS)
@pytest.mark.parametrize(("branches", "batched"), [(1, False), (2, False), (2, True)])
def test_sampling_a_video_without_vace(name, branches, batched):
    """Where each token has a timestep of its own, those are most of it."""
    from piying.core.wan.transformer import predict

    heads, inner, changes, stride = BASE_ROWS[name]
    model, own_times = base_transformer(heads, inner, **changes), stride == 16
    shape = (21, 480 // stride, 832 // stride)
    tokens = shape[0] * shape[1] * shape[2] // 4
    latents = on_meta(1, changes.get("in_channels", 16), *shape)
    timestep = on_meta(1, tokens) if own_times else on_meta(1)
    embeds = [on_meta(1, 512, 4096) for _ in range(branches)]
    picture = on_meta(1, 257, 1280) if "image_dim" in changes else None
    measured = peak(
        model,
        lambda: predict(model, latents, timestep, embeds=embeds, picture=picture, batched=batched),
        latents,
        timestep,
        *embeds,
    )
    variant = wan.sampling_memory(
        listed_components(name)["transformer"],
        tokens,
        branches,
        batched=batched,
        has_vace=False,
        token_times=own_times,
        channels=48 if own_times else 16,
    )
    assert variant.peak("bf16") == pytest.approx(measured, rel=0.05)
    assert variant.peak("bf16") >= measured


@pytest.fixture(scope="module")
def wide_vae():
    from diffusers import AutoencoderKLWan

    widths = {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12, "out_channels": 12}
    numbers = {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    with torch.device("meta"):
        made = AutoencoderKLWan(**widths, **numbers, is_residual=True, patch_size=2, scale_factor_spatial=16)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["decode", "condition"])
def test_the_vae_of_wan22(wide_vae, name, dtype):
    from piying.core.wan.decode import _decode_in_time

    vae, (width, height) = wide_vae.to(dtype), (640, 352)
    if name == "decode":
        latents = on_meta(1, 48, 3, height // 16, width // 16, dtype=dtype)
        measured = peak(vae, lambda: [None for _ in _decode_in_time(vae, latents)], latents)
    else:
        video = on_meta(1, 3, 9, height, width, dtype=dtype)
        measured = peak(vae, lambda: vae.encode(video)) + video.numel() * video.element_size()
    component = listed_components("wan2.2-ti2v-5b")["vae"]
    whole = wan.vae_memory(name, component, width=width, height=height, num_frames=9, stride=16)[0]
    assert whole.peak("fp32" if dtype == torch.float32 else "bf16") == pytest.approx(measured, rel=0.05)


# Counted once for one branch with all blocks, hints interleaved, latents left out; GiB.
@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        ("wan2.1-vace-1.3b", 32_760, 1.67),
        ("wan2.1-vace-1.3b", 75_600, 3.86),
        ("wan2.1-vace-14b", 32_760, 4.40),
        ("wan2.1-vace-14b", 75_600, 10.14),
    ],
)
def test_the_table_of_peaks(name, tokens, expected):
    component = listed_components(name)["transformer"]
    assert wan.sampling_memory(component, tokens, 1).activations / GIB == pytest.approx(expected, rel=0.05)


@pytest.fixture(scope="module")
def video_vae():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        return AutoencoderKLWan().eval().requires_grad_(False)


def predicted(name, variant, size, frames, dtype):
    vae = listed_components("wan2.1-vace-14b")["vae"]
    variants = {
        found.name: found for found in wan.vae_memory(name, vae, width=size[0], height=size[1], num_frames=frames)
    }
    return variants[variant].peak("fp32" if dtype == torch.float32 else "bf16")


@pytest.mark.parametrize(("size", "dtype"), [((832, 480), torch.float32), ((256, 256), torch.bfloat16)])
def test_decoding_a_video(video_vae, size, dtype):
    """A latent frame at a time, as `decode` runs the VAE; from the third on the peak stays."""
    from piying.core.wan.decode import _decode_in_time

    vae = video_vae.to(dtype)
    latents = on_meta(1, 16, 3, size[1] // 8, size[0] // 8, dtype=dtype)
    measured = peak(vae, lambda: [None for _ in _decode_in_time(vae, latents)], latents)
    assert predicted("decode", "whole", size, 9, dtype) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("variant", "size", "dtype"),
    [
        ("whole", (832, 480), torch.float32),
        ("tiled", (448, 256), torch.float32),
        ("whole", (256, 256), torch.bfloat16),
    ],
)
def test_encoding_a_video(video_vae, variant, size, dtype):
    from piying.core.wan.decode import tiling

    vae = video_vae.to(dtype)
    video = on_meta(1, 3, 9, size[1], size[0], dtype=dtype)
    with tiling(vae, variant == "tiled"):
        measured = peak(vae, lambda: vae.encode(video)) + video.numel() * video.element_size()
    assert predicted("condition", variant, size, 9, dtype) == pytest.approx(measured, rel=0.05)


def test_tiles_of_a_video_are_those_of_diffusers(video_vae):
    assert (video_vae.tile_sample_min_height, video_vae.tile_sample_stride_height) == (wan.TILE, wan.TILE_STRIDE)
    assert wan.tiled_length(832) == 256 + 256 + 256 + 256 + 64


@pytest.mark.parametrize("cards", [1, 3, 8])
def test_sampling_an_image(monkeypatch, cards):
    """Its 16 heads are not divided by 3."""
    from diffusers import HunyuanDiT2DModel
    from piying.core.hunyuan_dit import shared_sampling

    with torch.device("meta"):
        model = HunyuanDiT2DModel(
            num_attention_heads=16,
            attention_head_dim=88,
            in_channels=4,
            patch_size=2,
            activation_fn="gelu-approximate",
            sample_size=128,
            hidden_size=1408,
            num_layers=40,
            mlp_ratio=4.3637,
            learn_sigma=True,
            cross_attention_dim=1024,
            cross_attention_dim_t5=2048,
            pooled_projection_dim=1024,
            text_len=77,
            text_len_t5=256,
            norm_type="layer_norm",
            use_style_cond_and_image_meta_size=False,
        ).to(torch.float16)
    half = {"dtype": torch.float16}
    side, tokens = 1024, 4096
    inputs = {
        "hidden_states": on_meta(2, 4, side // 8, side // 8, **half),
        "timestep": on_meta(2, **half),
        "encoder_hidden_states": on_meta(2, 77, 1024, **half),
        "text_embedding_mask": on_meta(2, 77, **half),
        "encoder_hidden_states_t5": on_meta(2, 256, 2048, **half),
        "text_embedding_mask_t5": on_meta(2, 256, **half),
        "image_rotary_emb": (on_meta(tokens, 88, dtype=torch.float32), on_meta(tokens, 88, dtype=torch.float32)),
    }
    monkeypatch.setattr(shared_sampling, "dispatch_attention_fn", lambda query, *others: torch.empty_like(query))
    given = [one for value in inputs.values() for one in (value if isinstance(value, tuple) else [value])]
    split = shared_sampling.HunyuanDiTJob.tokens_split
    with nullcontext() if cards == 1 else split(model, RankAlone(cards)):
        measured = peak(model, lambda: model(**inputs, return_dict=False), *given)
    component = listed_components("hunyuan-dit-v1.2")["transformer"]
    predicted = hunyuan.sampling_memory(component, tokens, 2, cards=cards).peak("fp16")
    assert predicted == pytest.approx(measured, rel=0.05)
    assert predicted >= measured


@pytest.mark.parametrize("variant", ["whole", "tiled"])
def test_decoding_an_image(variant):
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=4,
            sample_size=image_vae.TILE,
        ).to(torch.float16)
    if variant == "tiled":
        vae.enable_tiling()
    latents = on_meta(1, 4, 128, 128, dtype=torch.float16)
    measured = peak(vae, lambda: vae.decode(latents, return_dict=False))
    variants = image_vae.vae_memory(listed_components("hunyuan-dit-v1.2")["vae"], 1024, 1024)
    (chosen,) = [found for found in variants if found.name == variant]
    assert chosen.peak("fp16") == pytest.approx(measured, rel=0.05)


def test_operations_of_a_prediction():
    """Published for 81 frames of T2V at 480p: 14B 1,678 TFLOP, 1.3B 283; VACE adds 8 blocks to 40, and 15 to 30."""
    for name, tokens, teraflops in (
        ("14b", 32_760, 1678 * 48 / 40),
        ("14b", 75_600, 6523 * 48 / 40),
        ("1.3b", 32_760, 283 * 1.5),
    ):
        component = listed_components(f"wan2.1-vace-{name}")["transformer"]
        total = tokens * sum(wan.flops_per_token(component, tokens))
        assert total / 1e12 == pytest.approx(teraflops, rel=0.02)
