"""Folders of diffusers and transformers → modules: the same tensors as `from_pretrained`, or one sentence."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import threading
import time

import pytest
import torch
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.checkpoints import load_component
from piying.core.checkpoints.assemble import assemble
from piying.core.errors import PiyingError
from piying.core.files.stored_tensor import StoredTensor
from piying.core.quantization.fp8_linear import Fp8Linear
from safetensors.torch import load_file, save_file

PARTS = {
    "WanVACETransformer3DModel": ("transformer", "wan_vace"),
    "HunyuanDiT2DModel": ("transformer", "hunyuan_dit"),
    "AutoencoderKLWan": ("vae", "wan_vace"),
    "AutoencoderKL": ("vae", "hunyuan_dit"),
    "UMT5EncoderModel": ("text_encoder", "wan_vace"),
    "BertModel": ("text_encoder", "hunyuan_dit"),
    "T5EncoderModel": ("text_encoder_2", "hunyuan_dit"),
    "Qwen3ForCausalLM": ("prompt_model", "prompt"),
}


def theirs(name, folder, dtype):
    import diffusers
    import transformers

    library = diffusers if hasattr(diffusers, name) else transformers
    return getattr(library, name).from_pretrained(folder, dtype=dtype)


def tensors(module):
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


@pytest.mark.parametrize("name", PARTS)
def test_a_folder_gives_what_from_pretrained_gives(name):
    """All of it: names, values and types, fp32 islands, constant buffers and ties included."""
    kind, family = PARTS[name]
    folder = BUILT_IN_ROOT / family
    part = folder / kind if (folder / kind).is_dir() else folder
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ours, expected = load_component(kind, folder, dtype=dtype), theirs(name, part, dtype)
        assert type(ours).__name__ == name
        assert not ours.training
        found, wanted = tensors(ours), tensors(expected)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert found[key].dtype == tensor.dtype, key
            assert torch.equal(found[key], tensor), key
        assert len(set(map(id, ours.parameters()))) == len(set(map(id, expected.parameters())))


@pytest.fixture
def wan(tmp_path):
    return shutil.copytree(BUILT_IN_ROOT / "wan_vace", tmp_path / "wan")


@pytest.fixture
def file(wan):
    return wan / "transformer" / "diffusion_pytorch_model.safetensors"


def test_the_folder_of_the_part_and_of_the_pipeline_give_the_same(wan):
    whole, part = load_component("vae", wan), load_component("vae", str(wan / "vae"))
    assert tensors(whole).keys() == tensors(part).keys()
    assert torch.equal(whole.quant_conv.weight, part.quant_conv.weight)


def test_shards_make_one_model(wan, file):
    names = sorted(load_file(file))
    whole = load_component("transformer", wan)
    every = load_file(file)
    weight_map = {}
    for index in range(3):
        shard = f"diffusion_pytorch_model-0000{index + 1}-of-00003.safetensors"
        part = {name: every[name] for name in names[index::3]}
        save_file(part, file.with_name(shard))
        weight_map |= dict.fromkeys(part, shard)
    file.unlink()
    index = file.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": weight_map}))
    loaded = tensors(load_component("transformer", wan))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors(whole).items())

    file.with_name("diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(PiyingError, match="-00002-of-00003.safetensors is missing"):
        load_component("transformer", wan)
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(PiyingError, match="no list of files beside it"):
        load_component("transformer", wan)


def test_a_tensor_that_keeps_its_type_is_a_view_of_the_file(wan, file):
    every = load_file(file)
    stored = {tensor.dtype for tensor in every.values()}
    model = load_component("transformer", wan)
    assert {parameter.dtype for parameter in model.parameters()} == stored
    assert all(p.untyped_storage().nbytes() == file.stat().st_size for p in model.parameters())


def test_writing_to_a_model_leaves_its_file_alone(wan, file):
    before = file.read_bytes()
    model = load_component("transformer", wan)
    with torch.no_grad():
        model.proj_out.weight.zero_()
    assert file.read_bytes() == before


def test_fp8_in_a_file_stays_fp8(wan, file):
    every = load_file(file)
    plain = {
        name: tensor.to(torch.float8_e4m3fn) if name.endswith("to_q.weight") else tensor
        for name, tensor in every.items()
    }
    save_file(plain, file)
    model = load_component("transformer", wan, dtype=torch.float32)
    layer = model.blocks[0].attn1.to_q
    assert isinstance(layer, Fp8Linear)
    assert torch.equal(layer.dense(torch.float32), plain["blocks.0.attn1.to_q.weight"].float())
    unpacked = load_component("transformer", wan, dtype=torch.float32, storage="fp32")
    assert torch.equal(unpacked.blocks[0].attn1.to_q.weight, layer.dense(torch.float32))


def test_the_pooler_of_hunyuan_dit_is_never_a_layer_of_ours(tmp_path):
    """It takes the weights out of its layers and multiplies by itself."""
    folder = shutil.copytree(BUILT_IN_ROOT / "hunyuan_dit" / "transformer", tmp_path / "transformer")
    file = folder / "diffusion_pytorch_model.safetensors"
    every = load_file(file)
    save_file({n: t.to(torch.float8_e4m3fn) if t.ndim == 2 and "weight" in n else t for n, t in every.items()}, file)
    model = load_component("transformer", folder, dtype=torch.float32)
    packed = {name for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)}
    assert "blocks.0.attn1.to_q" in packed
    assert not any("pooler" in name for name in packed)


class Cancelled(Exception):
    pass


def test_loading_can_be_cancelled(wan):
    left = [20]

    def cancelled():
        left[0] -= 1
        if not left[0]:
            raise Cancelled

    with pytest.raises(Cancelled):
        load_component("transformer", wan, cancelled=cancelled)


class SlowTensor(StoredTensor):
    """A weight on a disk that takes seconds for it."""

    def __init__(self, shape, pause=0.05):
        self.shape, self.dtype, self.pause = shape, torch.float16, pause

    def pieces(self):
        for row in torch.ones(self.shape, dtype=self.dtype):
            time.sleep(self.pause)
            yield row


def slow_model(pause):
    with torch.device("meta"):
        module = torch.nn.Sequential(*(torch.nn.Linear(1024, 300, bias=False) for _ in range(4)))
    return module, {name: SlowTensor(tuple(one.shape), pause) for name, one in module.named_parameters()}


def test_an_interrupt_ends_loading_within_a_second():
    module, tensors = slow_model(0.05)
    threads = torch.get_num_threads()
    sent = []

    def interrupt():
        sent.append(time.perf_counter())
        signal.raise_signal(signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        assemble(module, tensors, "file", dtype=torch.float32)
    assert time.perf_counter() - sent[0] < 1
    assert not any(thread.name.startswith("reading") for thread in threading.enumerate())
    assert torch.get_num_threads() == threads


def test_threads_that_begin_after_loading_have_all_cores_for_torch():
    module, tensors = slow_model(0)
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        assemble(module, tensors, "file", dtype=torch.float32)
        assert all(torch.equal(weight, torch.ones(300, 1024)) for weight in module.parameters())
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert (torch.get_num_threads(), found) == (3, [3])
    finally:
        torch.set_num_threads(threads)


def test_weights_too_large_for_the_type_are_found(wan, file):
    rewrite(file, lambda every: every.update(patch_embedding_bias(every)))
    with pytest.raises(PiyingError, match=r"patch_embedding.bias holds values that are no numbers"):
        load_component("transformer", wan, dtype="fp16")
    load_component("transformer", wan, dtype="bf16")


def patch_embedding_bias(every):
    return {"patch_embedding.bias": torch.full_like(every["patch_embedding.bias"].float(), 1e5)}


def rewrite(file, change):
    every = load_file(file)
    change(every)
    save_file(every, file)


def first(every, ending="to_q.weight"):
    return next(name for name in every if name.endswith(ending))


def drop_one(every):
    del every[first(every)]


def add_one(every):
    every["blocks.0.surprise"] = torch.zeros(1)


def reshape_one(every):
    every[first(every)] = torch.zeros(3, 3)


def spoil_one(every):
    every[first(every)][5, 7] = float("nan")


def spoil_a_bias(every):
    every[first(every, "bias")][3] = float("inf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop_one, "1 tensors are not in it, .*to_q.weight first"),
        (add_one, "1 tensors have no place in it, blocks.0.surprise first"),
        (reshape_one, r"to_q.weight is of shape \[3, 3\], not \[96, 96\]"),
        (spoil_one, "to_q.weight holds values that are no numbers"),
        (spoil_a_bias, "bias holds values that are no numbers"),
    ],
)
@pytest.mark.parametrize("storage", [None, "fp8"])
def test_tensors_that_do_not_fit_give_one_sentence(wan, file, change, reason, storage):
    rewrite(file, change)
    with pytest.raises(PiyingError, match=reason) as caught:
        load_component("transformer", wan, dtype=torch.float32, storage=storage)
    assert str(wan) in str(caught.value)


def test_an_fp8_nan_is_found(wan, file):
    def spoil(every):
        name = first(every)
        every[name] = every[name].to(torch.float8_e4m3fn)
        every[name].view(torch.uint8)[3, 3] = 0xFF

    rewrite(file, spoil)
    with pytest.raises(PiyingError, match="no numbers"):
        load_component("transformer", wan, dtype=torch.float32)


def header_bytes(table):
    text = json.dumps(table).encode() if isinstance(table, dict) else table
    return struct.pack("<Q", len(text)) + text


def entry(start=0, end=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


DAMAGED = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "a header of 10 GB": struct.pack("<Q", 10 << 30) + b"{}",
    "the longest header": b"\xff" * 8 + b"{}",
    "no UTF-8": header_bytes(b"\xff\xfe{}") + b"\0" * 4,
    "no table": header_bytes(b"[]") + b"\0" * 4,
    "deep": header_bytes(b'{"a":' * 100_000) + b"\0" * 4,
    "a number of 5000 digits": header_bytes(b'{"a":' + b"9" * 5000 + b"}"),
    "twice": header_bytes(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2)) + b"\0" * 4,
    "past the end": header_bytes({"a": entry(0, 400, (100,))}) + b"\0" * 4,
    "a gap": header_bytes({"a": entry(4, 8)}) + b"\0" * 8,
    "an overlap": header_bytes({"a": entry(), "b": entry()}) + b"\0" * 4,
    "bytes too many": header_bytes({"a": entry()}) + b"\0" * 8,
    "backwards": header_bytes({"a": entry(4, 0)}) + b"\0" * 4,
    "negative": header_bytes({"a": entry(-4, 0)}) + b"\0" * 4,
    "a shape that lies": header_bytes({"a": entry(0, 4, (1 << 40, 1 << 40))}) + b"\0" * 4,
    "a negative shape": header_bytes({"a": entry(0, 4, (-1, -1))}) + b"\0" * 4,
    "a true shape": header_bytes({"a": entry(0, 4, (True,))}) + b"\0" * 4,
    "an unknown type": header_bytes({"a": entry(dtype="F128")}) + b"\0" * 4,
    "no type": header_bytes({"a": {"shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
    "no entry": header_bytes({"a": 3}) + b"\0" * 4,
    "nothing": header_bytes({}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_header_that_lies_gives_one_sentence(wan, file, name):
    file.write_bytes(DAMAGED[name])
    with pytest.raises(PiyingError) as caught:
        load_component("transformer", wan)
    assert str(wan) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_gives_one_sentence(wan, file):
    whole = file.read_bytes()
    for length in (9, 500, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(PiyingError, match="cut short or damaged"):
            load_component("transformer", wan)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "no table of settings"),
        ("{}", "not named"),
        ('{"_class_name": "UNet2DModel"}', "is a UNet2DModel; as transformer there can be WanVACE"),
        ('{"_class_name": ["x"]}', "not named"),
        (
            '{"_class_name": "WanVACETransformer3DModel", "num_layers": "many"}',
            "num_layers is .many.; there can be a whole number",
        ),
    ],
)
def test_a_bad_configuration_gives_one_sentence(wan, text, reason):
    (wan / "transformer" / "config.json").write_text(text)
    with pytest.raises(PiyingError, match=reason):
        load_component("transformer", wan)


def test_what_is_not_there(wan, tmp_path):
    with pytest.raises(PiyingError, match="no such file or folder"):
        load_component("vae", tmp_path / "nowhere")
    (wan / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(PiyingError, match="no safetensors file"):
        load_component("vae", wan)
    with pytest.raises(PiyingError, match="kind is 'unet'"):
        load_component("unet", wan)
