"""The sample inputs: all there, small, and what their names say."""

from __future__ import annotations

import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.samples import CLIPS, FOLDER, INPUT_FILES, PICTURES, place_clips, sample_clip, sample_picture
from piying.training.reading import read_picture, read_video


def test_every_sample_is_there_and_small():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    named = {f"{file}.mp4" for file in CLIPS.values()} | {f"{file}.png" for file in PICTURES.values()}
    assert set(files) == named | {"moving_circle_mask.webp", "waving_person_pose_small.mp4"}
    assert max(files.values()) < 20_000


@pytest.mark.parametrize("name", CLIPS)
def test_clips_suit_wan_vace(name):
    frames, _, fps, mask = sample_clip(name)
    assert (len(frames), fps) == (17, 16)
    assert frames.shape[1] % 16 == frames.shape[2] % 16 == 0
    assert mask.shape == frames.shape[:3]
    assert not torch.equal(frames[0], frames[-1])


def test_the_circle_is_one_and_its_mask_follows_it():
    frames, audio, _, mask = sample_clip("moving circle")
    reading = read_video(frames.numpy())
    assert (reading.colour, reading.shape, reading.background) == ("red", "circle", "blue")
    assert reading.motion == "moves right"
    red = frames[..., 0] > 0.5
    assert ((red & (mask > 0)).sum() / (red | (mask > 0)).sum()) > 0.95
    assert audio["waveform"].shape[-1] / audio["sample_rate"] == pytest.approx(17 / 16, abs=0.01)
    assert audio["waveform"].abs().max() > 0.2


def test_controls_have_no_sound_and_an_empty_mask():
    for name in ("moving square, depth", "waving person, pose"):
        _, audio, _, mask = sample_clip(name)
        assert audio is None
        assert mask.max() == 0


def test_the_reference_is_cut_out():
    picture, transparent = sample_picture("red triangle")
    on_white = picture * (1 - transparent[..., None]) + transparent[..., None]
    reading = read_picture(on_white[0].numpy())
    assert (reading.colour, reading.shape, reading.background) == ("red", "triangle", "white")


def test_first_and_last_frame_belong_together():
    first, last = (read_picture(sample_picture(name)[0][0].numpy()) for name in ("first frame", "last frame"))
    assert (first.colour, first.shape, first.background) == (last.colour, last.shape, last.background)
    assert not torch.equal(sample_picture("first frame")[0], sample_picture("last frame")[0])


def test_unknown_samples_are_refused():
    with pytest.raises(PiyingError, match="sample is 'cat'. Choose one of: moving circle"):
        sample_clip("cat")


def test_clips_are_put_into_an_input_folder_once(tmp_path):
    own = tmp_path / "piying_moving_circle.mp4"
    own.write_bytes(b"a person's own")
    place_clips(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(INPUT_FILES)
    assert own.read_bytes() == b"a person's own"
    assert (tmp_path / "piying_waving_person_pose.mp4").stat().st_size > 1000


def test_a_folder_that_takes_no_file_is_named(tmp_path, caplog):
    (tmp_path / "input").write_text("a file")
    place_clips(tmp_path / "input")
    assert f"cannot be put into {tmp_path / 'input'}" in caplog.text
