"""Models as people have them: shards, folders of the authors, parts of folders, lent tokenizers, wrong settings."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import model_choices_and_details
from piying.core.checkpoints import load_component
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.quantization.int8_linear import rotated
from piying.core.wan.family import WAN_VACE
from piying.runner.errors import WorkflowError
from piying.runner.session import Session
from safetensors.torch import load_file

from ..core.formats import models, names, writers
from ..core.test_single_files import spiece

STEM = "diffusion_pytorch_model"
AUTHORS = {"_class_name": "VaceWanModel", "dim": 128, "eps": 1e-6, "model_type": "vace", "num_layers": 4}


def transformer():
    return names.wan_transformer(models.tensors(models.wan_transformer()))


def encoder():
    return {name: tensor for name, tensor in models.tensors(models.umt5()).items() if "embed_tokens" not in name}


def write_shards(tensors, folder, count=3, has_index=True):
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{STEM}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    table = {name: files[place * count // len(tensors)] for place, name in enumerate(sorted(tensors))}
    for file in files:
        writers.save({name: tensor for name, tensor in tensors.items() if table[name] == file}, folder / file)
    if has_index:
        (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return files


def write_tokenizer(folder, named="T5Tokenizer"):
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(spiece().numpy().tobytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    return folder


def write_authors_folder(folder, count=3, has_index=True):
    """Write what Wan-AI publishes: shards, or one file, with the encoder, its tokenizer and the VAE beside them."""
    if count > 1:
        write_shards(transformer(), folder, count, has_index)
    else:
        folder.mkdir(parents=True)
        writers.save(transformer(), folder / f"{STEM}.safetensors")
    (folder / "config.json").write_text(json.dumps(AUTHORS))
    torch.save(names.umt5(encoder()), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(names.wan_vae(models.tensors(models.wan_vae())), folder / "Wan2.1_VAE.pth")
    write_tokenizer(folder / "google" / "umt5-xxl")
    return folder


def write_beside(root):
    """Write a text encoder without its tokenizer, and a VAE."""
    for category in ("text_encoders", "vae"):
        (root / category).mkdir(parents=True)
    writers.save(encoder(), root / "text_encoders" / "umt5.safetensors")
    torch.save(names.wan_vae(models.tensors(models.wan_vae())), root / "vae" / "vae.pth")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "models"
    yield root
    set_host(None)


def listed(root):
    """Return what the loader offers beside its own, and its lines."""
    choices, lines = model_choices_and_details(WAN_VACE, HeadlessHost(models=[root], chosen_device="cpu"))
    return choices[1:-1], "\n".join(lines)


def checked(root, tmp_path, name):
    """Return what --check says of a model; "" where it is accepted."""
    session = Session(models=[root], output=tmp_path / "output", device="cpu")
    try:
        workflow = session.prepare("workflows/t2v.json", set={"PiyingLoadWanVACE.model": name})
        session.check(workflow)
    except (PiyingError, WorkflowError) as error:
        return str(error)
    finally:
        session.close()
    return ""


def graph(name):
    """Return a workflow of one small video."""
    sampled = {"model": ["1", 0], "prompt": "the red cat", "negative_prompt": "", "width": 32, "height": 32}
    sampled |= {"num_frames": 5, "steps": 1, "cfg": 1.0, "shift": 16.0, "seed": 3}
    saved = {"filename_prefix": "x", "format": "auto", "codec": "auto"}
    nodes = {
        "PiyingLoadWanVACE": {"model": name, "precision": "fp32"},
        "PiyingVACESample": sampled,
        "CreateVideo": {"images": ["2", 0], "fps": 16},
        "SaveVideo": {"video": ["3", 0], **saved},
    }
    return {str(place): {"class_type": one, "inputs": inputs} for place, (one, inputs) in enumerate(nodes.items(), 1)}


def test_the_authors_folder_in_shards_is_offered_and_runs(command, root, write):
    write_authors_folder(root / "diffusion_models" / "Wan2.1-VACE-14B")
    name = "diffusion_models/Wan2.1-VACE-14B"
    assert listed(root)[0] == [name]
    ran = command(write(graph(name)), "--models", root)
    assert ran.returncode == 0, ran.stderr
    assert [path.suffix for path in command.files()] == [".mp4"]


def test_a_lone_shard_is_refused_at_every_door_in_the_same_words(command, root, write):
    folder = root / "diffusion_models" / "wan"
    first, *others = write_shards(transformer(), folder)
    for other in others:
        (folder / other).unlink()
    reason = f"{others[0]}, {others[1]} are missing. Fetch the folder again"
    name = "diffusion_models/wan"
    assert listed(root)[0] == []
    workflow = [write(graph(name)), "--models", root]
    for arguments in (["--inspect", folder], [*workflow, "--check"], workflow):
        ran = command(*arguments)
        assert ran.returncode == 2
        assert reason in ran.stderr
    assert "it is file 1 of 3 of a model. Choose the folder of all" in command("--inspect", folder / first).stdout
    assert command.files() == []


@pytest.mark.parametrize("category", ["diffusion_models", "diffusers"])
@pytest.mark.parametrize(("count", "has_index"), [(3, True), (3, False), (1, False)])
def test_the_authors_folder_is_offered_once_with_its_own_parts(root, tmp_path, category, count, has_index):
    folder = write_authors_folder(root / category / "Wan2.1-VACE", count, has_index)
    name = f"{category}/Wan2.1-VACE"
    offered, _ = listed(root)
    assert offered == [name if count > 1 else f"{name}/{STEM}.safetensors"]
    assert checked(root, tmp_path, name) == checked(root, tmp_path, offered[0]) == ""
    if count > 1:
        said = checked(root, tmp_path, f"{name}/{STEM}-00002-of-00003.safetensors")
        assert "it is file 2 of 3 of a model. Choose the folder of all" in said
        assert inspect(folder).readable
        assert inspect(folder).what == "a Wan2.1-VACE transformer"


def lose_a_tensor(folder):
    path = folder / "transformer" / f"{STEM}.safetensors"
    tensors = load_file(path)
    tensors.pop("blocks.1.ffn.net.2.weight")
    writers.save(tensors, path)


def say(name, value):
    def change(folder):
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


DAMAGE = {
    "a tensor less": (lose_a_tensor, "1 tensors are not in it, blocks.1.ffn.net.2.weight first"),
    "a text for a number": (say("eps", "x"), 'eps is "x"; there can be a number'),
    "a negative number": (say("eps", -1e-6), "eps is -1e-06; there can be a number"),
    "no number": (say("eps", float("nan")), "eps is NaN; there can be a number"),
    "null": (say("rope_max_seq_len", None), "rope_max_seq_len is null; there can be a whole number"),
    "too little room": (say("rope_max_seq_len", 3), "rope_max_seq_len is 3; there can be a whole number"),
    "a huge number": (say("rope_max_seq_len", 10**30), "rope_max_seq_len is 1000000000"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_component_is_refused_at_every_door_in_the_same_words(root, tmp_path, damage):
    change, reason = DAMAGE[damage]
    folder = shutil.copytree(BUILT_IN_ROOT / "wan_vace", root / "diffusers" / "wan")
    change(folder)
    offered, lines = listed(root)
    assert offered == []
    assert reason in lines
    assert reason in checked(root, tmp_path, "diffusers/wan")
    for path in (folder / "transformer", folder / "transformer" / f"{STEM}.safetensors"):
        assert reason in inspect(path).reason


def test_a_renamed_shard_lacks_tensors(root, tmp_path):
    folder = root / "diffusion_models"
    first, *_ = write_shards(transformer(), folder, has_index=False)
    (folder / first).rename(folder / "wan.safetensors")
    said = inspect(folder / "wan.safetensors").reason
    assert "tensors of a Wan transformer are missing" in said
    assert listed(root)[0] == []
    assert said.removesuffix(".") in checked(root, tmp_path, "diffusion_models/wan.safetensors")


# What a file declares of its weights

INT8 = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
FP8, FP8_E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def declaring(said, dtype, scaled=True, in_text=False):
    """Return a transformer one of whose layers is declared as something, and what its header's text says."""
    layer, tensors = "blocks.0.self_attn.q", transformer()
    weight = tensors[f"{layer}.weight"]
    values = (weight / weight.abs().max() * (1 if dtype.is_floating_point else 127)).to(dtype)
    tensors |= {f"{layer}.weight": values} | ({f"{layer}.weight_scale": torch.ones(128, 1)} if scaled else {})
    if in_text:
        return tensors, {"_quantization_metadata": json.dumps({"layers": {layer: said}})}
    declaration = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    return tensors | {f"{layer}.comfy_quant": declaration}, None


@pytest.mark.parametrize(
    ("said", "dtype", "form", "reason"),
    [
        (INT8, FP8, "scaled", "int8_tensorwise and stored as fp8"),
        (INT8, torch.bfloat16, "scaled, in text, in shards", "int8_tensorwise and stored as bf16"),
        (INT8, torch.float32, "", "int8_tensorwise and stored as fp32"),
        ({"format": "float8_e4m3fn"}, torch.int8, "scaled, in shards", "float8_e4m3fn and stored as I8"),
        ({"format": "float8_e4m3fn"}, FP8_E5M2, "scaled, in text", "float8_e4m3fn and stored as fp8 e5m2"),
        ({"format": "float8_e5m2"}, torch.float16, "", "float8_e5m2 and stored as fp16"),
        ({"format": "float8_e4m3fn_rowwise"}, FP8, "in text", "float8_e4m3fn_rowwise and stored without a scale"),
    ],
)
def test_what_is_declared_and_stored_otherwise_is_refused_everywhere(root, tmp_path, said, dtype, form, reason):
    tensors, text = declaring(said, dtype, "scaled" in form, "in text" in form)
    folder = root / "diffusion_models" / "wan"
    folder.mkdir(parents=True)
    place = folder if "shards" in form else folder / "wan.safetensors"
    if place != folder:
        writers.save(tensors, place, text)
    else:  # the declaration and the scale in another file than the weight
        beside = {name for name in tensors if name.endswith(("comfy_quant", "_scale", "head.head.weight"))}
        for number, part in ((1, tensors.keys() - beside), (2, beside)):
            file = folder / f"{STEM}-{number:05}-of-00002.safetensors"
            writers.save({name: tensors[name] for name in part}, file, text if number == 2 else None)
    write_beside(root)
    reason = f"blocks.0.self_attn.q.weight is declared as {reason}. The file is damaged"
    assert reason in inspect(place).reason
    assert listed(root)[0] == []
    name = place.relative_to(root).as_posix()
    assert reason in checked(root, tmp_path, name)
    with pytest.raises(PiyingError, match=re.escape(reason)):
        load_component("transformer", place)


BLOCK_SCALED = {
    "whole": "",
    "without the layer's scale": "blocks.0.self_attn.q.weight is declared as nvfp4 and stored without a scale",
    "a scale too short": "blocks.0.self_attn.q.weight_scale: a scale of shape [512] fits no weight of [128, 64]",
    "undeclared": "stored as nvfp4 without ComfyUI's comfy_quant, so that the order of its scales is not known",
    "of another type": "blocks.0.self_attn.q.weight is declared as nvfp4 and stored as fp8",
    "mxfp8 with fp8's scale": "blocks.0.self_attn.q.weight is declared as mxfp8 and stored without a scale",
}


@pytest.mark.parametrize("case", BLOCK_SCALED)
@pytest.mark.parametrize("in_text", [False, True], ids=["tensors", "header"])
def test_block_scaled_files_are_judged_alike_everywhere(root, tmp_path, case, in_text):
    form, layer, reason = "mxfp8" if case.startswith("mxfp8") else "nvfp4", "blocks.0.self_attn.q", BLOCK_SCALED[case]
    tensors, restored, text = writers.block_scaled(transformer(), form, in_text)
    if case == "without the layer's scale":
        del tensors[f"{layer}.weight_scale_2"]
    elif case == "a scale too short":
        tensors[f"{layer}.weight_scale"] = torch.zeros(512, dtype=FP8)
    elif case == "undeclared":
        tensors = {name: one for name, one in tensors.items() if not name.endswith("comfy_quant")}
        text = None
    elif case == "of another type":
        tensors[f"{layer}.weight"] = torch.zeros(128, 128, dtype=FP8)
    elif case != "whole":
        tensors[f"{layer}.weight_scale"] = torch.ones(())
    (root / "diffusion_models").mkdir(parents=True)
    place = writers.save(tensors, root / "diffusion_models" / "wan.safetensors", text)
    write_beside(root)
    write_tokenizer(root / "tokenizers" / "umt5-xxl")
    name = "diffusion_models/wan.safetensors"
    assert reason in inspect(place).reason
    assert bool(inspect(place).reason) == bool(reason)
    assert listed(root)[0] == ([] if reason else [name])
    said = checked(root, tmp_path, name)
    assert (reason in said) if reason else said == ""
    if reason:
        with pytest.raises(PiyingError, match=re.escape(reason)):
            load_component("transformer", place)
    else:
        found = load_component("transformer", place, storage="fp32", dtype="fp32").blocks[0].attn1.to_q.weight
        assert torch.equal(found, restored[f"{layer}.weight"])


def test_a_declaration_and_a_scale_may_lie_in_another_shard(root):
    tensors, _ = declaring(INT8, torch.int8)
    layer = "blocks.0.self_attn.q"
    beside = {f"{layer}.comfy_quant", f"{layer}.weight_scale"}
    for number, part in ((1, tensors.keys() - beside), (2, beside)):
        root.mkdir(exist_ok=True)
        file = root / f"{STEM}-{number:05}-of-00002.safetensors"
        writers.save({name: tensors[name] for name in part}, file)
    assert inspect(root).reason == ""
    found = load_component("transformer", root, storage="fp32", dtype="fp32").blocks[0].attn1.to_q.weight
    assert torch.allclose(found, rotated(tensors[f"{layer}.weight"].float(), 16), atol=1e-4)


# Tokenizers


@pytest.mark.parametrize("named", ["T5Tokenizer", "T5TokenizerFast", "TokenizersBackend"])
def test_a_tokenizer_of_the_right_vocabulary_is_lent_to_a_text_encoder(root, tmp_path, named):
    (root / "diffusion_models").mkdir(parents=True)
    writers.save(transformer(), root / "diffusion_models" / "wan.safetensors")
    write_beside(root)
    name = "diffusion_models/wan.safetensors"
    said = checked(root, tmp_path, name)
    assert "not here: the tokenizer of UMT5-XXL, inside that file or in a folder of models/tokenizers. Put it" in said
    # Another kind of the same size, and one with more words than the embeddings have rows.
    shutil.copytree(BUILT_IN_ROOT / "prompt", root / "tokenizers" / "qwen")
    (root / "tokenizers" / "bert").mkdir()
    (root / "tokenizers" / "bert" / "vocab.txt").write_text("\n".join(map(str, range(90))))
    (root / "tokenizers" / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    assert listed(root)[0] == []
    right = write_tokenizer(root / "tokenizers" / "umt5-xxl", named)
    assert listed(root)[0] == [name]
    assert checked(root, tmp_path, name) == ""
    host = HeadlessHost(models=[root], chosen_device="cpu")
    (found,) = WAN_VACE.single_file_models(*catalog(host))
    assert found.place("tokenizer") == (right,)


def catalog(host):
    from piying.core.catalog.discovery import FileCatalog

    return FileCatalog(host), []


# Folders with some components


def write_part(root, parts):
    folder = root / "diffusers" / "Wan2.1-VACE-1.3B-diffusers"
    shutil.rmtree(folder, ignore_errors=True)
    for part in parts:
        shutil.copytree(BUILT_IN_ROOT / "wan_vace" / part, folder / part)
    shutil.copy(BUILT_IN_ROOT / "wan_vace" / "model_index.json", folder)


def test_a_folder_with_some_components_takes_the_others_from_elsewhere(root, tmp_path):
    write_part(root, ["transformer", "scheduler"])
    name = "diffusers/Wan2.1-VACE-1.3B-diffusers"
    said = checked(root, tmp_path, name)
    assert "neither in it nor elsewhere: the UMT5-XXL text encoder, in models/text_encoders, the tokenizer" in said
    write_beside(root)
    write_tokenizer(root / "tokenizers" / "umt5-xxl")
    offered, lines = listed(root)
    assert offered == [name]
    assert "its folder holds transformer alone" in lines
    assert checked(root, tmp_path, name) == ""
    write_part(root, ["vae", "text_encoder", "tokenizer"])
    assert listed(root)[0] == []
    assert "there is no transformer in it. Fetch it again" in checked(root, tmp_path, name)
