"""LoRA files' names: every spelling finds its layers, names of other models find none, and no header is a crash.

PIYING_FUZZ=100000 runs that many files instead of a few hundred.
"""

from __future__ import annotations

import os
import random
import re
import string

import pytest
from piying.core.files.safetensors_file import TensorEntry
from piying.core.lora.file import judge
from piying.core.lora.names import layer_names, lora_names, tensor_name

from .formats import models, names

ROUNDS = int(os.environ.get("PIYING_FUZZ", "400"))
WAN = (models.wan_transformer, models.wan_base_transformer)
MADE = (*WAN, models.hunyuan_transformer, models.z_image_transformer)
RANK = 4


def layers_of(module):
    """Return {name: (outputs, inputs)} of the layers with weights of two sides."""
    return {
        name: (part.weight.shape[0], part.weight.shape[1])
        for name, part in module.named_modules()
        if getattr(part, "weight", None) is not None and part.weight.ndim == 2 and not list(part.children())
    }


@pytest.fixture(scope="module")
def transformers():
    """For each class: its layers, and the original name of each where there is one for it alone."""
    found = {}
    for make in MADE:
        module = make()
        layers = layers_of(module)
        original = {}
        if make in WAN:
            for layer in layers:
                (name,) = names.wan_transformer({f"{layer}.weight": None})
                original[layer] = name.removesuffix(".weight")
        found[type(module).__name__] = (layers, original)
    return found


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("prefix", ["", "transformer.", "lora_transformer_", "my.wrapper."])
def test_every_layer_and_table_of_a_class_is_known_by_the_headers_alone(make, prefix):
    module = make()
    blocks = {name for name, part in module.named_modules() if name.rpartition(".")[2].isdigit() and "." in name}
    wanted = {name.removesuffix(".weight").removesuffix(".bias") for name, _ in module.named_parameters()} - blocks
    flat = prefix.endswith("_")
    spelled = {f"{prefix}{name.replace('.', '_') if flat else name}": name for name in wanted}
    placement = layer_names(type(module).__name__).place(spelled)
    assert {name: [target.name for target in targets] for name, targets in placement.targets.items()} == {
        spelling: [name] for spelling, name in spelled.items()
    }


ENDINGS = (
    ("lora_A{}.weight", "lora_B{}.weight"),
    ("lora_A{}", "lora_B{}"),
    ("lora_down{}.weight", "lora_up{}.weight"),
    ("lora_down{}", "lora_up{}"),
    ("lora.down{}.weight", "lora.up{}.weight"),
    ("lora_linear_layer.down{}.weight", "lora_linear_layer.up{}.weight"),
)
FLAT_PREFIXES = ("lora_unet_", "lora_unet__", "lora_transformer_", "lora_dit_", "lycoris_", "lora_", "my_")
DOTTED_PREFIXES = ("", "diffusion_model.", "model.diffusion_model.", "transformer.", "unet.", "base_model.model.")
FOREIGN = (
    ("cross_attn.k_audio", "lora_A.weight"),
    ("cross_attn.v_audio", "lora_B.weight"),
    ("self_attn.nobody", "diff"),
    ("cross_attn.norm_k_audio", "diff"),
)


def word(chance, letters=string.ascii_lowercase + string.digits + "_-"):
    return chance.choice(string.ascii_lowercase) + "".join(chance.choices(letters, k=chance.randint(0, 9)))


def entry(*shape, dtype="F16"):
    return TensorEntry(dtype, shape, 0, 0)


def a_file(chance, layers, original):
    """Return the entries of a LoRA file as somebody might have it, and the layers it is for."""
    flat = chance.random() < 0.4
    adapter = "" if chance.random() < 0.5 else f".{word(chance)}"
    if flat:
        prefix = chance.choice(FLAT_PREFIXES)
    elif chance.random() < 0.5:
        prefix = chance.choice(DOTTED_PREFIXES)
    else:
        prefix = "".join(f"x{word(chance)}." for _ in range(chance.randint(1, 4)))
    style = original if original and chance.random() < 0.5 else {layer: layer for layer in layers}
    down, up = (ending.format(adapter) for ending in chance.choice(ENDINGS))
    wrapper = chance.choice(("", "", "", "_orig_mod.", "base_layer.")) if not flat else ""
    # A layer outside of blocks is found under a prefix that is not known where others show what it is.
    inside = [layer for layer in layers if re.match(r"(vace_blocks|blocks|layers|\w+_refiner)\.\d+\.", layer)]
    chosen = dict.fromkeys([*chance.sample(inside, chance.randint(1, 6)), *chance.sample(list(layers), 2)])
    entries = {}
    for layer in chosen:
        name = style[layer].replace(".", "_") if flat else style[layer]
        (out, into), rank = layers[layer], chance.randint(1, 9)
        entries[f"{prefix}{wrapper}{name}.{down}"] = entry(rank, into)
        entries[f"{prefix}{wrapper}{name}.{up}"] = entry(out, rank)
        if chance.random() < 0.4:
            entries[f"{prefix}{wrapper}{name}.alpha"] = entry(*chance.choice(((), (1,))))
    for own, ending in chance.sample(FOREIGN, chance.randint(0, len(FOREIGN))):
        name = f"blocks.{chance.randint(0, 60)}.{own}"
        entries[f"{prefix}{name.replace('.', '_') if flat else name}.{ending}"] = entry(8, 8)
    for _ in range(chance.randint(0, 2)):
        entries[f"text_encoder.model.layers.{chance.randint(0, 9)}.self_attn.q_proj.lora_A.weight"] = entry(4, 8)
    order = list(entries)
    chance.shuffle(order)
    return {name: entries[name] for name in order}, set(chosen)


@pytest.mark.parametrize("seed", range(4))
def test_any_spelling_finds_its_layers(transformers, seed):
    chance = random.Random(seed)
    for _ in range(ROUNDS // 4):
        class_name = chance.choice(list(transformers))
        layers, original = transformers[class_name]
        entries, wanted = a_file(chance, layers, original)
        verdict = judge(entries, class_name, layers.keys())
        assert verdict.reason == "", list(entries)
        found = {target.name for targets in verdict.placement.targets.values() for target in targets}
        assert found == wanted, list(entries)
        # What has no place is named, with no layer twice.
        spelled = {tensor_name(name).layer for name in entries}
        assert spelled == {*verdict.placement.targets, *verdict.placement.left_out}
        assert not verdict.placement.targets.keys() & verdict.placement.left_out.keys()


def test_names_cut_mixed_and_mangled_are_judged_without_a_crash(transformers):
    chance = random.Random(7)
    pieces = [
        "lora_A",
        "lora_B",
        "weight",
        "alpha",
        "blocks",
        "0",
        "diff",
        "lokr_w1",
        "hada_w1_a",
        "",
        "é",
        "_",
        "...",
    ]
    for _ in range(ROUNDS):
        class_name = chance.choice(list(transformers))
        entries, _ = a_file(chance, *transformers[class_name])
        for name in chance.sample(list(entries), chance.randint(1, len(entries))):
            found = entries.pop(name)
            parts = name.split(".")
            what = chance.randrange(4)
            if what == 0:
                del parts[chance.randrange(len(parts))]
            elif what == 1:
                parts.insert(chance.randrange(len(parts) + 1), chance.choice(pieces))
            elif what == 2:
                parts[chance.randrange(len(parts))] = chance.choice(pieces)
            else:
                found = entry(*(chance.randint(0, 9) for _ in range(chance.randint(0, 4))))
            entries[".".join(parts)] = found
        verdict = judge(entries, chance.choice([None, class_name]))
        assert verdict.reason or verdict.changes
        assert verdict.shape.title.startswith("a LoRA")
        assert len(verdict.left_out) < 2000


OTHER_MODELS = (
    "transformer.single_transformer_blocks.3.proj_out",
    "transformer.transformer_blocks.3.attn.add_q_proj",
    "diffusion_model.double_blocks.0.img_attn.qkv",
    "diffusion_model.joint_blocks.1.x_block.attn.qkv",
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_single_blocks_2_linear1",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "vace_blocks_x.0.self_attn.q",
    "diffusion_model.blocks.0.cross_attn.k_audio",
    "pose_patch_embedding",
    "lora_unet_pose_patch_embedding",
    "face_encoder.proj_out",
)


@pytest.mark.parametrize("layer", OTHER_MODELS)
def test_layers_of_other_models_go_nowhere(transformers, layer):
    entries = {f"{layer}.lora_A.weight": entry(4, 8), f"{layer}.lora_B.weight": entry(8, 4)}
    for class_name, (layers, _) in transformers.items():
        verdict = judge(entries, class_name, layers.keys())
        assert not verdict.changes
        assert f"1 of its 1 layers are not in a {class_name}, {layer} first" in verdict.reason
    assert f"are in no transformer that this pack reads, {layer} first" in judge(entries).reason


def test_blocks_a_model_does_not_have_are_not_taken_for_others(transformers):
    """The toy has two VACE blocks; the seventh is no main block."""
    layers, _ = transformers["WanVACETransformer3DModel"]
    for layer in ("vace_blocks.7.attn1.to_q", "lora_unet_vace_blocks_7_self_attn_q", "x.y.vace_blocks.7.self_attn.q"):
        entries = {f"{layer}.lora_A.weight": entry(4, 8), f"{layer}.lora_B.weight": entry(8, 4)}
        assert not judge(entries, "WanVACETransformer3DModel", layers.keys()).changes


def test_of_two_sets_of_the_same_layers_one_is_taken():
    """Wan2.2 has two transformers, and diffusers saves the LoRAs of both in one file."""
    entries = {
        f"{prefix}.blocks.0.attn1.to_q.lora_{side}.weight": entry(*shape)
        for prefix in ("transformer", "transformer_2")
        for side, shape in (("A", (4, 8)), ("B", (8, 4)))
    }
    verdict = judge(entries)
    assert [change.layer for change in verdict.changes] == ["transformer.blocks.0.attn1.to_q"]
    assert verdict.left_out == ("1 of its 2 layers: 1 also there as transformer.* (transformer_2.blocks.0.attn1.to_q)")


def test_what_is_left_out_for_many_reasons_is_summed_up():
    """It is written into every picture's metadata."""
    entries = {
        f"{'x' * number}{prefix}.blocks.0.attn1.to_q.lora_{side}.weight": entry(*shape)
        for number in range(30)
        for prefix in ("transformer", "y" * 4000)
        for side, shape in (("A", (4, 8)), ("B", (8, 4)))
    }
    entries |= {f"blocks.0.attn1.{'z' * number}.alpha": entry(1) for number in range(3000)}
    assert len(judge(entries).left_out) < 2000


@pytest.mark.parametrize(
    "name",
    [
        "decoder.blocks.0.attn.to_q.weight",
        "encoder.block.0.alpha",
        "loras.weight",
        "model.diffusion_model.blocks.0.self_attn.q.weight",
        "lora.weight",
        "lora_A.weight",
    ],
)
def test_layers_of_models_are_no_lora(name):
    assert not lora_names([name])


def test_names_of_megabytes_take_no_time(within):
    """A name is a stranger's: what is tried on it does not grow with its square."""
    for part in ("a.", "lora_a.", "blocks.0.", "_lora_", "diff."):
        name = part * (1_000_000 // len(part))
        with within(4.0):
            judge({f"{name}lora_A.weight": entry(4, 8), f"{name}lora_B.weight": entry(8, 4), name: entry(1)})
