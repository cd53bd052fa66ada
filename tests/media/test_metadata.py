"""Workflows out of files, whoever wrote them."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from piying.core.errors import PiyingError
from piying.core.media import ffmpeg, metadata, mp4

GRAPH = {"3": {"class_type": "KSampler", "inputs": {"text": '皮影 é😀 "=;#\\\n'}}}
PROMPT = json.dumps(GRAPH)
WORKFLOW = json.dumps({"nodes": [], "extra": "ö"}, ensure_ascii=False)


def png(path: Path, compressed: bool = False) -> Path:
    """As ComfyUI saves it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", PROMPT, zip=compressed)
    info.add_itxt("workflow", WORKFLOW, zip=compressed)
    Image.new("RGB", (8, 6)).save(path, "PNG", pnginfo=info)
    return path


def webp(path: Path, order: str = "<") -> Path:
    """As ComfyUI's SaveAnimatedWEBP does it."""
    exif = Image.Exif()
    exif.endian = order
    exif[0x0110] = f"prompt:{PROMPT}"
    exif[0x010F] = f"workflow:{json.dumps(json.loads(WORKFLOW))}"
    Image.new("RGB", (8, 6)).save(path, "WEBP", exif=exif)
    return path


def container(path: Path, *arguments: str) -> Path:
    """Through ffmpeg's own -metadata, not our file of it."""
    texts = ["-metadata", f"prompt={PROMPT}", "-metadata", f"workflow={WORKFLOW}"]
    source = ["-f", "lavfi", "-i", "color=size=64x48:duration=0.2"]
    subprocess.run([ffmpeg.ffmpeg_exe(), "-v", "error", *source, *texts, *arguments, str(path)], check=True)
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: png(folder / "a.png"),
        lambda folder: png(folder / "a.png", compressed=True),
        lambda folder: png(folder / "looks like a video.mp4"),
        lambda folder: webp(folder / "a.webp"),
        lambda folder: webp(folder / "a.webp", ">"),
        lambda folder: container(folder / "a.mp4", "-movflags", "use_metadata_tags"),
        lambda folder: container(folder / "a.mov", "-movflags", "use_metadata_tags"),
        lambda folder: container(folder / "a.mkv"),
        lambda folder: container(folder / "a.webm", "-c:v", "libvpx", "-b:v", "1M"),
    ],
    ids=["png", "png packed", "png by another name", "webp", "webp big-endian", "mp4", "mov", "mkv", "webm"],
)
def test_reads_what_others_wrote(tmp_path, make):
    texts = metadata.read_workflow(make(tmp_path))
    assert json.loads(texts["prompt"]) == GRAPH
    assert json.loads(texts["workflow"]) == json.loads(WORKFLOW)


def test_one_of_the_two_is_enough_and_others_come_along(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "{}")
    info.add_text("Software", "é")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png", pnginfo=info)
    assert metadata.read_workflow(tmp_path / "a.png") == {"workflow": "{}", "Software": "é"}


def test_texts_after_the_pixels(tmp_path):
    data = png(tmp_path / "a.png").read_bytes()
    start = data.index(b"IDAT") - 4
    text = data[data.index(b"tEXt") - 4 : start]
    moved = data.replace(text, b"")
    (tmp_path / "a.png").write_bytes(moved[:-12] + text + moved[-12:])
    assert json.loads(metadata.read_workflow(tmp_path / "a.png")["prompt"]) == GRAPH


def test_a_webp_chunk_of_odd_length_comes_first(tmp_path):
    data = webp(tmp_path / "a.webp").read_bytes()
    (tmp_path / "a.webp").write_bytes(data[:12] + b"ODD \3\0\0\0abc\0" + data[12:])
    assert json.loads(metadata.read_workflow(tmp_path / "a.webp")["prompt"]) == GRAPH


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "mp4"])
def test_no_workflow(tmp_path, kind):
    path = tmp_path / "plain"
    if kind == "mp4":
        mp4.write_mp4(path, [np.zeros((48, 64, 3), np.uint8)], Fraction(16))
    else:
        Image.new("RGB", (8, 6)).save(path, kind)
    with pytest.raises(PiyingError, match=r"plain carries no workflow.*original file"):
        metadata.read_workflow(path)


@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0 jpeg", b'{"nodes": []}', b"RIFF\0\0\0\0WAVEfmt ", b"\0" * 100])
def test_other_kinds_of_file(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PiyingError, match=r"a\.png is no PNG, WEBP, MP4, MOV, WEBM or MKV"):
        metadata.read_workflow(tmp_path / "a.png")


def test_empty_missing_and_folder(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(PiyingError, match="a is empty"):
        metadata.read_workflow(tmp_path / "a")
    with pytest.raises(PiyingError, match="no such file or folder"):
        metadata.read_workflow(tmp_path / "b")
    with pytest.raises(PiyingError, match=r"Cannot read .*: "):
        metadata.read_workflow(tmp_path)


@pytest.mark.parametrize("make", [png, webp, lambda path: container(path, "-f", "mp4")], ids=["png", "webp", "mp4"])
def test_cut_short(tmp_path, make):
    data = make(tmp_path / "a").read_bytes()
    # The workflow is in the middle of a PNG, at the very end of a WEBP.
    end = {b"\x89PNG": data.find(b"tEXt") + 20, b"RIFF": len(data) - 10}.get(data[:4], len(data) // 2)
    (tmp_path / "a").write_bytes(data[:end])
    with pytest.raises(PiyingError, match="damaged or cut short|re-encoded since, or cut short"):
        metadata.read_workflow(tmp_path / "a")


@pytest.mark.parametrize("make", [png, webp], ids=["png", "webp"])
def test_damaged_files_raise_nothing_else(tmp_path, make):
    chance = random.Random(5)
    whole = make(tmp_path / "a").read_bytes()
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(12, len(data))] = chance.randrange(256)
        (tmp_path / "a").write_bytes(data[: chance.randint(12, len(data))])
        try:
            metadata.read_workflow(tmp_path / "a")
        except PiyingError:
            refused += 1
    assert refused > 100


def test_a_packed_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_TEXT", 100_000)
    for size, refused in ((100_000, False), (200_000, True)):
        text = b"prompt\0\0" + zlib.compress(b"x" * size)
        head = png(tmp_path / "a").read_bytes()[:33]
        chunk = len(text).to_bytes(4, "big") + b"zTXt" + text + bytes(4)
        (tmp_path / "a").write_bytes(head + chunk + bytes(4) + b"IEND" + bytes(4))
        if refused:
            with pytest.raises(PiyingError, match="damaged"):
                metadata.read_workflow(tmp_path / "a")
        else:
            assert metadata.read_workflow(tmp_path / "a") == {"prompt": "x" * size}


def test_too_much_text_in_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_TEXT", 1000)
    mp4.write_mp4(tmp_path / "a", [np.zeros((48, 64, 3), np.uint8)], Fraction(16), metadata={"prompt": "x" * 2000})
    with pytest.raises(PiyingError, match="it holds more than"):
        metadata.read_workflow(tmp_path / "a")


def test_sections_of_streams_are_left_out():
    data = ";FFMETADATA1\nprompt=a\\\nb\\=\\\\\n;comment\n[STREAM]\nprompt=wrong\n[CHAPTER]\nSTART=0\n"
    assert metadata.from_ffmetadata(data.encode()) == {"prompt": "a\nb=\\"}


def test_reading_a_workflow_needs_no_heavy_module(tmp_path):
    png(tmp_path / "a.png")
    conftest = Path(__file__).parents[1] / "conftest.py"
    code = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("conftest", {str(conftest)!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
from piying.core.media import ffmpeg, images, metadata, mp4, naming, video
assert "prompt" in metadata.read_workflow(Path(sys.argv[1]))
print([name for name in ("torch", "numpy", "PIL", "cv2", "imageio_ffmpeg") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr


def test_every_module_annotates_and_stays_small():
    folder = Path(metadata.__file__).parent
    functions = [
        node
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert max(node.end_lineno - node.lineno + 1 for node in functions) <= 60
    assert all(node.returns for node in functions)
