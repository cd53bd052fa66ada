"""Interpolate Frames: rates, motion, what hides and appears, cuts, and RIFE's files."""

from __future__ import annotations

import cv2
import numpy as np
import piying
import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.postprocessing.rife import Rife, RifeShape
from safetensors.torch import save_file

from .hosts import current_host

NODE = piying.NODE_CLASS_MAPPINGS["PiyingInterpolateFrames"]
SHAPE = RifeShape(
    widths=(16, 16, 16, 16),
    scales=(8, 4, 2, 1),
    encoder=((3, 4), (4, 4)),
    encoder_names=("encode.0", "encode.1"),
    is_linear=True,
    handed_on=0,
    unused=1,
    groups=1,
)


@pytest.fixture(autouse=True)
def host(tmp_path):
    (tmp_path / "frame_interpolation").mkdir()
    with current_host(models=[tmp_path], cache=tmp_path / "cache") as made:
        yield made


def interpolate(frames, **given):
    widgets = {"fps": 16.0, "model": "auto", "multiplier": 2, "to_fps": 0.0, "scene_cut": 0.4, **given}
    accepted = NODE.VALIDATE_INPUTS(model=widgets["model"])
    if accepted is not True:
        raise PiyingError(accepted)
    shown = NODE().interpolate(frames, **widgets)
    return (*shown["result"], shown["ui"]["piying"][0])


def texture(seed, height=160, width=240):
    """A picture as irregular as photos are, without edges that only one frame shows."""
    numbers = np.random.default_rng(seed).random((height // 8, width // 8, 3), np.float32)
    return cv2.resize(numbers, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


BACK, THING = texture(1, 200, 300), texture(2, 56, 56)


def scene(time):
    """A thing that crosses a picture to the right while the camera pans; whole and half times are whole pixels."""
    pan, place = round(4 * time), round(60 + 10 * time)
    frame = BACK[20:180, 20 + pan : 260 + pan].copy()
    frame[50:106, place : place + 56] = THING
    return torch.from_numpy(frame)


def psnr(made, true):
    return -10 * torch.log10(((made - true) ** 2).mean()).item()


def test_between_two_frames_is_where_things_are_then():
    frames = torch.stack([scene(0), scene(1), scene(2)])
    made, fps, count, record = interpolate(frames)
    assert (fps, count, record["made"], record["cuts"]) == (32.0, 5, 2, [])
    assert torch.equal(made[::2], frames), "frames that are there stay as they are"
    for index in (0, 1):
        true, blend = scene(index + 0.5), (frames[index] + frames[index + 1]) / 2
        found = made[2 * index + 1]
        assert psnr(found, true) > 27 and psnr(found, true) > psnr(blend, true) + 3
        # What the thing covers in one frame is in the other: beside it there is no ghost.
        beside = (slice(50, 106), slice(round(60 + 10 * (index + 0.5)) + 60, None))
        assert (found[beside] - true[beside]).abs().mean() < 0.02


def test_time_goes_evenly():
    made, _, _, _ = interpolate(torch.stack([scene(0), scene(4)]), multiplier=4)
    best = [max(range(17), key=lambda k: psnr(one, scene(k / 4))) for one in made]
    assert best == pytest.approx([0, 4, 8, 12, 16], abs=1)


@pytest.mark.parametrize(
    ("given", "fps", "count"),
    [
        ({"multiplier": 3}, 48.0, 25),
        ({"multiplier": 1}, 16.0, 9),
        ({"to_fps": 24.0}, 24.0, 13),
        ({"to_fps": 60.0}, 60.0, 31),
        ({"to_fps": 8.0}, 8.0, 5),
        ({"fps": 29.97, "to_fps": 59.94}, 59.94, 17),
    ],
)
def test_rates(given, fps, count):
    frames = torch.rand(1, 24, 32, 3).expand(9, -1, -1, -1)
    made, new_fps, number, _ = interpolate(frames, **given)
    assert (new_fps, number, len(made)) == (fps, count, count)
    assert (made - frames[0]).abs().max() < 1e-5, "what stands still goes on standing still"


def test_nothing_is_blended_across_a_cut():
    other = torch.from_numpy(texture(7))
    frames = torch.stack([scene(0), scene(1), other, other.flip(1)])
    made, _, _, record = interpolate(frames, multiplier=4)
    assert record["cuts"] == [1, 2]
    shown = [next((k for k, frame in enumerate(frames) if torch.equal(frame, one)), None) for one in made]
    assert shown[4:] == [1, 1, 2, 2, 2, 2, 3, 3, 3], "the nearer frame is repeated"
    assert shown[:4] == [0, None, None, None]
    assert interpolate(frames, scene_cut=1.0)[3]["cuts"] == []


def test_fast_motion_flashes_and_fades_are_no_cuts():
    frames = torch.stack([scene(0), scene(2), scene(2) * 0.7, scene(2) * 0.7 + 0.3, scene(4)])
    assert interpolate(frames)[3]["cuts"] == []


@pytest.mark.parametrize("size", [(1, 1), (8, 200), (17, 5), (30, 30)])
def test_small_pictures_too(size):
    made, _, _, _ = interpolate(torch.rand(3, *size, 3), scene_cut=1.0)
    assert made.shape == (5, *size, 3) and made.isfinite().all()
    assert interpolate(torch.rand(1, *size, 4))[2] == 1


def weights(share=0.0):
    """A network that sees no motion, and takes sigmoid(share) of the first frame."""
    torch.manual_seed(0)
    network = Rife(SHAPE)
    for index in range(4):
        last = network.get_submodule(f"block{index}.lastconv.0")
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        last.bias.data[16:20] = share  # of the mask: PixelShuffle makes one channel of four
    state = network.state_dict()
    for index in range(2):
        for kind in ("weight", "bias"):
            state[f"encode.{index}.{kind}"] = state.pop(f"encoder.{index}.{kind}")
    return {name: tensor.detach() for name, tensor in state.items()}


def test_a_rife_file_is_taken_and_seen_by_its_shapes(tmp_path):
    folder = tmp_path / "frame_interpolation"
    save_file(weights(1.0), folder / "rife.safetensors")
    with_training = {f"module.{name}": tensor for name, tensor in weights(1.0).items()}
    torch.save(with_training | {"module.teacher.x": torch.zeros(1)}, folder / "flownet.pkl")
    save_file(
        {f"blocks.{n[5:]}" if n.startswith("block") else n: t for n, t in weights(1.0).items()},
        folder / "z.safetensors",
    )
    frames = torch.stack([scene(0), scene(1)])
    share = torch.sigmoid(torch.tensor(1.0))
    for model in ("auto", "rife.safetensors", "flownet.pkl", "z.safetensors"):
        made, _, _, record = interpolate(frames, model=model)
        assert (made[1] - (share * frames[0] + (1 - share) * frames[1])).abs().max() < 1e-5
        assert record["place"] == "whole frames on cpu"
    assert interpolate(frames)[3]["model"] == "flownet.pkl", "the first by name"
    assert interpolate(frames, model="optical flow")[3]["model"] == "optical flow"


def test_other_files_are_refused_with_a_reason(tmp_path):
    folder = tmp_path / "frame_interpolation"
    save_file({"x": torch.zeros(3)}, folder / "other.safetensors")
    lacking = weights()
    del lacking["block2.conv0.0.0.weight"]
    save_file(lacking, folder / "lacking.safetensors")
    old = {name: tensor for name, tensor in weights().items() if not name.startswith("encode")}
    save_file(old, folder / "rife46.safetensors")
    broken = weights()
    broken["block0.lastconv.0.bias"][0] = float("nan")
    save_file(broken, folder / "broken.safetensors")
    frames = torch.rand(2, 20, 20, 3)
    for model, sentence in (
        ("other.safetensors", r"is no RIFE model of version 4\.7 to 4\.26\. Choose one of these"),
        ("rife46.safetensors", r"is no RIFE model of version 4\.7 to 4\.26\. Choose one of these"),
        ("lacking.safetensors", r"is no RIFE model of version 4\.7 to 4\.26 \(.*Missing key.*block2\.conv0"),
        ("broken.safetensors", r"broken\.safetensors: block0\.lastconv\.0\.bias"),
        ("gone.pth", r"model 'gone\.pth' is not in models/frame_interpolation\. Here are: auto, optical flow, broken"),
    ):
        with pytest.raises(PiyingError, match=sentence):
            interpolate(frames, model=model, scene_cut=1.0)


@pytest.mark.parametrize(("given", "sentence"), [({"fps": 0.0}, "fps is 0"), ({"to_fps": 2000.0}, "to_fps is 2000")])
def test_rates_that_are_none_are_refused(given, sentence):
    with pytest.raises(PiyingError, match=sentence):
        interpolate(torch.rand(2, 16, 16, 3), **given)
