"""Calls of core nodes on random values: odd sizes, batches of different sizes, every choice, edges and beyond."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

Call = dict[str, Any]

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")


def arrays() -> dict[str, Any]:
    """The values that the calls name: images, masks and sound, from a seed."""
    random = np.random.default_rng(11)
    shapes = {
        "image": (1, 37, 53, 3),
        "batch": (3, 20, 31, 3),
        "pair": (2, 20, 31, 3),
        "small": (2, 7, 11, 3),
        "rgba": (2, 20, 31, 4),
        "large": (1, 61, 90, 3),
        "pixel": (1, 1, 1, 3),
        "mask": (1, 37, 53),
        "masks": (3, 20, 31),
        "two_masks": (2, 20, 31),
        "small_mask": (1, 5, 9),
        "large_mask": (2, 61, 90),
        "flat_mask": (20, 31),
    }
    found: dict[str, Any] = {name: random.random(shape, np.float32) for name, shape in shapes.items()}
    found["beyond"] = random.random((1, 13, 17, 3), np.float32) * 3 - 1  # savers and Lanczos have to cut off
    found["sparse_mask"] = (random.random((2, 33, 47)) > 0.97).astype(np.float32)
    return found


def a(name: str) -> dict[str, str]:
    return {"$array": name}


def cases() -> list[Call]:
    return [{"node": node, "inputs": inputs} for part in PARTS for node, inputs in part()]


def _scalings() -> Iterator[tuple[str, Any]]:
    sizes = ((17, 29), (80, 91), (0, 44), (61, 0), (0, 0), (1, 1), (53, 37), (300, 3))
    for method, crop, (width, height) in product(METHODS, ("disabled", "center"), sizes):
        size = {"width": width, "height": height, "crop": crop}
        yield "ImageScale", {"image": a("image"), "upscale_method": method, **size}
    for method, name in product(METHODS, ("batch", "rgba", "beyond")):
        size = {"width": 40, "height": 21, "crop": "center"}
        yield "ImageScale", {"image": a(name), "upscale_method": method, **size}
    for method, scale in product(METHODS, (0.37, 1.0, 1.83, 4.05)):
        yield "ImageScaleBy", {"image": a("batch"), "upscale_method": method, "scale_by": scale}


def _batches() -> Iterator[tuple[str, Any]]:
    for first, second in (("batch", "pair"), ("pair", "image"), ("image", "small"), ("small", "large")):
        yield "ImageBatch", {"image1": a(first), "image2": a(second)}
    for amount in (1, 3):
        yield "RepeatImageBatch", {"image": a("batch"), "amount": amount}
    for index, length in ((0, 1), (1, 5), (9, 2), (0, 3), (2, 1)):
        yield "ImageFromBatch", {"image": a("batch"), "batch_index": index, "length": length}
    for name in ("image", "batch"):
        yield "GetImageSize", {"image": a(name)}
        yield "ImageInvert", {"image": a(name)}


def _crops() -> Iterator[tuple[str, Any]]:
    for width, height, x, y in ((10, 12, 3, 4), (100, 100, 20, 5), (5, 5, 999, 999), (1, 1, 30, 19), (31, 20, 0, 0)):
        yield "ImageCrop", {"image": a("batch"), "width": width, "height": height, "x": x, "y": y}
    for x, y, width, height in ((0, 0, 5, 6), (7, 9, 100, 3), (30, 19, 1, 1)):
        for mask in ("masks", "flat_mask"):
            yield "CropMask", {"mask": a(mask), "x": x, "y": y, "width": width, "height": height}


def _paddings() -> Iterator[tuple[str, Any]]:
    sides = ((8, 0, 16, 24), (0, 0, 0, 0), (16, 16, 16, 16), (0, 8, 0, 0), (0, 0, 8, 0), (3, 5, 0, 7))
    for left, top, right, bottom in sides:
        for feathering in (0, 1, 5, 9, 40):
            around = {"left": left, "top": top, "right": right, "bottom": bottom, "feathering": feathering}
            yield "ImagePadForOutpaint", {"image": a("batch"), **around}
            yield "ImagePadForOutpaint", {"image": a("image"), **around}


def _composites() -> Iterator[tuple[str, Any]]:
    for source in ("small", "pair", "batch", "image", "large", "rgba"):
        for mask in (None, "small_mask", "masks", "large_mask", "flat_mask"):
            for x, y in ((0, 0), (5, 3), (30, 19), (31, 20), (500, 0)):
                given = {"destination": a("batch"), "source": a(source), "x": x, "y": y, "resize_source": False}
                yield "ImageCompositeMasked", given | ({"mask": a(mask)} if mask else {})
            given = {"destination": a("pair"), "source": a(source), "x": 2, "y": 0, "resize_source": True}
            yield "ImageCompositeMasked", given | ({"mask": a(mask)} if mask else {})
    yield (
        "ImageCompositeMasked",
        {"destination": a("rgba"), "source": a("rgba"), "x": 3, "y": 2, "resize_source": False},
    )


def _conversions() -> Iterator[tuple[str, Any]]:
    for value, width, height in ((1.0, 5, 3), (0.0, 1, 1), (0.37, 31, 20)):
        yield "SolidMask", {"value": value, "width": width, "height": height}
    for mask in ("mask", "masks", "flat_mask"):
        yield "MaskToImage", {"mask": a(mask)}
        yield "InvertMask", {"mask": a(mask)}
    for channel in ("red", "green", "blue", "alpha"):
        yield "ImageToMask", {"image": a("rgba"), "channel": channel}
    yield "ImageToMask", {"image": a("batch"), "channel": "blue"}


def _shapes() -> Iterator[tuple[str, Any]]:
    masks = ("sparse_mask", "masks", "flat_mask", "small_mask")
    for mask, expand, tapered in product(masks, (-7, -2, -1, 0, 1, 2, 6, 60), (True, False)):
        yield "GrowMask", {"mask": a(mask), "expand": expand, "tapered_corners": tapered}
    one_side = [tuple(5 if place == side else 0 for place in range(4)) for side in range(4)]
    for mask, sides in product(("masks", "flat_mask"), [(0, 0, 0, 0), *one_side, (3, 4, 5, 6), (99, 99, 99, 99)]):
        names = ("left", "top", "right", "bottom")
        yield "FeatherMask", {"mask": a(mask), **dict(zip(names, sides, strict=True))}


def _combinations() -> Iterator[tuple[str, Any]]:
    operations = ("multiply", "add", "subtract", "and", "or", "xor")
    sources, places = ("small_mask", "masks", "flat_mask", "mask"), ((0, 0), (5, 3), (28, 18), (31, 20))
    for operation, source, (x, y) in product(operations, sources, places):
        given = {"destination": a("masks"), "source": a(source), "x": x, "y": y, "operation": operation}
        yield "MaskComposite", given
    for operation in operations:
        given = {"destination": a("flat_mask"), "source": a("small_mask"), "x": 1, "y": 2, "operation": operation}
        yield "MaskComposite", given


def _values() -> Iterator[tuple[str, Any]]:
    for first, second, between in (("a", "b", ""), ("", "", ", "), ("多\n行", "Zeilen", "\n")):
        yield "StringConcatenate", {"string_a": first, "string_b": second, "delimiter": between}
    values = {"Int": 2**62, "Float": 0.1, "String": "皮影", "StringMultiline": "a\nb", "Boolean": True}
    for name, value in values.items():
        yield f"Primitive{name}", {"value": value}
    for source in (None, "text", 3, 0.1, True, [1, "a"], {"b": [None]}):
        yield "PreviewAny", {"source": source}


PARTS = (_scalings, _batches, _crops, _paddings, _composites, _conversions, _shapes, _combinations, _values)
