"""Headers from strangers: whatever the bytes, one sentence or a true header, in little time and memory."""

from __future__ import annotations

import json
import struct
import tracemalloc

import piying.core.files.pth_file  # noqa: F401 - so that importing torch is not counted
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from piying.core.checkpoints.inspect import as_json, as_text, describe, inspect
from piying.core.disk_cache import MARK, TRAILER_BYTES
from piying.core.errors import PiyingError
from piying.core.files.open import read_header
from piying.core.files.safetensors_file import MAX_HEADER_BYTES

FUZZ = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
names = st.sampled_from(
    [
        "blocks.0.self_attn.q.weight",
        "blocks.0.ffn.0.weight",
        "vace_patch_embedding.weight",
        "x.comfy_quant",
        "x.weight_scale",
        "scaled_fp8",
        "spiece_model",
        "vae.",
        "text_encoders..",
        "model.diffusion_model.",
        "",
    ]
)
numbers = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30, -(2**63)]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "F8_E4M3", "U8", "F4", "F8_E8M0"]), values),
        "shape": st.one_of(st.lists(numbers, max_size=3), values),
        "data_offsets": st.one_of(st.lists(numbers, min_size=2, max_size=2), values),
    }
)
tables = st.dictionaries(st.one_of(names, st.text(max_size=6)), st.one_of(entries, values), max_size=5)


def ask(path):
    """Read a header as the lists and the command line do; return whether it could be read."""
    tracemalloc.start()
    try:
        found = inspect(path)
        assert as_text(found)
        assert json.dumps(as_json(found))
    except PiyingError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 1000
        return False
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 50e6
    return True


@FUZZ
@given(tables, st.binary(max_size=40), st.integers(-9, 9))
@example({"x.comfy_quant": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"[1]", 0)
@example({"__metadata__": {"_quantization_metadata": "[" * 5000}}, b"", 0)
def test_safetensors(tmp_path, table, data, off):
    text = json.dumps(table).encode()
    path = tmp_path / "fuzzed"
    path.write_bytes(struct.pack("<Q", max(0, len(text) + off)) + text + data)
    ask(path)


@FUZZ
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path, data):
    path = tmp_path / "fuzzed"
    path.write_bytes(data)
    assert not ask(path)


def gguf_text(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_file(tensors=1, values=0, name="blocks.0.ffn.0.weight", sides=(32, 4), kind=2, offset=0, data=72, body=b""):
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + body
    head += gguf_text(name) + struct.pack("<I", len(sides)) + struct.pack(f"<{len(sides)}Q", *sides)
    head += struct.pack("<IQ", kind, offset)
    return head + b"\0" * (-len(head) % 32 + data)


def test_a_true_gguf_header(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_file())
    (entry,) = read_header(path).entries.values()
    assert (entry.dtype, entry.shape, entry.end - entry.start) == ("Q4_0", (4, 32), 72)
    assert ask(path) is True


@pytest.mark.parametrize(
    "content",
    [
        gguf_file(tensors=1 << 40),
        gguf_file(values=1 << 63),
        gguf_file(sides=(1 << 62, 1 << 62)),
        gguf_file(sides=(0, 1 << 63)),
        gguf_file(sides=(31, 4)),
        gguf_file(sides=(32, 0), data=0),
        gguf_file(sides=(1,) * 60),
        gguf_file(kind=16),
        gguf_file(offset=1 << 63),
        gguf_file(data=71),
        gguf_file(tensors=2),
        gguf_file(values=1, body=gguf_text("x") + struct.pack("<IIQ", 9, 9, 1)),
        gguf_file(values=1, body=gguf_text("x") + struct.pack("<IIQ", 9, 8, 1 << 60)),
        gguf_file(values=1, body=gguf_text("general.alignment") + struct.pack("<II", 4, 0)),
        gguf_file(values=1, body=struct.pack("<Q", 1 << 50)),
        b"GGUF" + struct.pack("<I", 9),
        b"GGUF",
    ],
)
def test_gguf_headers_that_lie(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert ask(path) is False


@FUZZ
@given(st.data())
def test_gguf_with_bytes_changed(tmp_path, data):
    content = bytearray(gguf_file(values=1, body=gguf_text("general.alignment") + struct.pack("<II", 4, 32)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    ask(path)


def test_a_header_of_the_longest_length_takes_no_gigabytes(tmp_path):
    """The most that Python makes of a header: a list of empty lists. A 16th of it shows what all would take."""
    path = tmp_path / "long"
    text = b'{"a":[' + b"[]," * (MAX_HEADER_BYTES // 16 // 3) + b"[]]}"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    tracemalloc.start()
    with pytest.raises(PiyingError):
        read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 700e6 / 16


def test_a_zip_bomb_of_a_pickle_is_not_unpacked(tmp_path):
    import zipfile

    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(PiyingError, match="not as PyTorch writes it"):
        read_header(path)


def test_a_view_that_repeats_its_bytes_is_refused(tmp_path):
    import torch

    torch.save({"conv1.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "wide.pth")
    with pytest.raises(PiyingError, match="larger than its bytes"):
        read_header(tmp_path / "wide.pth")


def test_describing_never_fails():
    assert describe({}) == "no model known here"


def test_weights_that_look_like_a_checksum_are_weights(tmp_path):
    """A file of cast weights ends in a checksum; any other file may have the bytes of its mark in that place."""
    data = b"\0" * 30 + (MARK + b"\0" * TRAILER_BYTES)[:TRAILER_BYTES]
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert read_header(path).entries["w"].shape == (len(data),)
    path.write_bytes(path.read_bytes() + data[30:])  # as a cache writes it
    assert read_header(path).entries["w"].shape == (len(data),)
