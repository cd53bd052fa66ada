"""Which layer is held in which type, and why: the same for assembly, plans and people."""

from __future__ import annotations

import pytest
import torch
from piying.core.catalog.component_sizes import TensorInfo, component
from piying.core.catalog.installed_model import BUILT_IN_ROOT, built_in, has_built_in
from piying.core.checkpoints import load_component
from piying.core.families.registry import family_named, planned_families
from piying.core.quantization.casting import format_of
from piying.core.quantization.policy import (
    CAST,
    NO_BLOCKS,
    NO_LINEAR,
    NOTHING_CAST,
    OUTSIDE,
    PLAIN,
    STORED,
    CastRules,
    held_types,
)

from .formats import models

RULES = CastRules(("blocks", "vace_blocks"), {"vace_blocks.*.proj_in": "sensitive to rounding"})
TENSORS = {
    "patch_embedding.weight": TensorInfo((8, 4, 1, 2, 2), "BF16"),
    "proj_out.weight": TensorInfo((8, 8), "BF16"),
    "blocks.0.to_q.weight": TensorInfo((8, 8), "BF16"),
    "blocks.0.to_q.bias": TensorInfo((8,), "BF16"),
    "blocks.0.scale_shift_table": TensorInfo((1, 6, 8), "BF16"),
    "vace_blocks.11.proj_in.weight": TensorInfo((8, 8), "BF16"),
    "vace_blocks.11.ffn.net.0.proj.weight": TensorInfo((16, 8), "BF16"),
}


def held(storage, tensors=TENSORS, rules=RULES, **options):
    return {
        name: tuple(one)
        for name, one in held_types(tensors, rules, compute="bf16", storage=storage, **options).items()
    }


@pytest.mark.parametrize(
    ("name", "spec"),
    [(name, spec) for family in planned_families() for spec in family.components for name in spec.classes],
)
def test_rules_spare_what_diffusers_spares(name, spec):
    import diffusers

    patterns = getattr(getattr(diffusers, name, None), "_skip_layerwise_casting_patterns", None) or ()
    assert set(patterns) == set(spec.rules.spared)


def test_cast_by_hand():
    assert held("fp8") == {
        "patch_embedding.weight": ("bf16", OUTSIDE),
        "proj_out.weight": ("bf16", OUTSIDE),
        "blocks.0.to_q.weight": ("fp8", CAST),
        "blocks.0.to_q.bias": ("bf16", NO_LINEAR),
        "blocks.0.scale_shift_table": ("bf16", NO_LINEAR),
        "vace_blocks.11.proj_in.weight": ("bf16", "kept: sensitive to rounding"),
        "vace_blocks.11.ffn.net.0.proj.weight": ("fp8", CAST),
    }


def test_stored_in_a_format():
    """A file's own FP8 stays, wherever it is, unless another type is asked for."""
    stored = {name: info._replace(dtype="F8_E4M3") for name, info in TENSORS.items()}
    as_is, cast, plain = held(None, stored), held("fp8", stored), held("bf16", stored)
    linear = {name for name, info in TENSORS.items() if len(info.shape) == 2}
    assert {name for name, one in as_is.items() if one == ("fp8", STORED)} == linear
    assert cast == as_is
    assert {kind for kind, _ in plain.values()} == {"bf16"}
    assert plain["blocks.0.to_q.weight"] == ("bf16", PLAIN)


def test_what_is_no_linear_layer_is_left_alone_where_the_module_says_so():
    assert held("fp8", linear={"blocks.0.to_q.weight"})["vace_blocks.11.ffn.net.0.proj.weight"] == ("bf16", NO_LINEAR)


def test_a_component_without_blocks():
    assert set(held("fp8", rules=NOTHING_CAST).values()) == {("bf16", NO_BLOCKS)}


def toy_folder(family, tmp_path):
    """Return the folder of the toy that ships, or where none does one of random weights."""
    if has_built_in(family):
        return built_in(family).path
    models.z_image_transformer().save_pretrained(tmp_path / "transformer")
    models.qwen3().model.save_pretrained(tmp_path / "text_encoder")
    return tmp_path


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (family.key, spec.name)
        for family in planned_families()
        for spec in family.components
        if spec.rules.block_lists and not spec.optional
    ],
)
def test_names_tell_what_the_module_does(family, kind, tmp_path):
    """The policy from names, what the plan counts and what the loaded module holds are one answer."""
    rules, folder = family_named(family).rules[kind], toy_folder(family, tmp_path)
    dense = load_component(kind, folder, dtype=torch.float32)
    packed = load_component(kind, folder, dtype=torch.float32, storage="fp8", rules=rules)
    tensors = {name: TensorInfo(tuple(one.shape), "F32") for name, one in dense.named_parameters()}
    by_names = {name for name, one in held("fp8", tensors, rules).items() if one[0] == "fp8"}
    assert by_names
    assert by_names == {f"{name}.weight" for name, layer in packed.named_modules() if format_of(layer)}
    counted = component(kind, tensors, rules)
    assert sum(block.linear for block in counted.blocks) == sum(dense.get_parameter(name).numel() for name in by_names)


@pytest.mark.parametrize("storage", ["fp8", "int8"])
def test_the_layers_of_a_file_weigh_what_the_plan_counts(storage):
    from piying.core.checkpoints.components import find_source
    from piying.core.checkpoints.layers import layers

    file = BUILT_IN_ROOT / "wan_vace" / "transformer" / "diffusion_pytorch_model.safetensors"
    (found,) = (one for one in layers(file) if one.storage == storage)
    shapes = find_source(file, "transformer").entries
    rules = family_named("wan_vace").rules["transformer"]
    tensors = {name: TensorInfo(entry.shape, entry.dtype) for name, entry in shapes.items()}
    assert sum(group.bytes for group in found.groups) == component("transformer", tensors, rules).bytes(
        "bf16", storage
    )
    assert sum(group.tensors for group in found.groups) == len(shapes)
