"""The speed benchmark compares like with like: one model, one noise, and predictions counted alike."""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager

import pytest

STEPS = 6
WAYS = ("both prompts in one batch", "cfg_start 0.4", "TaylorSeer Lite", "TextKVCache")


@pytest.fixture(scope="module")
def contest(module, tmp_path_factory):
    options = module("speed").read_options(["--captions", "1", "--steps", str(STEPS), "--ways", *WAYS])
    options.comfyui = None
    return module("speed_contest").Contest(options, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def found(contest):
    return contest.run()


@pytest.fixture(scope="module")
def pipeline(module, contest, found):
    return module("speed_diffusers").Pipeline(contest.setting)


@pytest.fixture(scope="module")
def plain(pipeline):
    return pipeline.video("a red circle", 0)


def test_the_reference_is_plain_diffusers_and_both_predict_twice_a_step(found):
    for name in ("reference", "diffusers"):
        row = found["measures"][name]
        assert (row["psnr"], row["ssim"], row["predictions"]) == (None, 1, 2 * STEPS)
        assert row["percent of floor"] == pytest.approx(100 * row["floor"] / row["seconds"], rel=0.05)
    rows = found["measures"]
    assert rows["diffusers"]["floor"] == rows["reference"]["floor"] > 0


def test_predictions_are_counted_by_prompt_and_by_what_was_computed(found):
    rows = found["measures"]
    assert rows["both prompts in one batch"]["predictions"] == 2 * STEPS
    assert rows["cfg_start 0.4"]["predictions"] == 2 * STEPS - 3  # steps 0, 1 and 2 go without
    assert rows["diffusers, TaylorSeer Lite"]["predictions"] < 2 * STEPS
    assert rows["diffusers, TaylorSeer Lite"]["psnr"] is not None


def test_a_cache_without_effect_is_a_note_and_no_row(found):
    name = "diffusers, TextKVCache"  # it is for another model's blocks
    assert name not in found["measures"]
    assert found["notes"][name] == "it runs and leaves nothing out"


def test_the_table_has_a_line_for_each(module, found):
    speed = module("speed")
    lines = speed.table(speed.videos(found)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in found["measures"]]
    plain = next(line for line in lines if line.startswith("| diffusers |"))
    assert plain.split(" | ")[4:8] == ["12", "-", "same", "1.000"]


def test_the_sampling_of_the_pack_is_as_it_was(found):
    assert importlib.import_module("piying.core.wan.video_run").denoise.__module__ == "piying.core.wan.denoise"


def test_what_a_cache_gets_wrong_is_seen(module, pipeline, contest, monkeypatch):
    one = module("speed_diffusers").Cache("", lambda _: None)

    @contextmanager
    def wrong(_):
        hook = pipeline.made.transformer.blocks[0].register_forward_hook(lambda *given: given[2] * 1.1)
        yield
        hook.remove()

    assert pipeline.worst_repeat(one, contest.ours.given) == 0
    monkeypatch.setattr(pipeline, "cached", wrong)
    assert pipeline.worst_repeat(one, contest.ours.given) > 0.001


def test_only_what_a_cache_does_itself_is_its_fault(module, pipeline, plain, contest):
    diffusers, given = module("speed_diffusers"), contest.ours.given

    class Unknown:
        """No configuration of diffusers'."""

    def misspelt(_):
        raise TypeError("cannot")

    unknown = diffusers.Cache("", lambda _: Unknown())
    works, note = diffusers.tried(pipeline, unknown, plain, "a red circle", given)
    assert not works
    assert note.startswith("it fails: ValueError: Cache config")
    with pytest.raises(TypeError, match="cannot"):
        diffusers.tried(pipeline, diffusers.Cache("", misspelt), plain, "a red circle", given)


def test_steps_of_random_weights(module):
    floors, models, random = module("floors"), module("wan_models"), module("speed_random")
    ways = ["Piying, resident", "Piying, one batch", "diffusers, resident"]
    shape = models.Shape("toy", "toy run")
    *earlier, (rows, notes) = random.measure(shape, "cpu", rounds=1, steps=1, ways=ways)
    assert [len(found) for found, _ in earlier] == [1, 2]  # what is stopped keeps what it has
    rows = random.with_floor(rows, shape, "cpu", floors.Rates(1e9, 1e9))
    errors = {row["name"]: row["error_rms"] for row in rows}
    assert list(errors) == ways
    assert errors["Piying, resident"] == errors["diffusers, resident"] == 0
    assert errors["Piying, one batch"] < 1e-5
    assert all(row["percent of floor"] > 0 for row in rows)
    assert "card" in notes["Piying, attention by sage"]
    assert len(random.rows_of_table(rows)) == len(rows) + 1


@pytest.mark.comfyui
def test_comfyui_samples_the_same_model(module, tmp_path):
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout")
    options = module("speed").read_options(["--captions", "1", "--steps", "20", "--ways", "ComfyUI"])
    found = module("speed_contest").Contest(options, tmp_path).run()
    row = found["measures"]["ComfyUI"]
    assert row["predictions"] == 40
    assert row["psnr"] > 20  # its solver and its time steps are its own
    assert found["comfyui"]
