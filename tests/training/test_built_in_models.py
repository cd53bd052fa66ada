"""Quality gates: what the built-in models make is far better than chance. Their scores are in their model card."""

from __future__ import annotations

from diffusers import HunyuanDiTPipeline
from piying.training.evaluate import BUILT_IN, load, load_video, score_image, score_video
from piying.training.prompt_score import score
from piying.training.task_score import score_tasks
from piying.training.video_sampling import Sampling


def test_prompt_model_keeps_what_was_said():
    scores = score(BUILT_IN / "prompt", count=24, seed=7)
    assert scores["facts"] >= 0.9
    assert scores["language"] == 1
    assert scores["no_contradiction"] >= 0.9
    assert scores["no_motion_in_pictures"] == 1


def test_hunyuan_dit_draws_what_was_asked():
    """Chance is 0.2, 0.17 and 0.33."""
    pipeline = load(HunyuanDiTPipeline, BUILT_IN / "hunyuan_dit")
    scores = score_image(pipeline, 16, Sampling(steps=20, cfg=3.0, seed=7))
    assert scores["background"] >= 0.9
    assert scores["colour"] >= 0.9
    assert scores["shape"] >= 0.75
    assert scores["one_object"] >= 0.9


def test_wan_vace_draws_what_was_asked():
    """Chance is 0.2, 0.17, 0.33 and 0.2."""
    sampling = Sampling(frames=9, steps=12, cfg=4.0, shift=5.0, seed=7)
    scores = score_video(load_video(BUILT_IN / "wan_vace", sampling), 12, sampling)
    assert scores["background"] >= 0.9
    assert scores["colour"] >= 0.9
    assert scores["shape"] >= 0.7
    assert scores["motion"] >= 0.8
    assert scores["one_object"] >= 0.9


def test_wan_vace_makes_something_of_what_it_is_given():
    sampling = Sampling(frames=9, steps=12, cfg=2.5, shift=5.0, seed=7)
    pipeline = load_video(BUILT_IN / "wan_vace", sampling)
    scores = score_tasks(pipeline, 6, sampling, ["first_frame", "inpaint", "reference", "depth"])
    for task in scores.values():
        assert min(task["background"], task["colour"], task["motion"]) >= 0.8
        assert task["shape"] >= 0.5  # chance is 0.33
    assert scores["first_frame"]["kept_dB"] >= 20
    assert scores["inpaint"]["kept_dB"] >= 24
    assert scores["depth"]["followed"] >= 0.8
