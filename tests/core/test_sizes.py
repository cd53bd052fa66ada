"""What models weigh: from headers, and from the manifest, against the modules themselves."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from piying.core.catalog.component_sizes import (
    TensorInfo,
    component,
    folder_components,
    found_components,
    listed_components,
    wanted_components,
    wanted_model,
)
from piying.core.catalog.installed_model import InstalledModel, built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.checkpoints import load_component
from piying.core.download.manifest import MANIFEST
from piying.core.errors import PiyingError
from piying.core.families.registry import FAMILIES
from piying.core.files.folder import component_folder
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.planner.phases import Block, Component, InFp32
from piying.core.prompting.family import PROMPT
from piying.core.quantization.casting import castable_layers
from piying.core.wan.family import WAN_VACE
from piying.core.wan_video.family import WAN_VIDEO
from piying.core.z_image.family import Z_IMAGE


def tensors_of(module):
    """Return a module's parameters as a file's header tells them, tied ones once."""
    return {name: TensorInfo(tuple(tensor.shape), "BF16") for name, tensor in module.named_parameters()}


def wan_transformer(heads, inner, layers, every):
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel(
        num_attention_heads=heads,
        ffn_dim=inner,
        num_layers=layers,
        vace_layers=list(range(0, layers, every)),
        text_dim=4096,
    )


def wan_vae():
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan()


def umt5():
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(vocab_size=256_384, d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64)
    )


def mt5():
    from transformers import MT5Config, T5EncoderModel

    return T5EncoderModel(
        MT5Config(
            vocab_size=250_112,
            d_model=2048,
            d_kv=64,
            d_ff=5120,
            num_layers=24,
            num_heads=32,
            feed_forward_proj="gated-gelu",
        )
    )


def chinese_clip():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=47_020,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
        )
    )


def hunyuan_transformer():
    from diffusers import HunyuanDiT2DModel

    return HunyuanDiT2DModel(
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
    )


def hunyuan_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=4,
    )


def z_image():
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel()  # its defaults are the published configuration


def flux_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def qwen3(hidden, inner, layers, heads):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        )
    )
    model.lm_head.weight = model.model.embed_tokens.weight  # the meta device unties them
    return model


def wan_base(heads, inner, layers, **changes):
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(num_attention_heads=heads, ffn_dim=inner, num_layers=layers, **changes)


SEES = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
TI2V = {"in_channels": 48, "out_channels": 48}


def wan22_vae():
    from diffusers import AutoencoderKLWan

    widths = {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12, "out_channels": 12}
    numbers = {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    return AutoencoderKLWan(**widths, **numbers, is_residual=True, patch_size=2, scale_factor_spatial=16)


def clip_vision():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=14))


# The published configurations: (manifest id, part, family, module).
PUBLISHED = [
    ("wan2.1-t2v-1.3b", "transformer", WAN_VIDEO, lambda: wan_base(12, 8960, 30)),
    ("wan2.1-t2v-14b", "transformer", WAN_VIDEO, lambda: wan_base(40, 13_824, 40)),
    ("wan2.2-i2v-a14b", "transformer_2", WAN_VIDEO, lambda: wan_base(40, 13_824, 40, in_channels=36)),
    ("wan2.1-i2v-14b-480p", "transformer", WAN_VIDEO, lambda: wan_base(40, 13_824, 40, **SEES)),
    ("wan2.1-i2v-14b-480p", "image_encoder", WAN_VIDEO, clip_vision),
    (
        "wan2.1-flf2v-14b-720p",
        "transformer",
        WAN_VIDEO,
        lambda: wan_base(40, 13_824, 40, **SEES, pos_embed_seq_len=514),
    ),
    ("wan2.2-ti2v-5b", "transformer", WAN_VIDEO, lambda: wan_base(24, 14_336, 30, **TI2V)),
    ("wan2.2-ti2v-5b", "vae", WAN_VIDEO, wan22_vae),
    ("wan2.1-vace-1.3b", "transformer", WAN_VACE, lambda: wan_transformer(12, 8960, 30, 2)),
    ("wan2.1-vace-14b", "transformer", WAN_VACE, lambda: wan_transformer(40, 13_824, 40, 5)),
    ("wan2.1-vace-14b", "text_encoder", WAN_VACE, umt5),
    ("wan2.1-vace-14b", "vae", WAN_VACE, wan_vae),
    ("hunyuan-dit-v1.2", "transformer", HUNYUAN_DIT, hunyuan_transformer),
    ("hunyuan-dit-v1.2", "text_encoder", HUNYUAN_DIT, chinese_clip),
    ("hunyuan-dit-v1.2", "text_encoder_2", HUNYUAN_DIT, mt5),
    ("hunyuan-dit-v1.2", "vae", HUNYUAN_DIT, hunyuan_vae),
    ("z-image-turbo", "transformer", Z_IMAGE, z_image),
    ("z-image-turbo", "text_encoder", Z_IMAGE, lambda: qwen3(2560, 9728, 36, 32).model),
    ("z-image-turbo", "vae", Z_IMAGE, flux_vae),
    ("qwen3-0.6b", "prompt_model", PROMPT, lambda: qwen3(1024, 3072, 28, 16)),
    ("qwen3-1.7b", "prompt_model", PROMPT, lambda: qwen3(2048, 6144, 28, 16)),
    ("qwen3-4b", "prompt_model", PROMPT, lambda: qwen3(2560, 9728, 36, 32)),
]


@pytest.mark.parametrize(
    ("model", "part", "family", "make"), PUBLISHED, ids=[f"{row[0]}-{row[1]}" for row in PUBLISHED]
)
def test_the_manifest_tells_what_the_published_models_weigh(model, part, family, make):
    with torch.device("meta"):
        module = make()
    found = component(part, tensors_of(module), family.rules[part])
    listed = listed_components(model)[part]
    assert listed.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert (listed.root, Counter(listed.blocks)) == (found.root, Counter(found.blocks))
    assert (listed.hidden, listed.inner) == (found.hidden, found.inner)


def test_every_model_tells_its_parts():
    entries = json.loads(MANIFEST.read_text(encoding="utf-8"))["models"]
    told = {entry["id"] for entry in entries if "components" in entry}
    assert {"wan2.1-vace-1.3b", "wan2.1-vace-14b", "hunyuan-dit-v1.2", "qwen3-0.6b"} <= told
    for model in told:
        assert all(part.parameters > 10**7 for part in listed_components(model).values())
    assert listed_components("no-such-model") == {}


BUILT_IN = [("wan_vace", WAN_VACE), ("hunyuan_dit", HUNYUAN_DIT)]


@pytest.mark.parametrize(("name", "family"), BUILT_IN)
def test_headers_tell_what_the_loaded_model_weighs(name, family):
    import diffusers

    folder = built_in(name).path
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    for part, found in folder_components(folder, family.rules_of(built_in(name))).items():
        module = getattr(pipeline, part)
        assert found.stored in ("fp16", "bf16", "fp32")
        assert found.parameters == sum(parameter.numel() for parameter in module.parameters())
        rules = family.rules[part]
        layers = [layer.weight for _, layer in castable_layers(module, rules)] if rules.block_lists else []
        assert sum(block.linear for block in found.blocks) == sum(weight.numel() for weight in layers)
        assert sum(block.rows for block in found.blocks) == sum(weight.shape[0] for weight in layers)
        assert max((block.largest for block in found.blocks), default=0) == max(map(torch.numel, layers), default=0)


@pytest.mark.parametrize("storage", ["plain", "fp8"])
@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("name", "family"), BUILT_IN)
def test_headers_tell_what_a_loaded_model_takes(name, family, compute, storage):
    folder, stored = built_in(name).path, compute if storage == "plain" else storage
    for part, found in folder_components(folder, family.rules_of(built_in(name))).items():
        kind, rules = part.removesuffix("_2"), family.rules[part]
        if storage != "plain" and not rules.block_lists:
            continue
        module = load_component(kind, component_folder(folder, part), dtype=compute, storage=stored, rules=rules)
        tensors = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
        assert found.bytes(compute, stored) == sum(tensor.nbytes for tensor in tensors.values()), part


@pytest.mark.parametrize(("name", "family"), BUILT_IN)
def test_single_files_tell_the_same(name, family):
    """Of a model that is not in one folder, each part names its files; their names are translated."""
    folder = built_in(name).path
    files = {part: (next((folder / part).glob("*.safetensors")),) for part in family.rules_of(built_in(name))}
    found = InstalledModel("single files", files["transformer"][0], 0, files)
    of_files = found_components(found, family.rules_of(found))
    assert of_files == found_components(built_in(name), family.rules_of(built_in(name)))


def test_the_prompt_model_lies_in_its_folder_itself():
    found = folder_components(built_in("prompt").path, PROMPT.rules)
    assert found["prompt_model"].blocks


def test_bytes_by_hand():
    block = Block(linear=1000, kept=100, rows=10, largest=600)
    model = Component("transformer", Block(0, 50), (block, block), "bf16")
    assert model.bytes("bf16", "bf16") == 2 * (50 + 2 * 1100)
    assert model.bytes("fp32", "fp32") == 4 * (50 + 2 * 1100)
    assert model.bytes("bf16", "fp8") == 2 * 50 + 2 * (1000 + 4 * 10 + 2 * 100)
    assert model.streamed_bytes("bf16", "fp8") == 2 * 1240
    assert model.largest_block("bf16", "bf16") == 2200
    assert model.unpacked("bf16", "fp8") == 1200
    assert model.file_bytes() == 2 * 2250


def test_bytes_of_weights_that_are_held_in_fp32_beside_16_bit_types():
    held = (InFp32("fp16", 600, 20),)
    block = Block(linear=1000, kept=100, rows=10, largest=600, in_fp32=held)
    model = Component("text_encoder", Block(0, 50, in_fp32=(InFp32("fp16", 0, 30),)), (block, block), "bf16")
    assert model.bytes("fp16", "fp16") == 2 * 50 + 2 * 30 + 2 * (2 * 1100 + 2 * 620)
    assert model.bytes("fp16", "fp8") == 2 * 50 + 2 * 30 + 2 * (1000 + 4 * 10 + 2 * 100 + 2 * 20)
    assert model.bytes("bf16", "bf16") == 2 * 2250
    assert model.bytes("fp32", "fp32") == 4 * 2250
    assert (model.unpacked("fp16", "fp8"), model.unpacked("bf16", "fp8")) == (2400, 1200)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_families_say_what_their_classes_hold_in_fp32(family):
    """As assembling a module goes by its class: transformers' lists are for fp16, the strict ones for both types."""
    import diffusers
    import transformers

    for spec in family.components:
        for name in spec.classes:
            cls = getattr(diffusers, name, None) or getattr(transformers, name)
            strict = tuple(getattr(cls, "_keep_in_fp32_modules_strict", None) or ())
            plain = tuple(getattr(cls, "_keep_in_fp32_modules", None) or ())
            of_bf16 = strict + (plain if issubclass(cls, diffusers.ModelMixin) else ())
            expected = {kind: names for kind, names in (("bf16", of_bf16), ("fp16", strict + plain)) if names}
            assert spec.rules.fp32_modules == expected, name


def test_the_type_most_weights_have_is_the_files():
    mixed = {"a": TensorInfo((10, 10), "F32"), "b": TensorInfo((100, 10), "F8_E4M3"), "c": TensorInfo((5,), "BF16")}
    assert component("transformer", mixed).stored == "fp8"


def test_models_that_are_not_installed_are_planned_from_the_manifest(tmp_path):
    handle = ModelHandle(WAN_VACE, "wan2.1-vace-14b")
    imagined = HeadlessHost(models=[tmp_path], chosen_device="cpu", imagined=True)
    name, parts = wanted_components(handle, imagined, wanted_model(handle, imagined))
    assert name == "wan2.1-vace-14b"
    assert parts["transformer"].parameters == 17_337_592_896
    real = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    with pytest.raises(PiyingError, match=r"python install.py --models wan2.1-vace-14b"):
        wanted_components(handle, real, wanted_model(handle, real))


def test_a_listed_model_of_unknown_size_says_so(tmp_path):
    handle = ModelHandle(HUNYUAN_DIT, "hunyuan-dit-v1.1")
    imagined = HeadlessHost(models=[tmp_path], chosen_device="cpu", imagined=True)
    with pytest.raises(PiyingError, match="does not say what its parts weigh"):
        wanted_components(handle, imagined, wanted_model(handle, imagined))
