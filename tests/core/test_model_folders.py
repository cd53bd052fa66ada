"""Models folders of strangers: odd entries are passed over and named, one judgement for each file, no code is run."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import re
import shutil
import struct
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from piying.core.catalog.discovery import installed_models, why_no_model
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.checkpoints import load_component
from piying.core.checkpoints.inspect import as_text, inspect
from piying.core.checkpoints.load import empty_module
from piying.core.checkpoints.pretrained import without_code
from piying.core.checkpoints.tokenizers import tokenized
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.files import scan
from piying.core.files.open import open_tensors
from piying.core.host.comfy import ComfyHost
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.host.model_folders import ExtraFolder, ModelFolders, extra_folders, model_folders, ordered
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.lora.catalog import lora_choices
from piying.core.prompting.chat_template import render
from piying.core.prompting.family import PROMPT
from piying.core.prompting.local_model import LocalModel
from piying.core.prompting.messages import Chat
from piying.core.prompting.presets import preset_names
from piying.core.wan.family import WAN_VACE
from piying.core.z_image.family import Z_IMAGE
from piying.runner.session import Session

from .formats import models, names, writers
from .test_single_models import answer

links = pytest.mark.skipif(os.name == "nt", reason="Windows lets administrators alone make links and has no pipes")
FAMILIES = (WAN_VACE, HUNYUAN_DIT, Z_IMAGE, PROMPT)
NAME = "diffusion_models/wan.safetensors"
WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


@pytest.fixture
def host(tmp_path):
    for category in ("diffusion_models", "text_encoders", "vae", "LLM", "diffusers", "loras"):
        (tmp_path / category).mkdir()
    scan._named.clear()
    yield HeadlessHost(models=[tmp_path], chosen_device="cpu")
    model_cache.evict_models()


@pytest.fixture
def whole(host, tmp_path):
    """A Wan model in single files that can run."""
    from .test_single_files import spiece

    tensors = names.wan_transformer(models.tensors(models.wan_transformer()))
    writers.save(tensors, tmp_path / NAME)
    encoder = {n: t for n, t in models.tensors(models.umt5()).items() if "embed_tokens" not in n}
    writers.save(encoder | {"spiece_model": spiece()}, tmp_path / "text_encoders" / "umt5.safetensors")
    torch.save(names.wan_vae(models.tensors(models.wan_vae())), tmp_path / "vae" / "vae.pth")
    return tmp_path


def index(folder, name="model_index.json", text='{"_class_name": "WanVACEPipeline"}'):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def zipped(path, table):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", table)
        archive.writestr("a/version", "3\n")


def bytearray_of(size):
    return b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + size.to_bytes(8, "little") + b"\x85R."


ODD = {
    "a link to itself": lambda root: (root / "vae" / "x.safetensors").symlink_to("x.safetensors"),
    "a link to a folder above": lambda root: (root / "diffusers" / "up").symlink_to(root.parent),
    "a link to all": lambda root: (root / "diffusers" / "all").symlink_to("/"),
    "a broken link": lambda root: (root / "vae" / "x.safetensors").symlink_to("/nowhere/x.safetensors"),
    "weights that are a broken link": lambda root: (
        index(root / "LLM" / "a", "config.json", '{"architectures": ["Qwen3ForCausalLM"]}') / "model.safetensors"
    ).symlink_to("/nowhere"),
    "a pipe as weights": lambda root: os.mkfifo(root / "vae" / "x.safetensors"),
    "a pipe as configuration": lambda root: os.mkfifo(index(root / "LLM" / "a", "x.txt") / "config.json"),
    "a pipe as preset": lambda root: os.mkfifo(index(root / "LLM" / "prompts", "a.md") / "x.txt"),
    "a device": lambda root: (index(root / "LLM" / "a", "x.txt") / "config.json").symlink_to("/dev/zero"),
    "a folder as configuration": lambda root: (root / "LLM" / "a" / "config.json").mkdir(parents=True),
    "deep JSON": lambda root: index(root / "diffusers" / "a", text="[" * 200_000),
    "long JSON": lambda root: index(root / "diffusers" / "a", text='{"a": "' + "1" * (5 << 20) + '"}'),
    "no class": lambda root: index(root / "diffusers" / "a", "config.json", '{"architectures": [{"a": 1}]}'),
    "no UTF-8": lambda root: (index(root / "LLM" / "a", "x.txt") / "config.json").write_bytes(b"\xff\xfe{"),
    "configuration of nothing": lambda root: index(root / "diffusion_models", "config.json", "{}"),
    "configuration of a class": lambda root: index(
        root / "diffusion_models", "config.json", '{"_class_name": "WanVACETransformer3DModel"}'
    ),
    "index of nothing": lambda root: index(root / "vae", "model_index.json"),
    "a pickle that takes all memory": lambda root: zipped(root / "vae" / "x.pth", bytearray_of(1 << 60)),
    "a pickle past all numbers": lambda root: zipped(root / "vae" / "x.pth", bytearray_of((1 << 63) - 1)),
    "a sparse tensor": lambda root: torch.save({"a": torch.eye(4).to_sparse()}, root / "vae" / "x.pth"),
    "a tensor on no device": lambda root: torch.save({"a": torch.empty(9, device="meta")}, root / "vae" / "x.pth"),
    "shards of long names": lambda root: index(
        index(root / "LLM" / "a", "config.json", '{"architectures": ["Qwen3ForCausalLM"]}'),
        "model.safetensors.index.json",
        '{"weight_map": {"a": "' + "x" * 5000 + '"}}',
    ),
    "cut weights": lambda root: (root / "vae" / "x.safetensors").write_bytes(b"\x99" * 20),
}


@links
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_entry_stops_nothing(whole, host, odd):
    ODD[odd](whole)
    begun = time.monotonic()
    for _ in range(2):
        assert model_choices(WAN_VACE, host) == ["auto", NAME, "built-in"]
        assert [
            choices for choices in (model_choices(family, host) for family in FAMILIES[1:]) if len(choices) > 2
        ] == []
        assert choose_model(ModelHandle(WAN_VACE), host).name == NAME
        assert preset_names(host)[0] == "text_to_video"
    assert time.monotonic() - begun < 20


@links
def test_it_is_named_once(whole, host, caplog):
    (whole / "vae" / "gone.safetensors").symlink_to("/nowhere")
    (whole / "vae" / "cut.safetensors").write_bytes(b"\x99" * 20)
    for _ in range(3):
        for family in FAMILIES:
            model_choices(family, host)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(f"{whole / 'vae' / 'cut.safetensors'} is left out: it is neither a safetensors, a GGUF")
    assert said[1] == f"{whole / 'vae' / 'gone.safetensors'} is left out: it is a link to nothing."


def test_files_lie_as_deep_as_people_sort_them(whole, host):
    deep = whole / "diffusion_models" / "video" / "wan" / "2.1" / "vace" / "wan.safetensors"
    deep.parent.mkdir(parents=True)
    (whole / NAME).rename(deep)
    assert model_choices(WAN_VACE, host)[1] == "diffusion_models/video/wan/2.1/vace/wan.safetensors"


def test_a_scan_has_an_end(whole, host, caplog, monkeypatch):
    monkeypatch.setattr(scan, "MAX_ENTRIES", 3)
    assert NAME in model_choices(WAN_VACE, host)
    # One folder gets half of what a scan looks at, so that those beside it are found.
    assert f"{whole} is listed in part: there are more than 2 files and folders in it." in caplog.messages


@pytest.fixture
def listed(monkeypatch):
    """The folders that were listed, as often as they were."""
    folders, scandir = [], os.scandir
    monkeypatch.setattr(scan.os, "scandir", lambda path: folders.append(str(path)) or scandir(path))
    return folders


def test_a_check_lists_each_folder_of_models_once(whole, listed, tmp_path_factory):
    for number in range(20):
        index(whole / "diffusers" / "many" / f"a{number}", "config.json", '{"_class_name": "X"}')
    away = tmp_path_factory.mktemp("work")
    session = Session(input=away, output=away, models=[whole], device="cpu")
    try:
        with session.one_pass():
            info = session.definitions()
            session.check(session.prepare(WORKFLOWS / "t2v.json", info=info), info=info)
        once, listed[:] = Counter(listed), []
        session.definitions()
        again = Counter(listed)
    finally:
        session.close()
        set_host(None)
    below = [str(whole), str(whole / "diffusers" / "many"), *map(str, (whole / "diffusers" / "many").iterdir())]
    assert [once[folder] for folder in below] == [again[folder] for folder in below] == [1] * 22


def lora(path):
    path.parent.mkdir(exist_ok=True)
    layer = "diffusion_model.blocks.0.self_attn.q.lora"
    writers.save({f"{layer}_A.weight": torch.ones(1, 96), f"{layer}_B.weight": torch.ones(96, 1)}, path)


def test_what_is_added_replaced_or_removed_is_seen_by_the_next_request(whole, host):
    path = whole / "loras" / "a.safetensors"
    with host.one_pass():
        assert lora_choices(host, WAN_VACE) == ["none"]
        lora(path)
        assert lora_choices(host, WAN_VACE) == ["none"], "one request sees one state"
    assert lora_choices(host, WAN_VACE) == ["none", "a.safetensors"]
    # Of the same size, and with the same times, as from a copy that keeps them.
    state = path.stat()
    damaged = bytes(path.read_bytes()).replace(b'"F32"', b'"X32"')
    other = path.with_suffix(".other")
    other.write_bytes(damaged)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)
    assert lora_choices(host, WAN_VACE) == ["none"]
    # Written over in place, at once: its times may be the same tick.
    for text, expected in ((b'"F32"', ["none", "a.safetensors"]), (b'"X32"', ["none"])) * 5:
        path.write_bytes(damaged.replace(b'"X32"', text))
        assert lora_choices(host, WAN_VACE) == expected
    path.unlink()
    lora(whole / "loras" / "below" / "b.safetensors")
    assert lora_choices(host, WAN_VACE) == ["none", "below/b.safetensors"]
    model = whole / "diffusers" / "m"
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", model)
    assert "diffusers/m" in model_choices(WAN_VACE, host)
    weights = next((model / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "diffusers/m" not in model_choices(WAN_VACE, host)
    assert "cut short" in next(one.problem for one in installed_models(WAN_VACE, host) if one.name == "diffusers/m")
    (model / "model_index.json").write_text('{"_class_name": "Another"}')
    assert [one for one in installed_models(WAN_VACE, host) if one.name == "diffusers/m"] == []


def test_more_files_of_weights_than_are_read_are_named_in_one_line(whole, host, caplog, monkeypatch):
    monkeypatch.setattr("piying.core.catalog.discovery.MAX_FILES", 2)
    for name in "abcd":
        lora(whole / "loras" / f"{name}.safetensors")
    assert lora_choices(host, WAN_VACE) == ["none", "a.safetensors", "b.safetensors"]
    assert [line for line in caplog.messages if "listed in part" in line] == [
        f"{whole / 'loras'} is listed in part: there are more than 2 files of weights in it."
    ]


def test_in_comfyui_a_pass_is_what_its_event_loop_does_without_a_break():
    host = ComfyHost()

    async def requests():
        first = host.pass_cache()
        assert host.pass_cache() is first
        await asyncio.sleep(0)
        return first, host.pass_cache()

    first, second = asyncio.run(requests())
    assert first is not second
    assert host.pass_cache() is not host.pass_cache(), "a thread without a loop has no passes"


# Names from workflows


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "\\\\server\\share", "C:\\a", "~/a", "a" * 5000])
def test_a_name_that_leads_out_is_refused_and_not_looked_at(host, tmp_path, monkeypatch, name):
    looked = []
    monkeypatch.setattr("piying.core.catalog.discovery.os.path.lexists", lambda path: looked.append(str(path)))
    for family in FAMILIES:
        with pytest.raises(PiyingError, match="is not installed"):
            check_model(family, name, host)
    assert all(path.startswith(str(tmp_path)) and name not in path for path in looked)


# Pairs of a base and a VACE module


def test_every_pair_of_base_and_module_can_be_chosen(whole, host):
    tensors = names.wan_transformer(models.tensors(models.wan_transformer()))
    (whole / NAME).unlink()
    folder = whole / "diffusion_models"
    writers.save({n: t for n, t in tensors.items() if n.startswith("vace")}, folder / "module.safetensors")
    bases = {"a.safetensors": 1.0, "b.safetensors": 2.0}
    for name, factor in bases.items():
        writers.save({n: t * factor for n, t in tensors.items() if not n.startswith("vace")}, folder / name)
    pairs = [f"diffusion_models/module.safetensors + diffusion_models/{name}" for name in bases]
    assert model_choices(WAN_VACE, host) == ["auto", *pairs, "built-in"]
    for pair, name in zip(pairs, bases, strict=True):
        found = choose_model(ModelHandle(WAN_VACE, pair), host)
        assert [path.name for path in found.place("transformer")] == [name, "module.safetensors"]
        assert found.details.endswith(f", on diffusion_models/{name}")
    loaded = load_component("transformer", choose_model(ModelHandle(WAN_VACE, pairs[1]), host).place("transformer"))
    assert torch.equal(loaded.proj_out.weight, tensors["head.head.weight"] * 2)
    # Saved workflows have the module's name alone: the first pair is meant, as before there were two.
    alone = "diffusion_models/module.safetensors"
    assert choose_model(ModelHandle(WAN_VACE, alone), host).name == pairs[0]
    (folder / "b.safetensors").unlink()
    assert model_choices(WAN_VACE, host) == ["auto", alone, "built-in"]


# One judgement for each file


def zoo(root):
    """Write files of many kinds, whole, cut and mixed up; return the names."""
    wan = names.wan_transformer(models.tensors(models.wan_transformer()))
    first = next(name for name in wan if name.startswith("blocks.1."))
    qwen = {n: t for n, t in models.tensors(models.qwen3()).items() if n != "lm_head.weight"}
    kinds = {
        "wan whole": wan,
        "wan without a tensor": {n: t for n, t in wan.items() if n != first},
        "wan without a block": {n: t for n, t in wan.items() if not n.startswith("blocks.2.")},
        "wan with something else": wan | {"motion_encoder.weight": torch.zeros(2, 2)},
        "wan with another shape": wan | {first: torch.zeros(3, 5)},
        "wan of an odd width": names.wan_transformer(
            models.tensors(models.wan_transformer(attention_head_dim=24, num_attention_heads=2))
        ),
        "wan-00001-of-00002": wan,
        "qwen whole": qwen,
        "qwen that sees": qwen | {"visual.blocks.0.attn.qkv.weight": torch.zeros(4, 4)},
        "qwen without norms": {n: t for n, t in qwen.items() if "_norm.weight" not in n or "layernorm" in n},
        "z image": names.z_image_transformer(models.tensors(models.z_image_transformer())),
        "nothing known": {"a": torch.zeros(2)},
    }
    for name, tensors in kinds.items():
        writers.save(tensors, root / "diffusion_models" / f"{name}.safetensors")
    torch.save(wan, root / "diffusion_models" / "wan.ckpt")
    return sorted(path.name for path in (root / "diffusion_models").iterdir())


def loads(path):
    """Return whether a file can be made a module, and the sentence where it cannot."""
    for kind in ("transformer", "prompt_model"):
        try:
            load_component(kind, path)
            return True, ""
        except PiyingError as error:
            if f"not a {kind.replace('_', ' ')}" not in str(error):
                return False, str(error)
    return False, ""


def test_inspection_list_check_and_loading_agree(whole, host):
    for name in zoo(whole):
        path = whole / "diffusion_models" / name
        found = inspect(path)
        loaded, sentence = loads(path)
        if "of-00002" not in name:
            assert found.readable == loaded, (name, found.reason, sentence)
        offered = [family for family in FAMILIES if f"diffusion_models/{name}" in model_choices(family, host)]
        lacking = [
            one for family in FAMILIES for one in installed_models(family, host) if one.path == path and one.lacking
        ]
        assert bool(offered or lacking) == found.readable, name
        assert f"read     {'yes' if found.readable else 'no'}" in as_text(found)
        for family in FAMILIES:
            if family in offered:
                check_model(family, f"diffusion_models/{name}", host)
                continue
            with pytest.raises(PiyingError) as refused:
                check_model(family, f"diffusion_models/{name}", host)
            if not found.readable:
                assert found.reason.removesuffix(".") in str(refused.value)


# PyTorch's files


TABLE = {"w": torch.arange(64.0).reshape(8, 8), "t": torch.arange(6.0).reshape(2, 3).t(), "s": torch.tensor(3.5)}


def test_pytorch_files_are_read_as_torch_reads_them(tmp_path):
    table = TABLE | {
        "half": torch.ones(3).half(),
        "part": torch.arange(9)[3:5],
        "f8": torch.ones(2).to(torch.float8_e5m2),
    }
    torch.save({"state_dict": table | {"p": torch.nn.Parameter(torch.ones(2))}, "epoch": 3}, tmp_path / "x.pth")
    read = open_tensors(tmp_path / "x.pth")
    expected = torch.load(tmp_path / "x.pth", weights_only=True)["state_dict"]
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].read().dtype == tensor.dtype
        assert torch.equal(read[name].read().float(), tensor.float())


class Calls:
    def __reduce__(self):
        return os.mkdir, ("harm",)


FUZZ = settings(max_examples=150, deadline=3000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.integers(0, 2**32))
@example(0)
def test_damaged_pickles_are_refused_in_one_sentence(tmp_path, seed):
    """Bytes of the table of a good file changed; nothing but a PiyingError may come out."""
    path = tmp_path / "good.pth"
    if not path.exists():
        torch.save(TABLE | {"a": torch.nn.Parameter(torch.ones(4))}, path)
    chance = random.Random(seed)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    table = next(name for name in members if name.endswith("data.pkl"))
    data = bytearray(members[table])
    for _ in range(chance.choice((1, 1, 2, 5))):
        data[chance.randrange(len(data))] = chance.choice((chance.randrange(256), 0x52, 0x85, 0x8A, 0x71, 0x72))
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        for name, content in (members | {table: bytes(data)}).items():
            archive.writestr(name, content)
    try:
        for stored in open_tensors(tmp_path / "bad.pth").values():
            assert stored.read().shape == stored.shape
    except PiyingError as error:
        assert str(tmp_path / "bad.pth") in str(error)


@FUZZ
@given(st.integers(0, 2**32))
def test_damaged_archives_are_refused_in_one_sentence(tmp_path, seed):
    """Bytes anywhere in a good file changed, cut out or put in; 64-bit places and sizes among them."""
    path = tmp_path / "good.pth"
    if not path.exists():
        torch.save(TABLE, path)
    chance, raw = random.Random(seed), bytearray(path.read_bytes())
    directory = raw.index(b"PK\x01\x02")
    for _ in range(chance.choice((1, 2, 4))):
        at = chance.randrange(directory, len(raw)) if chance.random() < 0.8 else chance.randrange(len(raw))
        wild = [bytes([chance.randrange(256)]), b"\xff" * 8, (1 << 62).to_bytes(8, "little"), b"\0" * 4]
        raw[at : at + chance.randrange(9)] = chance.choice(wild)
    (tmp_path / "bad.pth").write_bytes(raw)
    try:
        open_tensors(tmp_path / "bad.pth")
    except PiyingError as error:
        assert str(tmp_path / "bad.pth") in str(error)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_a_pickle_calls_is_not_called(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    zipped(tmp_path / "x.pth", pickle.dumps({"a": Calls()}, protocol))
    with pytest.raises(PiyingError, match=r"more than tensors.*\(posix.mkdir\)|\(nt.mkdir\)"):
        open_tensors(tmp_path / "x.pth")
    assert not (tmp_path / "harm").exists()


# Headers


def header_file(path, raw):
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    return path


@pytest.mark.parametrize(
    "raw",
    [
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(270_000)) + b"}",
        b'{"a":[' + b"[]," * 5_000_000 + b"[]]}",
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 7_000_000 + b'1],"data_offsets":[0,4]}}',
        b"{"
        + b",".join(
            b'"%d%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % (i, b"a.0." * 3500) for i in range(1000)
        )
        + b"}",
    ],
    ids=["tensors", "lists", "sides", "names"],
)
def test_a_header_of_15_mb_takes_a_second(tmp_path, raw, within):
    path = header_file(tmp_path / "x.safetensors", raw)
    with within(1.5):
        try:
            inspect(path)
        except PiyingError as error:
            assert len(str(error)) < 500


# Code and absurd values in configurations


def test_settings_that_choose_code_are_not_followed():
    settings = {"auto_map": {}, "_attn_implementation": "a/b", "hidden_size": 4, "conv_kernel": 3}
    nested = settings | {"text_config": {"attn_implementation": "a/b", "_experts_implementation": "c", "depth": 2}}
    assert without_code(nested) == {"hidden_size": 4, "conv_kernel": 3, "text_config": {"depth": 2}}


@pytest.fixture
def prompt_folder(host, tmp_path):
    return shutil.copytree(BUILT_IN_ROOT / "prompt", tmp_path / "LLM" / "evil")


def changed(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def test_code_that_a_folder_names_is_not_looked_for(host, prompt_folder):
    """A kernel for attention, and generation settings that transformers fetches code for."""
    expected = answer("LLM/evil", host)
    changed(prompt_folder, "config.json", _attn_implementation="evil/kernel", attn_implementation="evil/kernel")
    evil = {"cache_implementation": "offloaded", "penalty_alpha": 0.5, "dola_layers": "high", "num_beams": 10**9}
    evil |= {"custom_generate": "evil/x", "max_new_tokens": 10**9}
    changed(prompt_folder, "generation_config.json", **evil)
    model_cache.evict_models()
    assert answer("LLM/evil", host) == expected


@pytest.mark.parametrize(
    "values",
    [{"num_hidden_layers": 10**9}, {"layer_types": ["x"] * 5}, {"rms_norm_eps": "x"}, {"hidden_size": 10**9}],
    ids=lambda values: next(iter(values)),
)
def test_absurd_values_are_one_sentence_and_no_reason_to_stop(host, prompt_folder, values):
    changed(prompt_folder, "config.json", **values)
    with pytest.raises(PiyingError) as caught:
        LocalModel(ModelHandle(PROMPT, "LLM/evil"), host).run(lambda write: "", 4)
    assert "LLM/evil" in str(caught.value)
    assert "memory on" not in str(caught.value)
    good = shutil.copytree(BUILT_IN_ROOT / "prompt", prompt_folder.parent / "good")
    if "num_hidden_layers" in values:
        assert choose_model(ModelHandle(PROMPT), host).path == good.resolve()
        assert model_choices(PROMPT, host) == ["auto", "LLM/good", "built-in"]


def test_a_count_of_layers_is_seen_before_any_is_made():
    config = {"_class_name": "WanVACETransformer3DModel", **models.WAN, "patch_size": [1, 2, 2]}
    assert empty_module("WanVACETransformer3DModel", config, "x") is not None
    with pytest.raises(PiyingError, match="latents_mean are not the numbers of 16 channels"):
        empty_module("AutoencoderKLWan", {"z_dim": 16, "latents_mean": "x"}, "x")


class Words:
    chat_template = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}"
    chat_template += "{% endfor %}{% endfor %}"

    def get_added_vocab(self):
        return {}

    def get_chat_template(self):
        return self.chat_template

    def apply_chat_template(self, messages, **options):
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template([messages], chat_template=self.chat_template)[0][0]


def test_a_template_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr("piying.core.prompting.chat_template.MAX_SECONDS", 0.2)
    with pytest.raises(PiyingError, match=r"chat template is broken \(it takes longer than 0.2 seconds\)"):
        render(Words(), Chat("Be brief.", "a red ball"))
    words = Words()
    for template, reason in {
        "{{ 1 / 0 }}": "division by zero",
        "{% set n = 10 %}{{ n**n }}": "it computes with",
    }.items():
        words.chat_template = template
        with pytest.raises(PiyingError, match=rf"chat template is broken \({reason}"):
            render(words, Chat("Be brief.", "a red ball"))


def test_a_tokenizer_that_panics_is_told():
    """Its patterns are the file's, and a panic of the tokenizers package is no Exception."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("(a|a|b|c|d| )*$x|(.*a){25}"), "isolated")
    with pytest.raises(PiyingError, match=r"tokenizer is broken \(.*Fetch it again"):
        tokenized(PreTrainedTokenizerFast(tokenizer_object=inner), "a bad cab " * 20)


# extra_model_paths.yaml


def test_default_folders_come_first_and_take_what_is_fetched(tmp_path):
    text = "a:\n  base_path: one\n  vae: vae\n  unet: |\n    u1\n    u2\n"
    text += "b:\n  base_path: two\n  is_default: true\n  vae: v\n"
    (tmp_path / "extra_model_paths.yaml").write_text(text)
    extra = extra_folders(tmp_path / "extra_model_paths.yaml")
    assert extra == [
        ExtraFolder("vae", tmp_path / "one" / "vae", False),
        ExtraFolder("diffusion_models", tmp_path / "one" / "u1", False),
        ExtraFolder("diffusion_models", tmp_path / "one" / "u2", False),
        ExtraFolder("vae", tmp_path / "two" / "v", True),
    ]
    own = tmp_path / "models"
    assert ordered(own / "vae", [one for one in extra if one.category == "vae"]) == (
        tmp_path / "two" / "v",
        own / "vae",
        tmp_path / "one" / "vae",
    )
    folders = model_folders(own, extra)
    assert folders / "vae/x.safetensors" == tmp_path / "two" / "v" / "x.safetensors"
    assert folders / "diffusion_models/x.safetensors" == own / "diffusion_models" / "x.safetensors"
    assert folders / "loras/x.safetensors" == own / "loras" / "x.safetensors"
    (tmp_path / "one" / "vae").mkdir(parents=True)
    (tmp_path / "one" / "vae" / "x.safetensors.part").touch()
    assert folders / "vae/x.safetensors" == tmp_path / "one" / "vae" / "x.safetensors"
    host = HeadlessHost(models=[own], extra=extra)
    assert next(path for category, path in host.model_folders() if category == "vae") == tmp_path / "two" / "v"


@pytest.mark.parametrize("text", ["[", "- 1", "a: [1]", "a: 5", "\0", "a:\n  vae: [x]\n"])
def test_a_broken_list_of_folders_stops_nothing(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    assert all(isinstance(folder, ExtraFolder) for folder in extra_folders(tmp_path / "x.yaml"))
    assert extra_folders(tmp_path / "nothing.yaml") == []
    assert ModelFolders(tmp_path) / "piying-models.lock.json" == tmp_path / "piying-models.lock.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "there is no scheduler/scheduler_config.json in it"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0; there can be a whole number from 1"),
        ({"num_train_timesteps": 10**10}, "num_train_timesteps is 10000000000"),
        ({"solver_order": 9}, "solver_order is 9"),
        ({"flow_shift": "x"}, "flow_shift is .x."),
        ({"prediction_type": 5}, "prediction_type is 5"),
    ],
)
def test_a_scheduler_that_makes_no_steps_is_told_with_its_folder(tmp_path, change, said):
    folder = shutil.copytree(BUILT_IN_ROOT / "wan_vace", tmp_path / "diffusers" / "toy")
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    assert model_choices(WAN_VACE, host)[1] == "diffusers/toy"
    if change is None:
        (folder / "scheduler" / "scheduler_config.json").unlink()
    else:
        changed(folder, "scheduler/scheduler_config.json", **change)
    assert re.search(said, why_no_model(folder, inspect(folder / "transformer")))
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    with pytest.raises(PiyingError, match=said):
        check_model(WAN_VACE, "diffusers/toy", host)
