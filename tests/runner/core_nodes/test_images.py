"""Image arithmetic on inputs that can be checked by hand."""

from __future__ import annotations

import pytest
import torch
from piying.core.errors import PiyingError
from piying.runner.core_nodes import CORE_NODE_CLASSES


def run(name, *arguments, **named):
    node = CORE_NODE_CLASSES[name]()
    return getattr(node, node.FUNCTION)(*arguments, **named)


def picture(rows, channels=3) -> torch.Tensor:
    """One image whose channels all are `rows`."""
    return torch.tensor(rows, dtype=torch.float32)[None, :, :, None].repeat(1, 1, 1, channels)


def plane(image, index=0) -> list:
    return image[index, :, :, 0].tolist()


QUARTERS = picture([[0.0, 0.25], [0.5, 0.75]])


def test_nearest_scaling_repeats_pixels():
    (image,) = run("ImageScale", QUARTERS, "nearest-exact", 4, 2, "disabled")
    assert plane(image) == [[0, 0, 0.25, 0.25], [0.5, 0.5, 0.75, 0.75]]


def test_area_scaling_is_the_mean():
    (image,) = run("ImageScale", QUARTERS, "area", 1, 1, "disabled")
    assert plane(image) == [[0.375]]


def test_lanczos_goes_through_eight_bits():
    (image,) = run("ImageScale", picture([[0.5] * 4] * 4), "lanczos", 2, 2, "disabled")
    assert plane(image) == [[pytest.approx(127 / 255)] * 2] * 2


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lanczos_keeps_channels_and_type(channels):
    (image,) = run("ImageScale", picture([[0.2] * 5] * 4, channels).half(), "lanczos", 3, 2, "disabled")
    assert (image.shape, image.dtype) == ((1, 2, 3, channels), torch.float16)


@pytest.mark.parametrize(
    ("width", "height", "size"), [(0, 0, (30, 40)), (20, 0, (15, 20)), (0, 3, (3, 4)), (0, 1, (1, 1)), (7, 9, (9, 7))]
)
def test_a_zero_keeps_the_aspect_ratio(width, height, size):
    (image,) = run("ImageScale", torch.zeros(2, 30, 40, 3), "bilinear", width, height, "disabled")
    assert image.shape == (2, *size, 3)


def test_centre_crop_cuts_before_scaling():
    (image,) = run("ImageScale", picture([[0.0, 0.25, 0.75, 1.0]]), "nearest-exact", 2, 1, "center")
    assert plane(image) == [[0.25, 0.75]]


def test_scaling_by_a_factor_rounds_as_python_does():
    (image,) = run("ImageScaleBy", torch.zeros(1, 5, 3, 3), "bilinear", 0.5)
    assert image.shape == (1, 2, 2, 3)


def test_batches_are_joined_in_the_size_of_the_first():
    (image,) = run("ImageBatch", QUARTERS, torch.ones(2, 6, 4, 3))
    assert image.shape == (3, 2, 2, 3)
    assert plane(image, 0) == plane(QUARTERS)
    assert image[1:].min() == 1


def test_colour_and_transparency_are_joined_as_opaque():
    (image,) = run("ImageBatch", torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 4))
    assert image[:, 0, 0, 3].tolist() == [1, 0]


def test_repeating_and_picking():
    numbers = torch.arange(3.0)[:, None, None, None].repeat(1, 1, 1, 3)
    (repeated,) = run("RepeatImageBatch", numbers, 2)
    assert repeated[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    for index, length, expected in ((1, 1, [1]), (1, 9, [1, 2]), (9, 9, [2])):
        assert run("ImageFromBatch", numbers, index, length)[0][:, 0, 0, 0].tolist() == expected


def test_size():
    assert run("GetImageSize", torch.zeros(2, 3, 4, 3), unique_id="5") == (4, 3, 2)


def test_crop_stops_at_the_edge_and_keeps_a_pixel():
    assert plane(run("ImageCrop", QUARTERS, 9, 1, 1, 0)[0]) == [[0.25]]
    assert plane(run("ImageCrop", QUARTERS, 5, 5, 99, 99)[0]) == [[0.75]]


def test_negative():
    assert plane(run("ImageInvert", QUARTERS)[0]) == [[1.0, 0.75], [0.5, 0.25]]


def test_padding_is_grey_and_masked():
    image, mask = run("ImagePadForOutpaint", QUARTERS, 1, 0, 0, 1, 0)
    assert plane(image) == [[0.5, 0, 0.25], [0.5, 0.5, 0.75], [0.5, 0.5, 0.5]]
    assert mask.tolist() == [[[1, 0, 0], [1, 0, 0], [1, 1, 1]]]


def test_padding_fades_with_the_square_of_the_distance():
    _, mask = run("ImagePadForOutpaint", torch.zeros(1, 5, 5, 3), 1, 0, 0, 0, 2)
    assert mask[0, 2].tolist() == [1, 1, 0.25, 0, 0, 0]


def test_an_image_too_small_for_its_feather_has_none():
    _, mask = run("ImagePadForOutpaint", torch.zeros(1, 4, 4, 3), 1, 0, 0, 0, 2)
    assert mask[0, 2].tolist() == [1, 0, 0, 0, 0]


def test_composite_with_a_mask():
    base, over = torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 2, 3)
    mask = torch.tensor([[[0.0, 1.0], [0.5, 1.0]]])
    (image,) = run("ImageCompositeMasked", base, over, 1, 0, False, mask)
    assert plane(image) == [[0, 0, 1], [0, 0.5, 1]]
    assert base.max() == 0, "the input stays as it is"


def test_composite_is_cut_at_the_edges_and_resized_on_wish():
    base, over = torch.zeros(2, 2, 2, 3), torch.ones(1, 1, 3, 3)
    (image,) = run("ImageCompositeMasked", base, over, 1, 1, False)
    assert plane(image, 1) == [[0, 0], [0, 1]]
    assert run("ImageCompositeMasked", base, over, 0, 0, True)[0].min() == 1
    assert run("ImageCompositeMasked", base, over, 7, 0, False)[0].max() == 0


def test_composite_over_transparency_is_opaque():
    (image,) = run("ImageCompositeMasked", torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 1, 3), 0, 0, False)
    assert image[0, 0, :, 3].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("ImageScale", (torch.zeros(0, 4, 4, 3), "area", 2, 2, "disabled"), "it is empty"),
        ("ImageScale", (torch.zeros(4, 4), "area", 2, 2, "disabled"), r"has the shape \[4, 4\]"),
        ("ImageScale", (None, "area", 2, 2, "disabled"), "type NoneType. Connect a node that gives IMAGE"),
        ("ImageScale", (QUARTERS, "best", 2, 2, "disabled"), "upscale_method is 'best'. Choose one of: nearest-exact"),
        ("ImageScale", (QUARTERS, "area", 2, 2, "left"), "crop is 'left'"),
        ("ImageScale", (torch.zeros(1, 2, 90, 3), "area", 1, 300, "center"), "nothing is left of an image of 90×2"),
        ("ImageScaleBy", (QUARTERS, "area", 0.1), "The size would be 0×0"),
        ("ImageBatch", (QUARTERS, torch.zeros(1, 2, 2, 1)), "One batch has 1 channels, the other 3"),
        ("ImageCrop", ("text", 1, 1, 0, 0), "type str"),
        ("GetImageSize", (torch.zeros(1, 0, 3, 3),), "it is empty"),
        ("ImageCompositeMasked", (QUARTERS, QUARTERS, 0, 0, False, torch.zeros(1, 0, 2)), "mask has the shape"),
        ("ImageCompositeMasked", (QUARTERS, torch.zeros(1, 1, 1, 1), 0, 0, False), "source has 1 channels"),
    ],
)
def test_impossible_input_is_told_in_a_sentence(name, arguments, words):
    with pytest.raises(PiyingError, match=words):
        run(name, *arguments)
