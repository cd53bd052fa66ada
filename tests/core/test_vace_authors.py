"""src_video, src_mask, src_ref_images and latents equal those of the authors' code, where a checkout is at hand."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.wan.conditioning import append_mask, encode_task, encode_video, prepare
from piying.core.wan.task.extend import GivenFrames, extend
from piying.core.wan.task.inpaint import Brush, inpaint
from piying.core.wan.task.outpaint import Sides, outpaint
from piying.core.wan.task.reference import reference
from piying.core.wan.task.repaint import repaint
from piying.core.wan.task.vace_task import VACETask

from . import vace_authors as authors
from .vace_clips import as_read, box, clip, moving_box

pytestmark = pytest.mark.skipif(
    not authors.PATH, reason="needs a checkout of github.com/ali-vilab/VACE, named by VACE_PATH"
)

WIDTH, HEIGHT, FRAMES = 64, 48, 9


class Vae:
    """The built-in VAE, called as the authors call theirs."""

    def __init__(self):
        from diffusers import AutoencoderKLWan

        self.model = AutoencoderKLWan.from_pretrained(built_in("wan_vace").path, subfolder="vae")

    @torch.no_grad()
    def encode(self, videos):
        return [encode_video(self.model, video[None])[0] for video in videos]


@pytest.fixture(scope="module")
def vae():
    return Vae()


def in_255(frames):
    """Return frames as their annotators take them: one array [h, w, 3] each, here of floats so that 127.5 fits."""
    return list((frames * 255).numpy())


def src(frames, masks):
    """Return their lists of frames and masks in 0..255 as src_video [3, N, H, W] and src_mask [1, N, H, W]."""
    video = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float().div(127.5).sub(1.0)
    return video, torch.from_numpy(np.stack(masks))[None].float() / 255


def same_sources(task, frames, masks, size=(WIDTH, HEIGHT), count=FRAMES):
    inputs, (video, mask) = prepare(task, *size, count), src(frames, masks)
    assert torch.equal(inputs.mask[0], mask)
    torch.testing.assert_close(inputs.video[0], video, atol=2e-6, rtol=0)
    gray = (video == 0).all(0) & (mask[0] == 1)
    assert (inputs.video[0].permute(1, 2, 3, 0)[gray] == 0).all(), "gray is exactly 0"


@pytest.mark.parametrize("mode", ["firstframe", "lastframe", "firstlastframe"])
def test_extend_from_frames(monkeypatch, mode):
    first, last = clip(2, seed=1).split(1)
    annotator = authors.read("annotators.frameref", monkeypatch).FrameRefExpandAnnotator({"MODE": mode})
    new = FRAMES - (2 if mode == "firstlastframe" else 1)
    one, two = in_255(first)[0], in_255(last)[0]
    theirs = annotator.forward(image=one, image_2=two, expand_num=new)
    given = {"firstframe": (first,), "lastframe": (None, first), "firstlastframe": (first, last)}[mode]
    same_sources(extend(GivenFrames(*given), new, "new"), theirs["frames"], theirs["masks"])


@pytest.mark.parametrize("mode", ["firstclip", "lastclip", "firstlastclip"])
def test_extend_from_clips(monkeypatch, mode):
    first, last = clip(5, seed=2).split([3, 2])
    annotator = authors.read("annotators.frameref", monkeypatch).FrameRefExpandAnnotator({"MODE": mode})
    new = FRAMES - (5 if mode == "firstlastclip" else 3)
    theirs = annotator.forward(frames=in_255(first), frames_2=in_255(last), expand_num=new)
    given = {"firstclip": (first,), "lastclip": (None, first), "firstlastclip": (first, last)}[mode]
    same_sources(extend(GivenFrames(*given), FRAMES), theirs["frames"], theirs["masks"])


def inpainted(monkeypatch, video, mask):
    """Their annotator with the mid-gray they trained with; its own default is 128."""
    code = authors.read("annotators.inpainting", monkeypatch)
    annotator = code.InpaintingVideoAnnotator({"USE_AUG": False, "MODE": "mask", "MASK_COLOR": 127.5})
    theirs = annotator.forward(frames=in_255(video), mask=(mask[0] * 255).numpy().astype(np.uint8))
    return theirs["frames"], theirs["masks"]


def test_inpaint(monkeypatch):
    video, mask = clip(seed=3), box()
    same_sources(inpaint(video, mask), *inpainted(monkeypatch, video, mask))


@pytest.mark.parametrize(("shape", "mode"), [("as drawn", "original"), ("box", "bbox"), ("hull", "hull")])
def test_inpaint_shapes(monkeypatch, shape, mode):
    annotator = authors.read("annotators.maskaug", monkeypatch).MaskAugAnnotator({})
    drawn = torch.maximum(box(rows=slice(4, 9)), box(rows=slice(30, 44), columns=slice(34, 50)))
    wanted = annotator.forward((drawn[0] * 255).numpy().astype(np.uint8), {"mode": mode})
    mask = prepare(inpaint(clip(), drawn, Brush(shape=shape)), WIDTH, HEIGHT, FRAMES).mask[0, 0, 0]
    # Polygons are filled by another library, which may take a pixel of the outline more or less.
    assert (mask != torch.from_numpy(wanted > 0)).float().mean() < (0.01 if shape == "hull" else 1e-9)


@pytest.mark.parametrize(
    ("direction", "ratio", "sides"),
    [
        (["left", "right"], 0.25, Sides(left=25, right=25)),
        (["up"], 0.3, Sides(top=30)),
        (["left", "right", "up", "down"], 0.25, Sides(25, 25, 25, 25)),
    ],
)
def test_outpaint(monkeypatch, direction, ratio, sides):
    video = clip(5, 64, 64, seed=4)
    code = authors.read("annotators.outpainting", monkeypatch)
    # Their canvases are multiples of 8; the model takes multiples of 16.
    annotator = code.OutpaintingVideoAnnotator({"RETURN_MASK": True, "MASK_COLOR": 128, "KEEP_PADDING_RATIO": 16})
    theirs = annotator.forward([(frame * 255).round().byte().numpy() for frame in video], ratio, direction=direction)
    frames, masks = np.stack(theirs["frames"]), np.stack(theirs["masks"])
    frames = list(np.where(masks[..., None] > 0, 127.5, frames))
    task = outpaint(video, sides)
    same_sources(task, frames, list(masks), task.offered_size(), 5)


def test_a_picture_that_grows_and_comes_alive(monkeypatch):
    """Their expand_anything: the first frame outpainted, the others free."""
    picture = clip(1, 48, 48, seed=4)
    code = authors.read("annotators.outpainting", monkeypatch)
    outpainting = code.OutpaintingAnnotator({"RETURN_MASK": True, "MASK_COLOR": 128, "KEEP_PADDING_RATIO": 16})
    first = outpainting.forward((picture[0] * 255).round().byte().numpy(), 0.3, direction=["right"])
    canvas = np.where(first["mask"][..., None] > 0, 127.5, first["image"])
    annotator = authors.read("annotators.frameref", monkeypatch).FrameRefExpandAnnotator({"MODE": "firstframe"})
    theirs = annotator.forward(image=canvas, expand_num=FRAMES - 1)
    theirs["masks"][0] = first["mask"]
    task = outpaint(picture, Sides(right=30), length="continue")
    same_sources(task, theirs["frames"], theirs["masks"], task.offered_size())


def as_parts(task):
    """Return a task's frames in 0..255 and masks in 0..1 as their composition takes them."""
    inputs = prepare(task, WIDTH, HEIGHT, FRAMES)
    frames = ((inputs.video[0] + 1) * 127.5).permute(1, 2, 3, 0).numpy()
    return list(frames), list(inputs.mask[0, 0, ..., None].numpy())


PARTS = {
    "inpaint": lambda task=None: inpaint(clip(seed=5), box(), task=task),
    "another inpaint": lambda task=None: inpaint(clip(seed=5), moving_box(), task=task),
    "repaint": lambda task=None: repaint(clip(seed=6), task=task),
    "first frames": lambda task=None: extend(GivenFrames(clip(2, seed=7)), FRAMES, task=task),
    "last frame": lambda task=None: extend(GivenFrames(None, clip(1, seed=8)), FRAMES, task=task),
}


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ("inpaint", "repaint", ("repaint", "control")),
        ("inpaint", "another inpaint", ("repaint", "repaint")),
        ("first frames", "repaint", ("extension", "control")),
        ("first frames", "inpaint", ("extension", "repaint")),
        ("first frames", "last frame", ("extension", "extension")),
    ],
)
def test_combinations(monkeypatch, first, second, kinds):
    annotator = authors.read("annotators.composition", monkeypatch).CompositionAnnotator({})
    (frames_1, masks_1), (frames_2, masks_2) = as_parts(PARTS[first]()), as_parts(PARTS[second]())
    frames, masks = annotator.forward(*kinds, frames_1, frames_2, masks_1, masks_2)
    for task in (PARTS[second](PARTS[first]()), PARTS[first](PARTS[second]())):
        same_sources(task, frames, [mask[..., 0] for mask in masks])


def test_one_control_over_another(monkeypatch):
    annotator = authors.read("annotators.composition", monkeypatch).CompositionAnnotator({})
    below, above, where = clip(seed=9), clip(seed=10), box()
    masks = [torch.ones(HEIGHT, WIDTH, 1).numpy()] * FRAMES
    theirs, _ = annotator.forward(
        "control", "control", in_255(below), in_255(above), masks, [where[0, ..., None].numpy()] * FRAMES
    )
    task = repaint(above, where, task=repaint(below))
    same_sources(task, theirs, [np.full((HEIGHT, WIDTH), 255)] * FRAMES)


def test_nothing_is_gray_and_white(monkeypatch):
    video, mask, _ = authors.vace(monkeypatch).prepare_source([None], [None], [None], 5, (832, 480), "cpu")
    inputs = prepare(None, 832, 480, 5)
    assert torch.equal(inputs.video[0], video[0])
    assert torch.equal(inputs.mask[0], mask[0][:1])


def written(folder, pictures):
    from PIL import Image

    paths = []
    for index, picture in enumerate(pictures):
        paths.append(str(folder / f"{index}.png"))
        Image.fromarray((picture * 255).round().byte().numpy()).save(paths[-1])
    return paths


def test_references_on_white_in_the_order_given(monkeypatch, tmp_path):
    pictures = [clip(1, *size, seed=index)[0] for index, size in enumerate([(480, 832), (91, 333), (700, 60)])]
    sources = authors.vace(monkeypatch).prepare_source(
        [None], [None], [written(tmp_path, pictures)], 5, (832, 480), "cpu"
    )
    task = reference([(picture[None], None) for picture in pictures])
    for ours, theirs in zip(prepare(task, 832, 480, 5).references, sources[2][0], strict=True):
        torch.testing.assert_close(ours, theirs[:, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("count", "height", "width"), [(5, 480, 832), (5, 500, 880), (11, 480, 832), (7, 720, 1280), (5, 640, 640)]
)
def test_video_and_mask_of_any_size_and_length(monkeypatch, count, height, width):
    """Their size and length come from the source; taken over, `crop` and `spread` give their frames."""
    video = clip(count, height, width)
    mask = moving_box(count, height // 8, width // 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    mask = torch.nn.functional.pad(mask, (0, width - mask.shape[2], 0, height - mask.shape[1]))
    as_file = {"video": (video * 255).round().byte(), "mask": (mask[..., None].expand(-1, -1, -1, 3) * 255).byte()}
    monkeypatch.setitem(sys.modules, "decord", authors.VideoFiles(**as_file))
    theirs, areas, _ = authors.vace(monkeypatch).prepare_source(["video"], ["mask"], [None], 81, (832, 480), "cpu")
    _, frames, high, wide = theirs[0].shape
    # Without the gray that Inpaint adds, so that every pixel is compared.
    control = prepare(repaint(video, fit="crop", length="spread"), wide, high, frames)
    # Theirs is rounded to whole 255ths after scaling each way.
    torch.testing.assert_close(control.video[0], theirs[0], atol=1.2 / 127.5, rtol=0)
    assert (control.video[0] - theirs[0]).abs().mean() < 0.4 / 127.5
    edit = prepare(inpaint(video, mask, fit="crop", length="spread"), wide, high, frames)
    assert (edit.mask[0] != (areas[0] > 0.5)).float().mean() < 1e-3


TASKS = {
    "text": lambda: None,
    "repaint": lambda: repaint(clip(seed=11)),
    "inpaint": lambda: inpaint(clip(seed=12), moving_box()),
    "extend": lambda: extend(GivenFrames(clip(2, seed=13), clip(1, seed=14)), FRAMES),
    "outpaint": lambda: outpaint(clip(width=32), Sides(50, 0, 50, 0)),
    "reference": lambda: reference([(clip(1, 30, 90), None), (clip(2, 61, 17), None)]),
    "all": lambda: reference(
        [(clip(2, 33, 44), None)], task=repaint(clip(seed=15), task=inpaint(clip(seed=16), moving_box()))
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_latents(monkeypatch, vae, name):
    inputs = prepare(TASKS[name](), WIDTH, HEIGHT, FRAMES)
    pictures = [picture[:, None] for picture in inputs.references] or None
    theirs = authors.vace(monkeypatch, vae)
    frames, masks = [inputs.video[0]], [inputs.mask[0]]
    latents = theirs.vace_latent(
        theirs.vace_encode_frames(frames, [pictures], masks), theirs.vace_encode_masks(masks, [pictures])
    )
    with torch.no_grad():
        ours = append_mask(encode_task(partial(encode_video, vae.model), inputs), inputs)
    assert torch.equal(ours[0], latents[0])


@pytest.mark.skipif(not authors.WAN_PATH, reason="needs a checkout of github.com/Wan-Video/Wan2.1, named by WAN_PATH")
@pytest.mark.parametrize("name", ["inpaint", "reference"])
def test_latents_of_their_own_vae(monkeypatch, name):
    """Nothing of diffusers on their side: their VAE, at toy width, and their 96 channels."""
    pytest.importorskip("einops", reason="the VAE of Wan2.1 needs it")
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    theirs = authors.wan_vae()
    mean, scale = theirs.scale
    ours = AutoencoderKLWan(base_dim=8, z_dim=16, latents_mean=mean.tolist(), latents_std=(1 / scale).tolist())
    ours.load_state_dict(convert_wan_vae_to_diffusers(theirs.model.state_dict()))
    inputs = prepare(TASKS[name](), WIDTH, HEIGHT, FRAMES)
    pictures = [picture[:, None] for picture in inputs.references] or None
    code, frames, masks = authors.vace(monkeypatch, theirs), [inputs.video[0]], [inputs.mask[0]]
    with torch.no_grad():
        wanted = code.vace_latent(
            code.vace_encode_frames(frames, [pictures], masks), code.vace_encode_masks(masks, [pictures])
        )
        got = append_mask(encode_task(partial(encode_video, ours), inputs), inputs)
    assert got.shape[1] == 96
    torch.testing.assert_close(got[0], wanted[0], atol=1e-5, rtol=1e-4)


def test_an_empty_task_is_no_task():
    one, other = prepare(VACETask(), WIDTH, HEIGHT, FRAMES), prepare(None, WIDTH, HEIGHT, FRAMES)
    assert torch.equal(one.video, other.video)
    assert torch.equal(as_read(one.mask), other.mask)
