"""Mask arithmetic on inputs that can be checked by hand."""

from __future__ import annotations

import pytest
import torch
from piying.core.errors import PiyingError
from piying.runner.core_nodes import CORE_NODE_CLASSES


def run(name, *arguments):
    node = CORE_NODE_CLASSES[name]()
    return getattr(node, node.FUNCTION)(*arguments)[0]


def mask(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[None]


DOT = mask([0, 0, 0], [0, 1, 0], [0, 0, 0])


def test_solid_mask():
    assert run("SolidMask", 0.25, 3, 1).tolist() == [[[0.25, 0.25, 0.25]]]


def test_masks_become_images_and_back():
    image = run("MaskToImage", mask([0, 1]))
    assert image.shape == (1, 1, 2, 3)
    assert run("ImageToMask", image, "green").tolist() == [[[0, 1]]]
    assert run("MaskToImage", torch.zeros(2, 3)).shape == (1, 2, 3, 3)


def test_alpha_is_a_channel_where_there_is_one():
    image = torch.arange(4.0).reshape(1, 1, 1, 4)
    assert run("ImageToMask", image, "alpha").tolist() == [[[3]]]


def test_inverted():
    assert run("InvertMask", mask([0, 0.25])).tolist() == [[[1, 0.75]]]


def test_growing_by_a_cross_or_a_square():
    assert run("GrowMask", DOT, 1, True).tolist() == [[[0, 1, 0], [1, 1, 1], [0, 1, 0]]]
    assert run("GrowMask", DOT, 1, False).min() == 1


def test_shrinking_sees_nothing_outside():
    assert run("GrowMask", 1 - DOT, -1, True).tolist() == [[[1, 0, 1], [0, 0, 0], [1, 0, 1]]]
    assert run("GrowMask", torch.ones(1, 3, 3), -1, False).min() == 1


def test_growing_stops_when_nothing_changes():
    assert run("GrowMask", DOT, 16384, True).min() == 1
    assert run("GrowMask", DOT, 0, True).equal(DOT)


def test_feathering_as_comfyui_does_it():
    """The first line is darkened by the far side too, and the last is not: ComfyUI counts from -0."""
    assert run("FeatherMask", torch.ones(1, 1, 4), 2, 0, 0, 0).tolist() == [[[0.5, 1, 1, 1]]]
    assert run("FeatherMask", torch.ones(1, 1, 4), 0, 0, 2, 0).tolist() == [[[0.5, 1, 1, 1]]]
    assert run("FeatherMask", torch.ones(1, 4, 1), 0, 0, 0, 4)[0, :, 0].tolist() == [0.25, 1, 0.75, 0.5]


def test_crop():
    assert run("CropMask", mask([1, 2, 3], [4, 5, 6]), 1, 1, 9, 9).tolist() == [[[5, 6]]]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("multiply", 0.375), ("add", 1), ("subtract", 0), ("and", 0), ("or", 1), ("xor", 1)],
)
def test_combining(operation, expected):
    combined = run("MaskComposite", mask([0.5, 0.5, 0.1]), mask([0.75]), 1, 0, operation)
    assert combined[0, 0].tolist() == pytest.approx([0.5, expected, 0.1])


def test_what_lies_over_the_edge_is_cut():
    assert run("MaskComposite", mask([0, 0]), torch.ones(1, 4, 4), 1, 0, "add").tolist() == [[[0, 1]]]
    assert run("MaskComposite", mask([0, 0]), torch.ones(1, 1, 1), 2, 0, "add").max() == 0


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("CropMask", (DOT, 3, 0, 1, 1), "lies outside the mask, which is 3×3"),
        ("MaskComposite", (DOT, DOT, 4, 0, "add"), "outside destination, which is 3×3"),
        ("MaskComposite", (DOT, torch.ones(3, 1, 1), 0, 0, "add"), "source has 3 masks, destination 1"),
        ("MaskComposite", (DOT, DOT, 0, 0, "nand"), "operation is 'nand'"),
        ("ImageToMask", (torch.zeros(1, 2, 2, 3), "alpha"), "the image has 3: red, green, blue"),
        ("ImageToMask", (torch.zeros(1, 2, 2, 3), "grey"), "channel is 'grey'"),
        ("GrowMask", (torch.zeros(0, 2, 2), 1, True), "it is empty"),
        ("FeatherMask", (torch.zeros(3), 1, 1, 1, 1), "Connect a MASK"),
        ("InvertMask", (3,), "type int"),
    ],
)
def test_impossible_input_is_told_in_a_sentence(name, arguments, words):
    with pytest.raises(PiyingError, match=words):
        run(name, *arguments)
