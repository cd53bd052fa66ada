"""Pictures in and out, and which files a workflow may name."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from piying.core.errors import PiyingError
from piying.core.media.metadata import read_workflow
from piying.runner.core_nodes import CORE_NODE_CLASSES

NOT_ON_WINDOWS = pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
HIDDEN = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"nodes": []}}}


def run(name, **inputs):
    node = CORE_NODE_CLASSES[name]()
    return getattr(node, node.FUNCTION)(**inputs)


def save(path, colour=(255, 0, 51, 204), size=(3, 2), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(path, **options)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("input/a.png", "a.png"),
        ("input/a.png", "a.png [input]"),
        ("output/a.png", "a.png [output]"),
        ("temp/a.png", "a.png [temp]"),
        ("input/sub/a b.png", "sub/a b.png"),
        ("output/sub/a.png", "sub\\a.png [output]"),
        ("input/-i.png", "-i.png"),
        pytest.param("input/concat:a|b.png", "concat:a|b.png", marks=NOT_ON_WINDOWS),
        ("input/皮影.png", "皮影.png"),
        ("input/a [x].png", "a [x].png"),
        ("input/sub/a.png", "./sub/../sub/a.png"),
    ],
)
def test_names_that_are_found(host, tmp_path, file, name):
    save(tmp_path / file)
    assert CORE_NODE_CLASSES["LoadImage"].VALIDATE_INPUTS(image=name) is True
    assert run("LoadImage", image=name)[0].shape == (1, 2, 3, 3)


@pytest.mark.parametrize(
    "name",
    [
        "missing.png",
        "../secret.png",
        "sub/../../secret.png",
        "..\\secret.png",
        "../output/../secret.png [output]",
        "{outside}/secret.png",
        "/dev/zero",
        "C:\\secret.png",
        "file:{outside}/secret.png",
        "link.png",
        "folder_link/secret.png",
        "circle",
        "zero",
        "pipe",
        "folder",
        "",
        ".",
        " [input]",
        "a.png/",
        "a.png/.",
        "a\0b.png",
        "a" * 5000,
        "\ud800.png",
        7,
        ["secret.png"],
        {"a": 1},
    ],
)
@pytest.mark.parametrize(("node", "field"), [("LoadImage", "image"), ("LoadVideo", "file")])
def test_names_that_are_refused(host, tmp_path, node, field, name):
    save(tmp_path / "secret.png")
    save(host.input / "a.png")
    (host.input / "folder").mkdir()
    if os.name != "nt":
        (host.input / "link.png").symlink_to(tmp_path / "secret.png")
        (host.input / "folder_link").symlink_to(tmp_path)
        (host.input / "circle").symlink_to(host.input / "circle")
        (host.input / "zero").symlink_to("/dev/zero")
        os.mkfifo(host.input / "pipe")
    given = name.format(outside=tmp_path) if isinstance(name, str) else name
    answer = CORE_NODE_CLASSES[node].VALIDATE_INPUTS(**{field: given})
    assert isinstance(answer, str)
    assert answer.startswith(f"{field} ")
    with pytest.raises(PiyingError):
        run(node, **{field: given})


def test_a_linked_name_is_not_known_before_the_run(host):
    for name in ("LoadImage", "LoadImageMask"):
        assert CORE_NODE_CLASSES[name].VALIDATE_INPUTS(image=None) is True


def test_a_changed_file_is_noticed(host):
    save(host.input / "a.png")
    before = CORE_NODE_CLASSES["LoadImage"].IS_CHANGED(image="a.png")
    save(host.input / "a.png", size=(4, 4))
    assert CORE_NODE_CLASSES["LoadImage"].IS_CHANGED(image="a.png") != before


def test_image_and_mask(host):
    save(host.input / "a.png")
    image, mask = run("LoadImage", image="a.png")
    assert image[0, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert mask[0].unique().tolist() == [pytest.approx(0.2)]


@pytest.mark.parametrize(("channel", "value"), [("alpha", 0.2), ("red", 1), ("green", 0), ("blue", 0.2)])
def test_one_channel(host, channel, value):
    save(host.input / "a.png")
    (mask,) = run("LoadImageMask", image="a.png", channel=channel)
    assert (mask.shape, mask.dtype) == ((1, 2, 3), torch.float32)
    assert mask.unique().tolist() == [pytest.approx(value)]


def test_without_transparency_nothing_is_masked(host):
    save(host.input / "a.png", (9, 9, 9))
    (mask,) = run("LoadImageMask", image="a.png", channel="alpha")
    assert mask.tolist() == [[[0, 0, 0], [0, 0, 0]]]


def test_a_colour_declared_transparent_is_masked(host):
    save(host.input / "a.png", (9, 9, 9), transparency=(9, 9, 9))
    assert run("LoadImageMask", image="a.png", channel="alpha")[0].min() == 1


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_damaged_pictures(host, data):
    (host.input / "a.png").write_bytes(data)
    for name, more in (("LoadImage", {}), ("LoadImageMask", {"channel": "red"})):
        with pytest.raises(PiyingError, match=r"a\.png"):
            run(name, image="a.png", **more)


def test_an_unknown_channel(host):
    save(host.input / "a.png")
    with pytest.raises(PiyingError, match="channel is 'grey'. Choose one of: alpha, red, green, blue"):
        run("LoadImageMask", image="a.png", channel="grey")


def test_saving_numbers_files_and_embeds_the_workflow(host):
    result = run("SaveImage", images=torch.rand(2, 4, 6, 3), filename_prefix="b/%width%x%height%", **HIDDEN)
    names = [(entry["filename"], entry["subfolder"], entry["type"]) for entry in result["ui"]["images"]]
    assert names == [("6x4_00001_.png", "b", "output"), ("6x4_00002_.png", "b", "output")]
    assert json.loads(read_workflow(host.output / "b/6x4_00002_.png")["prompt"]) == HIDDEN["prompt"]


def test_previews_go_to_the_temp_folder(host):
    result = run("PreviewImage", images=torch.rand(1, 4, 6, 3))
    assert result["ui"]["images"][0]["type"] == "temp"
    assert len(list(host.temp.iterdir())) == 1


@pytest.mark.parametrize("name", ["SaveImage", "SaveVideo", "SaveWEBM", "SaveAnimatedWEBP"])
@pytest.mark.parametrize("prefix", ["../a", "/tmp/a", "a/../../b", "C:/a", "a\0"])
def test_prefixes_that_lead_outside(host, name, prefix):
    answer = CORE_NODE_CLASSES[name].VALIDATE_INPUTS(filename_prefix=prefix)
    assert isinstance(answer, str)
    assert "filename_prefix" in answer


def test_an_empty_batch_is_not_saved(host):
    with pytest.raises(PiyingError, match="images has the shape"):
        run("SaveImage", images=torch.zeros(0, 4, 4, 3))


@pytest.mark.parametrize("lossless", [True, False])
def test_animations(host, lossless):
    images = torch.linspace(0, 1, 3)[:, None, None, None].repeat(1, 5, 7, 3)
    settings = {"fps": 6.0, "lossless": lossless, "quality": 80, "method": "fastest"}
    result = run("SaveAnimatedWEBP", images=images, filename_prefix="a", **settings, **HIDDEN)
    assert result["ui"]["animated"] == (True,)
    path = host.output / "a_00001_.webp"
    texts = read_workflow(path)
    assert json.loads(texts["workflow"]) == HIDDEN["extra_pnginfo"]["workflow"]
    with Image.open(path) as file:
        assert (file.n_frames, file.size) == (3, (7, 5))
        file.seek(1)
        assert np.abs(np.array(file.convert("RGB")).astype(int) - 127).max() <= (0 if lossless else 3)
        assert file.info["duration"] == 166


def test_a_single_image_is_no_animation(host):
    settings = {"fps": 6.0, "lossless": True, "quality": 80, "method": "default"}
    result = run("SaveAnimatedWEBP", images=torch.rand(1, 5, 7, 4), filename_prefix="a", **settings)
    assert result["ui"]["animated"] == (False,)


def test_animations_too_large_for_the_format(host):
    settings = {"fps": 6.0, "lossless": True, "quality": 80, "method": "fastest"}
    with pytest.raises(PiyingError, match="WebP holds 16383 at most"):
        run("SaveAnimatedWEBP", images=torch.zeros(1, 1, 16384, 3), filename_prefix="a", **settings)
    assert list(host.output.iterdir()) == []
