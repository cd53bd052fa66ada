"""PNG out, any image in."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from piying.core.atomic_write import unfinished_file
from piying.core.errors import PiyingError
from piying.core.media import images, metadata


def picture(height: int = 6, width: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.rand(height, width, channels, generator=torch.Generator().manual_seed(1))


def test_values_are_cut_off_as_comfyui_cuts_them():
    values = torch.tensor([0.0, 0.5, 0.999, 1.0, 1.5, -0.5, float("nan"), float("inf"), 100.9 / 255])
    assert images.to_uint8(values).tolist() == [0, 127, 254, 255, 255, 0, 0, 255, 100]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_widened_before_scaling(dtype):
    image = (torch.arange(256) / 255).to(dtype)
    expected = (image.float() * 255).clamp(0, 255).byte().numpy()
    assert np.array_equal(images.to_uint8(image), expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_png_round_trip(tmp_path, channels):
    image = picture(channels=channels)
    images.write_png(tmp_path / "a", image)
    opened = Image.open(tmp_path / "a")
    assert (opened.format, opened.mode) == ("PNG", {3: "RGB", 4: "RGBA"}[channels])
    assert np.array_equal(np.array(opened), np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8))


def test_png_carries_json_in_plain_text_chunks(tmp_path):
    graph = {"1": {"inputs": {"text": '皮影 é 😀 "\\n" =;#\n', "half": "\ud83d"}}}
    text = json.dumps(graph, ensure_ascii=False, indent=1)
    images.write_png(tmp_path / "a.png", picture(), metadata={"prompt": text, "workflow": "{}"})
    data = (tmp_path / "a.png").read_bytes()
    assert b"tEXtprompt\0{" in data and b"iTXt" not in data
    assert json.loads(Image.open(tmp_path / "a.png").text["prompt"]) == graph
    assert json.loads(metadata.read_workflow(tmp_path / "a.png")["prompt"]) == graph


def test_png_is_deterministic_and_arrays_equal_tensors(tmp_path):
    image = picture()
    images.write_png(tmp_path / "a", image)
    images.write_png(tmp_path / "b", images.to_uint8(image))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_compress_level_reaches_pillow(tmp_path):
    flat = torch.zeros(64, 64, 3)
    images.write_png(tmp_path / "a", flat, compress_level=0)
    images.write_png(tmp_path / "b", flat)
    assert (tmp_path / "a").stat().st_size > 64 * 64 * 3 > (tmp_path / "b").stat().st_size


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (1, 6, 8, 3), (0, 8, 3)])
def test_png_refuses_other_shapes(tmp_path, shape):
    with pytest.raises(PiyingError, match=r"The image is uint8 \[.*Give"):
        images.write_png(tmp_path / "a.png", torch.zeros(shape))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [{"": "x"}, {"k" * 80: "x"}, {"影": "x"}, {"a\nb": "x"}, {"a": "\0"}, {"a": "x\\"}])
def test_metadata_no_file_can_hold_is_refused(tmp_path, bad):
    with pytest.raises(PiyingError, match="cannot be stored"):
        images.write_png(tmp_path / "a.png", picture(), metadata=bad)


def test_a_folder_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PiyingError, match=r"Cannot save the image in .*file: a file stands"):
        images.write_png(tmp_path / "file" / "a.png", picture())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("old")
    # The name of the file that is written to is random.
    monkeypatch.setattr(os, "urandom", bytes)
    with unfinished_file(tmp_path) as unfinished:
        pass
    unfinished.symlink_to("/dev/full")
    with pytest.raises(PiyingError, match=r"Cannot save the image in .*disk is full"):
        images.write_png(tmp_path / "a.png", picture())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "old"


def test_read_rgb(tmp_path):
    pixels = images.to_uint8(picture())
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, mask = images.read_image(tmp_path / "a.png")
    assert image.dtype == mask.dtype == torch.float32
    assert torch.equal(image, torch.from_numpy(pixels.astype(np.float32) / 255.0)[None])
    assert mask.shape == (1, 64, 64) and not mask.any()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_read_alpha(tmp_path, mode):
    pixels = images.to_uint8(picture(channels=4))
    Image.fromarray(pixels).convert(mode).save(tmp_path / ("a.tif" if mode == "PA" else "a.png"))
    image, mask = images.read_image(next(tmp_path.iterdir()))
    assert image.shape == (1, 6, 8, 3)
    assert torch.equal(mask, 1.0 - torch.from_numpy(pixels[None, ..., 3].astype(np.float32) / 255.0))


def test_read_palette_transparency(tmp_path):
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((3, 1), 1)
    image.save(tmp_path / "a.png", transparency=1)
    pixels, mask = images.read_image(tmp_path / "a.png")
    assert pixels[0, 0, 0].tolist() == [1, 0, 0]
    assert mask.shape == (1, 2, 4) and mask.sum() == 1 and mask[0, 1, 3] == 1


def test_read_follows_the_camera(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image, _ = images.read_image(tmp_path / "a.jpg")
    assert image.shape == (1, 32, 16, 3)
    assert image[0, :14].min() > 0.9 and image[0, 18:].max() < 0.1


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif"])
def test_read_every_frame(tmp_path, name):
    frames = [Image.new("RGB", (8, 6), (60 * n, 0, 0)) for n in range(1, 4)]
    frames[0].save(
        tmp_path / name,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if "webp" in name else {}),
    )
    image, mask = images.read_image(tmp_path / name)
    assert image.shape == (3, 6, 8, 3) and len(mask) == 3
    assert (image[:, 0, 0, 0] * 255).round().tolist() == [60, 120, 180]


def test_only_the_picture_of_a_multi_picture_photo(tmp_path):
    photo = Image.new("RGB", (8, 6), (200, 0, 0))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 6))])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    image, mask = images.read_image(tmp_path / "a.jpg")
    assert len(image) == len(mask) == 1 and image[0, 0, 0, 0] > 0.7


def test_frames_with_and_without_alpha_mix(tmp_path):
    frames = [Image.new("RGB", (4, 2)), Image.new("RGBA", (4, 2), (0, 0, 0, 0)), Image.new("RGB", (9, 9))]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    image, mask = images.read_image(tmp_path / "a.tif")
    assert image.shape == (2, 2, 4, 3)  # Another size is left out, as in ComfyUI.
    assert mask.mean((1, 2)).tolist() == [0, 1]


def test_read_16_bit_grey(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    image, _ = images.read_image(tmp_path / "a.png")
    assert (image[0, 0, :, 0] * 255).round().tolist() == [0, 128, 255]


def test_the_name_does_not_matter(tmp_path):
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "-a:%d.txt")
    assert images.read_image(tmp_path / "-a:%d.txt")[0].shape == (1, 2, 4, 3)


def bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    )


def test_a_bomb_in_one_frame(tmp_path):
    (tmp_path / "a.png").write_bytes(bomb(20_000))
    with pytest.raises(PiyingError, match=r"a\.png is too large.*Scale it down"):
        images.read_image(tmp_path / "a.png")


def test_a_bomb_in_many_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 5 * 100)
    frames = [Image.new("RGB", (10, 10), (n, 0, 0)) for n in range(6)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:5])
    assert len(images.read_image(tmp_path / "a.tif")[0]) == 5
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(PiyingError, match="too large"):
        images.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b'{"a": 1}', b"\0" * 5000, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_no_image(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PiyingError, match=r"a\.png is not an image.*Readable: PNG"):
        images.read_image(tmp_path / "a.png")


def test_missing_and_folder(tmp_path):
    with pytest.raises(PiyingError, match="no such file"):
        images.read_image(tmp_path / "a.png")
    with pytest.raises(PiyingError, match=r"Cannot read .*: "):
        images.read_image(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_cut_short(tmp_path, kind):
    file = io.BytesIO()
    Image.fromarray(images.to_uint8(picture(64, 64))).save(file, kind)
    (tmp_path / "a").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(PiyingError, match="damaged or cut short"):
        images.read_image(tmp_path / "a")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_raise_nothing_else(tmp_path):
    chance = random.Random(7)
    refused = 0
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "TGA", "PPM", "ICO", "JPEG2000", "AVIF"):
        if kind not in Image.SAVE:
            continue
        file = io.BytesIO()
        Image.fromarray(images.to_uint8(picture(32, 32))).save(file, kind)
        for _ in range(40):
            data = bytearray(file.getvalue())
            for _ in range(chance.randint(1, 6)):
                data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
            (tmp_path / "a").write_bytes(data[: chance.randint(10, len(data))])
            try:
                images.read_image(tmp_path / "a")
            except PiyingError:
                refused += 1
    assert refused > 200


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_an_error_while_reading_names_the_file(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(PiyingError, match=r"Cannot read .*a\.png: Input/output error"):
        images.read_image(tmp_path / "a.png")
