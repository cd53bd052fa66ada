"""The zoo: files in every form and layout; inspection, lists, checks and loading say the same of each."""

from __future__ import annotations

import json

import pytest
import torch
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.checkpoints import load_component
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.quantization.casting import dense_weight, format_of
from piying.core.wan.family import WAN_VACE
from piying.core.wan.run import sample

from .formats import models, names, packed, writers
from .test_single_files import REQUEST, spiece

READ = list(packed.READ)
WAN = "diffusion_models/of the zoo.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """ComfyUI's folders with what a transformer needs beside it."""
    root = tmp_path_factory.mktemp("models")
    for category in ("diffusion_models", "text_encoders", "vae"):
        (root / category).mkdir()
    encoder = {n: t for n, t in models.tensors(models.umt5()).items() if "embed_tokens" not in n}
    writers.save(encoder | {"spiece_model": spiece()}, root / "text_encoders" / "x.safetensors")
    writers.save(names.wan_vae(models.tensors(models.wan_vae())), root / "vae" / "y.safetensors")
    return root


@pytest.fixture(scope="module")
def originals():
    """Tensors by the names that files of each layout have, with the component's kind and configuration."""
    wan, z_image = models.wan_transformer(), models.z_image_transformer()
    encoder, qwen = models.umt5(d_model=64, d_ff=128), models.qwen3()
    encoder_state = {name: one for name, one in models.tensors(encoder).items() if "embed_tokens" not in name}
    original = names.wan_transformer(models.tensors(wan))
    return {
        "original": ("transformer", original, None),
        "prefixed": ("transformer", {writers.PREFIX + name: one for name, one in original.items()}, None),
        "folder": ("transformer", models.tensors(wan), dict(wan.config)),
        "shards": ("transformer", original, None),
        "joined": ("transformer", names.z_image_transformer(models.tensors(z_image)), None),
        "encoder": ("text_encoder", encoder_state, None),
        "language": ("prompt_model", models.tensors(qwen), None),
    }


def save(tensors, texts, layout, folder, config):
    """Write a file, or a folder of shards."""
    if layout == "folder":
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"_class_name": "WanVACETransformer3DModel", **config}))
        writers.save(tensors, folder / "diffusion_pytorch_model.safetensors", texts or None)
        return folder
    if layout == "shards":
        folder.mkdir()
        for number in (1, 2):
            part = {name: one for name, one in tensors.items() if ("blocks.1" in name) == (number == 2)}
            writers.save(part, folder / f"model-{number:05}-of-00002.safetensors", texts or None)
        return folder
    return writers.save(tensors, folder.with_suffix(".safetensors"), texts or None)


OTHERS = ("prefixed", "folder", "shards", "joined", "encoder", "language")
PLACES = [
    (form, layout) for at, form in enumerate(READ) for layout in ("original", OTHERS[at % 6], OTHERS[(at + 2) % 6])
]
PLACES += [
    (packed.nf4, "folder"),
    (packed.torchao_int8, "folder"),
    (packed.nvfp4, "joined"),
    (packed.int4_convrot, "joined"),
]


def flat(tensors):
    return torch.cat([tensor.flatten().float() for tensor in tensors])


def close(found, expected):
    # What is rotated back is not the same to the last bit in pieces and as a whole.
    return torch.allclose(flat(found), flat(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("form", "layout"), PLACES, ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_what_is_read(tmp_path, originals, form, layout):
    kind, tensors, config = originals[layout]
    in_text = layout in ("prefixed", "shards") and not form.__name__.startswith("torchao")
    found, restored, texts = packed.written(tensors, form, in_text=in_text)
    path = save(found, texts, layout, tmp_path / "model", config)
    plain = save(restored, {}, layout, tmp_path / "plain", config)
    told = inspect(path)
    assert told.readable, told.reason
    assert told.precision == packed.READ[form]
    assert [(part.kind, part.parameters) for part in told.parts] == [
        (part.kind, part.parameters) for part in inspect(plain).parts
    ]
    expected = load_component(kind, plain, dtype="fp32")
    if layout == "original":
        unpacked = load_component(kind, path, dtype="fp32", storage="fp32")
        assert close(unpacked.state_dict().values(), expected.state_dict().values())
    held = load_component(kind, path, dtype="fp32")
    packed_layers = {name: layer for name, layer in held.named_modules() if format_of(layer) is not None}
    # A projection that is joined in the file is three layers.
    assert len(packed_layers) >= sum(bool(packed.is_layer(name, one)) for name, one in tensors.items()) >= 8
    plain_layers = [expected.get_submodule(name) for name in packed_layers]
    assert close(map(dense_weight, packed_layers.values()), [layer.weight for layer in plain_layers])
    for layer, wanted in list(zip(packed_layers.values(), plain_layers, strict=True))[::7]:
        inputs = torch.randn(2, wanted.in_features, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(layer(inputs), wanted(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", READ, ids=lambda one: one.__name__)
def test_what_is_offered_and_accepted(folders, originals, form):
    found, _, texts = packed.written(originals["original"][1], form)
    writers.save(found, folders / WAN, texts or None)
    host = HeadlessHost(models=[folders], chosen_device="cpu")
    assert model_choices(WAN_VACE, host) == ["auto", WAN, "built-in"]
    check_model(WAN_VACE, WAN, host)
    assert choose_model(ModelHandle(WAN_VACE, WAN), host).place("transformer") == (folders / WAN,)


@pytest.mark.parametrize("form", [packed.nvfp4, packed.int4_convrot, packed.w4a8, packed.nf4, packed.torchao_int8])
def test_a_run_makes_what_the_weights_stand_for_make(folders, originals, form):
    """With the format asked for; some layers of the file are plain."""
    found, restored, texts = packed.written(originals["original"][1], form, blocks=r"\d+")
    host, frames = HeadlessHost(models=[folders], chosen_device="cpu"), []
    memory = "int8" if form is packed.torchao_int8 else packed.READ[form]
    for tensors, of_file, asked in ((found, texts, memory), (restored, {}, "auto")):
        writers.save(tensors, folders / WAN, of_file or None)
        frames.append(sample(ModelHandle(WAN_VACE, WAN, "auto", asked), REQUEST, host)[0])
    if form is packed.torchao_int8:
        assert (frames[0] - frames[1]).abs().max() < 0.05, "plain layers are cast"
    else:
        assert torch.allclose(*frames, atol=1e-4)
    assert frames[1].std() > 0.01


@pytest.mark.parametrize("form", packed.REFUSED, ids=lambda one: one.__name__)
def test_what_is_refused_is_named_alike_at_every_door(folders, originals, form):
    found, _, texts = packed.written(originals["original"][1], form)
    path = writers.save(found, folders / WAN, texts or None)
    host = HeadlessHost(models=[folders], chosen_device="cpu")
    reason = inspect(path).reason
    assert reason.startswith(f"stored as {packed.REFUSED[form]}")
    assert "which this pack cannot read. Readable: bf16, fp16, fp32, fp8" in reason
    assert "`python install.py --list`" in reason
    assert WAN not in model_choices(WAN_VACE, host)
    for door in (
        lambda: check_model(WAN_VACE, WAN, host),
        lambda: load_component("transformer", path),
        lambda: choose_model(ModelHandle(WAN_VACE, WAN), host),
    ):
        with pytest.raises(PiyingError) as error:
            door()
        assert reason in str(error.value)
