"""Fitness: every door says the same of a file, and the descriptions of classes are those of the classes."""

from __future__ import annotations

import json
import re
import shutil
import struct
from functools import partial

import pytest
import torch
from piying.core.catalog.discovery import installed_models
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.checkpoints.components import check_pretrained, find_component
from piying.core.checkpoints.fitness import described_tensors
from piying.core.checkpoints.inspect import inspect
from piying.core.checkpoints.load import empty_module, load_component, load_pretrained
from piying.core.checkpoints.pretrained import class_name, read_config, without_code
from piying.core.checkpoints.settings import check_settings
from piying.core.errors import PiyingError
from piying.core.families.registry import FAMILIES, description, family_named
from piying.core.files.safetensors_file import read_safetensors_header
from piying.core.host.headless import HeadlessHost

from .formats import gguf_writer, models, names

LEVELS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
SD_VAE = {**LEVELS, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
NO_CONVS = {"use_quant_conv": False, "use_post_quant_conv": False}
HUNYUAN = {"in_channels": 4, "patch_size": 2, "hidden_size": 1408, "num_layers": 40, "mlp_ratio": 4.3637}
Z_IMAGE = models.Z_IMAGE | {"qk_norm": False, "all_patch_size": [2, 4], "all_f_patch_size": [1, 2]}
QWEN3 = {"head_dim": 128, "num_key_value_heads": 8}
SEES = {"image_dim": 1280, "added_kv_proj_dim": 5120}
WIDE_VAE = {
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
# Published sizes first, then each option that shapes depend on.
CONFIGURATIONS = {
    "WanVACETransformer3DModel": [
        {},
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, "vace_layers": list(range(0, 30, 2))},
        models.WAN,
        models.WAN | {"cross_attn_norm": False, "vace_layers": [0], "out_channels": None, "patch_size": [2, 1, 3]},
    ],
    "AutoencoderKLWan": [
        {},
        {"base_dim": 8, "z_dim": 9, "num_res_blocks": 1, "latents_mean": [0.0] * 9, "latents_std": [1.0] * 9},
        {"base_dim": 8, "dim_mult": [4, 2, 1], "temperal_downsample": [True, False], "decoder_base_dim": 12},
        # Wan2.2's
        WIDE_VAE | {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48},
        WIDE_VAE | {"base_dim": 8, "z_dim": 48, "dim_mult": [1, 2, 2], "temperal_downsample": [True, False]},
    ],
    "WanTransformer3DModel": [
        {},
        {"in_channels": 36},
        {"in_channels": 36, **SEES},
        {"in_channels": 36, **SEES, "pos_embed_seq_len": 514},
        {"in_channels": 48, "out_channels": 48, "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30},
        {"num_layers": 2, "cross_attn_norm": False, "out_channels": None, "patch_size": [2, 1, 3]},
    ],
    "CLIPVisionModel": [
        {},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "patch_size": 14},
    ],
    "HunyuanDiT2DModel": [
        HUNYUAN,
        HUNYUAN | {"use_style_cond_and_image_meta_size": False},
        models.HUNYUAN | {"learn_sigma": False, "num_layers": 5},
    ],
    "AutoencoderKL": [
        {},
        SD_VAE,
        SD_VAE | NO_CONVS | {"latent_channels": 16},
        LEVELS | {"block_out_channels": [8, 16, 8, 24], "norm_num_groups": 8, "mid_block_add_attention": False},
    ],
    "ZImageTransformer2DModel": [{}, models.Z_IMAGE, Z_IMAGE],
    "UMT5EncoderModel": [
        {},
        {"vocab_size": 256384, "d_model": 4096, "num_heads": 64, "d_ff": 10240, "num_layers": 24},
        {"feed_forward_proj": "relu", "relative_attention_num_buckets": 8, "d_kv": 16},
        {"is_gated_act": False},
    ],
    "T5EncoderModel": [
        {},
        {"vocab_size": 250112, "d_model": 2048, "num_heads": 32, "d_ff": 5120, "feed_forward_proj": "gated-gelu"},
    ],
    "BertModel": [
        {},
        {"vocab_size": 47020, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
        {"intermediate_size": 96, "max_position_embeddings": 30, "type_vocab_size": 3, "add_pooling_layer": False},
    ],
    "Qwen3ForCausalLM": [
        {},
        QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "tie_word_embeddings": True},
        {"attention_bias": True, "num_hidden_layers": 2},
    ],
    "Ernie4_5ForCausalLM": [{}, {"tie_word_embeddings": False, "num_hidden_layers": 2, "head_dim": 64}],
    "Glm4ForCausalLM": [{}, {"attention_bias": False, "num_hidden_layers": 2, "tie_word_embeddings": True}],
    "Qwen3Model": [{}, QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}],
    "Qwen2ForCausalLM": [
        {},
        {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"hidden_size": 896, "num_attention_heads": 14, "head_dim": 32, "num_hidden_layers": 2},
    ],
}


@pytest.mark.parametrize(
    ("name", "config"), [(name, config) for name, configs in CONFIGURATIONS.items() for config in configs]
)
def test_a_description_is_that_of_the_class(name, config):
    described = description(name)(config)
    module = empty_module(name, config, "x")
    tensors = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert {**described.needed, **described.optional} == tensors
    assert described.prefix == getattr(module, "base_model_prefix", "")
    assert set(described.ignored) == set(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ())


def test_all_described_classes_are_compared():
    described = {name for family in FAMILIES for name in family.descriptions()}
    assert described == CONFIGURATIONS.keys()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("AutoencoderKL", {"down_block_types": ["AttnDownEncoderBlock2D"]}),
        ("T5EncoderModel", {"hidden_size": 40}),
        ("Ernie4_5ForCausalLM", {"use_bias": True}),
    ],
)
def test_of_options_that_are_not_known_nothing_is_said(name, config):
    assert description(name)(config) is None


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("WanVACETransformer3DModel", {"image_dim": 1280}),
        ("WanVACETransformer3DModel", {"vace_layers": [0, 0]}),
        ("WanVACETransformer3DModel", {"added_kv_proj_dim": 128}),
        ("WanTransformer3DModel", {"in_channels": 48}),
        ("WanTransformer3DModel", {"in_channels": 36, "image_dim": 1280}),
        ("AutoencoderKLWan", {"attn_scales": [1.0]}),
        ("AutoencoderKLWan", {"latents_mean": None}),
        ("HunyuanDiT2DModel", {"activation_fn": "geglu"}),
        ("ZImageTransformer2DModel", {"siglip_feat_dim": 1152}),
        ("ZImageTransformer2DModel", {"axes_lens": [1024]}),
        ("BertModel", {"add_cross_attention": True}),
        ("UMT5EncoderModel", {"is_decoder": True}),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}),
    ],
)
def test_a_model_of_another_kind_is_refused_from_its_configuration(name, config):
    with pytest.raises(PiyingError, match=f"its configuration makes no {name}"):
        described_tensors(name, config)


# Values that no tensor depends on

PUBLISHED = {
    "BertModel": {"bos_token_id": 0, "classifier_dropout": None, "hidden_act": "gelu", "pad_token_id": 0},
    "UMT5EncoderModel": {"dense_act_fn": "gelu_new", "is_gated_act": True, "torch_dtype": "bfloat16"},
    "Qwen3ForCausalLM": {"rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "eos_token_id": 151645},
    "Qwen2ForCausalLM": {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "sliding_window": 32768},
    "GlmForCausalLM": {"partial_rotary_factor": 0.5, "eos_token_id": [151329, 151336], "rms_norm_eps": 1.5625e-07},
    "RTDetrForObjectDetection": {"eval_size": None, "encoder_in_channels": [512, 1024, 2048], "batch_norm_eps": 1e-5},
    "DPTForDepthEstimation": {"backbone_config": None, "use_bias_in_fusion_residual": None, "image_size": [384, 384]},
    "AutoencoderKL": {"scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": True, "latents_mean": None},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_accepted(name):
    check_settings(without_code(PUBLISHED[name]), is_described=True)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layer_types": ["mamba"]}, "layer_types is .*each is one of full_attention, sliding_attention"),
        ({"layer_types": ["full_attention"], "num_hidden_layers": 2}, "has 1 layer_types, and num_hidden_layers is 2"),
        ({"layer_types": ["sliding_attention"], "use_sliding_window": False}, "sliding_window is null"),
        ({"use_sliding_window": True, "sliding_window": 1}, "sliding_window is 1"),
        ({"rope_scaling": {"type": "x"}}, 'rotary positions is "x"; there can be default'),
        ({"rope_parameters": {"rope_type": "x"}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is yarn, without factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
    ],
)
def test_settings_that_a_language_model_cannot_run_with_are_refused(config, said):
    with pytest.raises(PiyingError, match=said):
        check_settings(config, is_described=True)


def test_a_window_that_is_not_used_is_accepted():
    check_settings({"layer_types": ["full_attention"], "use_sliding_window": False, "sliding_window": 0}, True)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_defaults_of_each_class_are_accepted(name):
    check_settings(read_config_of(empty_module(name, CONFIGURATIONS[name][-1], "x")), is_described=True)


DESCRIBED = ["bert", "mt5", "qwen2", "qwen3", "t5", "umt5"]
OTHERS = [
    "cohere",
    "deepseek_v3",
    "depth_anything",
    "dinov2",
    "dpt",
    "ernie4_5",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi",
    "phi3",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3_moe",
    "qwen3_vl",
    "segformer",
    "smollm3",
    "stablelm",
]


@pytest.mark.parametrize(
    ("model_type", "is_described"), [*((n, True) for n in DESCRIBED), *((n, False) for n in OTHERS)]
)
def test_what_transformers_writes_by_itself_is_accepted(model_type, is_described):
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]()
    check_settings(without_code(json.loads(config.to_json_string(use_diff=False))), is_described)


def read_config_of(module):
    config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
    return json.loads(json.dumps(without_code(config), default=str))


ODD = [None, "x", "", -1, 1.5, -1e-6, 1e308, 10**30, float("nan"), float("inf"), [], ["x"], {}, [None] * 3]
PARTS = [
    *(("wan_vace", part) for part in ("transformer", "vae", "text_encoder")),
    *(("hunyuan_dit", part) for part in ("transformer", "vae", "text_encoder", "text_encoder_2")),
]


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_what_the_judgement_accepts_makes_a_module(family, part, tmp_path):
    """Each setting takes four of the odd values, in turn."""
    source = BUILT_IN_ROOT / family / part
    folder = tmp_path / part
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text())
    accepted = 0
    for place, name in enumerate(name for name in config if name not in ("_class_name", "architectures")):
        for value in (ODD[(3 * place + step) % len(ODD)] for step in range(4)):
            (folder / "config.json").write_text(json.dumps(config | {name: value}))
            try:
                found = find_component(part, [tmp_path])
            except PiyingError:
                continue
            accepted += 1
            empty_module(found.class_name, found.config, "x")
    assert accepted


# What every door says of a file


def write(path, shapes, dtype="BF16", size=2):
    """Write a header and a hole in place of the weights."""
    table, at = {}, 0
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + count * size]}
        at += count * size
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


ZOO = {
    "WanVACETransformer3DModel": ("transformer", models.wan_transformer, None),
    "VaceWanModel": ("transformer", models.wan_transformer, names.wan_transformer),
    "AutoencoderKLWan": ("vae", models.wan_vae, None),
    "WanVAE_": ("vae", models.wan_vae, names.wan_vae),
    "HunyuanDiT2DModel": ("transformer", models.hunyuan_transformer, None),
    "HunYuanDiT": ("transformer", models.hunyuan_transformer, names.hunyuan_transformer),
    "AutoencoderKL": ("vae", models.kl_vae, None),
    "AutoencoderKL of ldm": ("vae", models.kl_vae, names.kl_vae),
    "AutoencoderKL of Flux": ("vae", models.flux_vae, None),
    "ZImageTransformer2DModel": ("transformer", models.z_image_transformer, None),
    "Z-Image": ("transformer", models.z_image_transformer, names.z_image_transformer),
    "T5 of Wan": ("text_encoder", models.umt5, names.umt5),
    "UMT5EncoderModel": ("text_encoder", models.umt5, None),
    "T5EncoderModel": ("text_encoder", models.mt5, None),
    "BertModel": ("text_encoder", models.bert, None),
    "Qwen3ForCausalLM": ("prompt_model", models.qwen3, None),
}


def mutated(shapes):
    """Yield tables of shapes in which one tensor is missing, longer by 1, or has a side more, in turn.

    Of tensors whose names differ in numbers alone, such as those of all blocks, the first and the last.
    """
    kinds = {}
    for name in shapes:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    chosen = dict.fromkeys(name for names in kinds.values() for name in (names[0], names[-1]))
    for number, name in enumerate(chosen):
        shape = shapes[name]
        wrong = ({}, {name: (shape[0] + 1, *shape[1:])}, {name: (*shape, 2)})[number % 3]
        yield name, {other: one for other, one in shapes.items() if other != name} | wrong


def refusal(call, path):
    """Return in which words a call refuses a file; "" where it does not."""
    try:
        call()
    except PiyingError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def whole(title):
    """Return the kind and the shapes of a toy in a file of the zoo."""
    kind, make, rename = ZOO[title]
    module = make()
    state = {name: tensor for name, tensor in module.state_dict().items() if name != "encoder.embed_tokens.weight"}
    state.pop("lm_head.weight", None)
    return kind, {name: tuple(tensor.shape) for name, tensor in (rename or dict)(state).items()}


# A toy with one tensor changed that is a model of another size or kind.
OTHER_MODELS = {
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.word_embeddings.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "pooler.positional_embedding",
    "shared.weight",
    "text_embedding_padding",
    "time_extra_emb.pooler.positional_embedding",
    "token_embedding.weight",
    "model.embed_tokens.weight",
}


@pytest.mark.parametrize("title", ZOO)
def test_inspection_and_loading_agree_on_every_tensor(title, tmp_path):
    kind, shapes = whole(title)
    path = write(tmp_path / "x.safetensors", shapes)
    found = inspect(path)
    assert found.reason == ""
    load_component(kind, path)
    accepted = set()
    for number, (name, changed) in enumerate(mutated(shapes)):
        write(path, changed)
        found, said = inspect(path), refusal(partial(find_component, kind, [path]), path)
        if not said or number % 8 == 0:  # loading asks `find_component` first
            assert refusal(partial(load_component, kind, path), path) == said
        if found.what == "no model known here" or found.readable or found.parts:
            assert found.reason == said, name
        else:  # a layout is known by some of its tensors
            assert said.startswith(found.reason.removesuffix(" Choose another file.").removesuffix(".")), name
        accepted |= set() if said else {name}
    assert accepted <= OTHER_MODELS


def part_of(file):
    return "" if file.parent.parent.name == "builtin_models" else file.parent.name


FOLDERS = ("wan_vace", "hunyuan_dit", "prompt")


@pytest.mark.parametrize("key", FOLDERS)
def test_folders_and_loading_agree_on_every_tensor(key, tmp_path):
    root = shutil.copytree(BUILT_IN_ROOT / key, tmp_path / key)
    for file in root.rglob("*.safetensors"):
        shapes = {name: entry.shape for name, entry in read_safetensors_header(file).entries.items()}
        folder, kept = file.parent, file.read_bytes()
        config = read_config(folder)
        if key == "prompt":
            judge = partial(check_pretrained, folder, config, class_name(config))
            load = partial(load_pretrained, folder, "prompt", (class_name(config),), None)
        else:
            judge, load = partial(find_component, folder.name, [root]), partial(load_component, folder.name, root)
        judge()
        for number, (name, changed) in enumerate(mutated(shapes)):
            write(file, changed)
            said = refusal(judge, root)
            assert said, (file.name, name)
            if number % 8 == 0:
                assert refusal(load, root) == said
                found = inspect(file)
                assert not found.readable
                assert not found.parts or found.reason in said
        file.write_bytes(kept)


@pytest.mark.parametrize(
    ("key", "part", "gone"),
    [
        ("wan_vace", "transformer", "patch_embedding.bias"),
        ("wan_vace", "text_encoder", "encoder.final_layer_norm.weight"),
        ("hunyuan_dit", "vae", "decoder.conv_out.bias"),
        ("prompt", "", "model.norm.weight"),
    ],
)
def test_a_folder_that_lacks_a_tensor_is_offered_nowhere(key, part, gone, tmp_path):
    family = family_named(key)
    root = shutil.copytree(BUILT_IN_ROOT / key, tmp_path / family.folder / "mine")
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    name = f"{family.folder}/mine" if f"{family.folder}/mine" in model_choices(family, host) else "mine"
    assert name in model_choices(family, host)
    file = next((root / part).glob("*.safetensors"))
    shapes = {one: entry.shape for one, entry in read_safetensors_header(file).entries.items()}
    write(file, {one: shape for one, shape in shapes.items() if one != gone})
    assert name not in model_choices(family, host)
    with pytest.raises(PiyingError, match=f"1 tensors are not in it, {gone} first"):
        check_model(family, name, host)
    with pytest.raises(PiyingError, match=f"1 tensors are not in it, {gone} first"):
        choose_model(ModelHandle(family, name), host)
    assert f"1 tensors are not in it, {gone} first" in inspect(file).reason


@pytest.mark.parametrize("kind", ["text_encoder", "prompt_model"])
def test_a_gguf_file_is_judged_tensor_by_tensor(kind, tmp_path):
    if kind == "text_encoder":
        module, table = models.umt5(), gguf_writer.T5_NAMES
        metadata = {"general.architecture": "t5encoder"}
    else:
        module, table = models.qwen3(), gguf_writer.QWEN_NAMES
        metadata = {"general.architecture": "qwen3"}
    state = gguf_writer.renamed(models.tensors(module), table)
    state.pop("output.weight", None)
    path = gguf_writer.save(state, tmp_path / "x.gguf", metadata)
    assert inspect(path).reason == ""
    for name in state:
        gguf_writer.save({one: tensor for one, tensor in state.items() if one != name}, path, metadata)
        found, said = inspect(path), refusal(partial(load_component, kind, path), path)
        assert said, name
        assert not found.parts or found.reason == said, name


@pytest.mark.parametrize("title", ["VaceWanModel", "Z-Image"])
def test_leading_sides_of_1_may_be_missing(title, tmp_path):
    """ggml keeps none: what its tools write of a table [1, 6, width] is [6, width]."""
    kind, make, rename = ZOO[title]
    expected = make().state_dict()
    state = {name: tensor[0] if tensor.shape[0] == 1 else tensor for name, tensor in rename(expected).items()}
    assert any(tensor.shape != rename(expected)[name].shape for name, tensor in state.items())
    path = gguf_writer.save(state, tmp_path / "x.gguf", {"general.architecture": "x"})
    assert inspect(path).reason == ""
    loaded = load_component(kind, path, dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("title", "spare"),
    [
        ("AutoencoderKL of ldm", "model_ema.num_updates"),
        ("AutoencoderKL of ldm", "loss.discriminator.main.0.weight"),
        ("AutoencoderKL of Flux", "loss.logvar"),
        ("UMT5EncoderModel", "logit_scale"),
        ("Qwen3ForCausalLM", "logit_scale"),
        ("Qwen3ForCausalLM", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_what_training_and_saving_leave_behind_is_passed_over(title, spare, tmp_path):
    kind, shapes = whole(title)
    path = write(tmp_path / "x.safetensors", {**shapes, spare: (1,)})
    assert inspect(path).reason == ""
    load_component(kind, path)


@pytest.mark.parametrize("prefix", ["model.", "vae."])
def test_names_of_a_module_around_a_component_are_dropped(prefix, tmp_path):
    kind, shapes = whole("WanVAE_")
    path = write(tmp_path / "x.safetensors", {f"{prefix}{name}": shape for name, shape in shapes.items()})
    assert (inspect(path).what, inspect(path).reason) == ("a Wan2.1 VAE", "")
    load_component(kind, path)


def test_a_module_and_its_base_are_judged_alone_and_together(tmp_path):
    shapes = shapes_of(models.wan_transformer())
    parts = {
        True: {name: shape for name, shape in shapes.items() if name.startswith("vace_")},
        False: {name: shape for name, shape in shapes.items() if not name.startswith("vace_")},
    }
    base, module = (tmp_path / f"{name}.safetensors" for name in ("base", "module"))
    write(base, parts[False])
    write(module, parts[True])
    load_component("transformer", [base, module])
    for is_module, path in ((True, module), (False, base)):
        assert inspect(path).reason == ""
        for name, changed in mutated(parts[is_module]):
            write(path, changed)
            assert not inspect(path).readable, name
            assert refusal(partial(load_component, "transformer", [base, module]), ""), name
        write(path, parts[is_module])


def test_a_pair_that_does_not_go_together_is_not_offered(tmp_path):
    parts = {}
    for name, inner in (("base", 160), ("module", 96)):
        shapes = shapes_of(models.wan_transformer(ffn_dim=inner)).items()
        parts[name] = {one: shape for one, shape in shapes if one.startswith("vace_") is (name == "module")}
    paths = [write(tmp_path / f"{name}.safetensors", shapes) for name, shapes in parts.items()]
    assert [inspect(path).reason for path in paths] == ["", ""]
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    (found,) = installed_models(family_named("wan_vace"), host)
    said = refusal(partial(load_component, "transformer", paths), "")
    assert "vace_blocks.0.ffn.net.0.proj.weight is of shape [96, 128], not [160, 128]" in said
    assert found.problem == said


def test_weights_that_are_whole_numbers_are_refused(tmp_path):
    kind, shapes = whole("UMT5EncoderModel")
    path = write(tmp_path / "x.safetensors", shapes, "I64", 8)
    assert "holds whole numbers, I64" in inspect(path).reason
    assert refusal(partial(load_component, kind, path), path) == inspect(path).reason


def test_an_activation_that_the_class_does_not_know_gives_one_sentence(tmp_path):
    root = shutil.copytree(BUILT_IN_ROOT / "hunyuan_dit", tmp_path / "x")
    file = root / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"activation_fn": "swoosh"}))
    assert 'activation_fn is "swoosh"' in refusal(partial(load_component, "transformer", root), root)
