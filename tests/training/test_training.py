"""A few steps of every training: they run, lower the loss, resume exactly and write what the pack can read."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from diffusers import HunyuanDiTPipeline, WanVACEPipeline
from piying.training import architectures, image, loop, prompts, video
from piying.training.evaluate import BUILT_IN, load
from piying.training.language import Scene
from piying.training.optimizer import Muon, optimizers, orthogonal
from piying.training.text_encoders import teach
from torch import nn


def run(main, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    main()


def test_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "BATCH", 2)
    run(prompts.main, monkeypatch, "--steps", "2", "--runs", str(tmp_path), "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("part", ["transformer", "decoder"])
def test_video(tmp_path, monkeypatch, part):
    steps = ("--steps", "2", "--runs", str(tmp_path), "--part", part)
    monkeypatch.setattr("piying.training.video_batches.TOKENS", 50)
    run(video.main, monkeypatch, *steps, "--tasks", "0.5", "--reading", "3", "--out", str(tmp_path / "out"))
    assert isinstance(WanVACEPipeline.from_pretrained(tmp_path / "out"), WanVACEPipeline)


@pytest.mark.parametrize("part", ["transformer", "decoder"])
def test_image(tmp_path, monkeypatch, part):
    steps = ("--steps", "2", "--runs", str(tmp_path), "--part", part)
    monkeypatch.setattr(image, "TOKENS", 50)
    run(image.main, monkeypatch, *steps, "--reading", "3", "--out", str(tmp_path / "out"))
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    assert HunyuanDiTPipeline.from_pretrained(tmp_path / "out", **without).vae.config.latent_channels == 4


def test_video_begins_with_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("piying.training.video_batches.TOKENS", 50)
    more = ("--sizes", "64x64", "--frames", "5", "--hidden", "1", "--muon", "1e-9", "--adamw", "1e-9")
    run(video.main, monkeypatch, "--from", str(BUILT_IN / "wan_vace"), "--steps", "1", "--runs", str(tmp_path), *more)
    state = torch.load(tmp_path / "video.pt", weights_only=True)["modules"]
    shipped = WanVACEPipeline.from_pretrained(BUILT_IN / "wan_vace", dtype=torch.float32)
    for name, weights in state.items():
        for key, expected in getattr(shipped, name).state_dict().items():
            assert torch.allclose(weights[key], expected, atol=1e-6), key


def test_image_begins_with_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(image, "TOKENS", 50)
    more = ("--hidden", "1", "--muon", "1e-9", "--adamw", "1e-9")
    run(
        image.main,
        monkeypatch,
        "--from",
        str(BUILT_IN / "hunyuan_dit"),
        "--steps",
        "1",
        "--runs",
        str(tmp_path),
        *more,
    )
    state = torch.load(tmp_path / "image.pt", weights_only=True)["modules"]
    shipped = load(HunyuanDiTPipeline, BUILT_IN / "hunyuan_dit")
    expected = shipped.text_encoder_2.state_dict()
    assert all(torch.allclose(weights, expected[key], atol=1e-6) for key, weights in state["text_encoder_2"].items())


def fit(folder, steps: int, stops: list[int]) -> nn.Linear:
    """Fit a line in `steps` steps, stopping and resuming on the way."""
    for stop in stops:
        torch.manual_seed(0)
        module = nn.Linear(2, 1)
        run = loop.Run({"line": module}, loop.Options(folder, "line", steps, resume=True))

        def loss_at(step: int, module: nn.Linear = module) -> torch.Tensor:
            x = torch.randn(8, 2)
            return ((module(x) - x.sum(1, keepdim=True)) ** 2).mean()

        run.train(loss_at, until=stop)
    return module


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    whole = fit(tmp_path / "a", 60, [60])
    halves = fit(tmp_path / "b", 60, [25, 60])
    assert torch.equal(whole.weight, halves.weight)
    curve = [json.loads(line) for line in (tmp_path / "a" / "line.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [25, 50]
    assert curve[1]["loss"] < curve[0]["loss"]


def test_muon_takes_the_matrices_inside_blocks():
    module = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(8, 4)]), "embed": nn.Linear(4, 4)})
    adamw, muon = optimizers([module], 0.02, 1e-3)
    assert isinstance(muon, Muon)
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(4, 8)]
    assert len(adamw.param_groups[0]["params"]) == 3


def test_orthogonal_evens_out_singular_values():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(16, 32)))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_text_encoders_learn_to_read():
    torch.manual_seed(0)
    pipeline = architectures.wan_vace()
    pool = [Scene(colour, "circle", "moves up", "black") for colour in ("red", "green")]
    assert teach(pipeline.text_encoder, pipeline.tokenizer, pool, steps=60) > 0.9
