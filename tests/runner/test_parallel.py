"""One video or image on several ranks: as torchrun starts them, compared with one process; and ranks that are lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import psutil
import pytest
import torch
from diffusers import HunyuanDiT2DModel, ZImageTransformer2DModel
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.media.images import read_image
from piying.core.parallel.ranks import SILENCE_VARIABLE
from piying.runner.session import Session
from piying.tests.core.test_two_experts import write_second
from piying.tests.core.test_wan_video import MODELS, write_model
from piying.tests.core.test_z_image import random_parts, write_folder
from piying.tests.runner.conftest import ROOT
from piying.tests.runner.ranks_driver import CASES, ENDLESS, SHORT, SHORT_IMAGE, filled, frames_of, node, vace

pytestmark = pytest.mark.skipif(
    os.name == "nt" or not torch.distributed.is_available(), reason="signals of Unix, and torch.distributed"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ROUNDING = 5e-5  # of frames in 0..1
# Each of these starts takes seconds, so that it runs many cases.
TWO = ("windows", "guided", "forecast", "experts", "long")
THREE = ("vace", "sharded", "batched", "nag", "in_latents")
IMAGES_ON_TWO = ("hunyuan", "z_image_edit", "z_image_alone")
IMAGES_ON_THREE = ("z_image", "hunyuan_alone")
BATCHES = ("hunyuan", "z_image", "z_image_edit")  # on one card both prompts go through its transformer at once


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A models folder with two experts, and with models that read a first frame."""
    root = tmp_path_factory.mktemp("models")
    write_model(root / "diffusers" / "TI2V", **MODELS["TI2V"])
    folder = root / "diffusers" / "Experts"
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", folder)
    write_second(folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"boundary_ratio": 0.7, "transformer_2": ["diffusers", "WanVACETransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    parts = random_parts()
    for name, weights in parts["transformer"].named_parameters():
        # What tokens see of each other is to be far more than rounding.
        weights.data = weights.fill_(1.5) if "norm" in name else weights * (6 if "attention.to_" in name else 1)
    write_folder(root / "diffusers" / "Z-Image", parts)
    return root


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory):
    """What one process makes of each case."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")

    def made(name):
        session = Session(models=[models], device="cpu", output=folder, input=folder, cache=folder / "cache")
        frames = frames_of(session, CASES[name].workflow)
        session.close()
        return frames

    found = {name: made(name) for name in (*TWO, *THREE, *IMAGES_ON_TWO, *IMAGES_ON_THREE)}
    with pytest.MonkeyPatch.context() as patch:
        for kind in (HunyuanDiT2DModel, ZImageTransformer2DModel):
            patch.setattr(kind, "forward", one_after_the_other(kind.forward))
        found |= {f"{name}-prompts": made(name) for name in BATCHES}
    return found


def one_after_the_other(forward):
    """Return what takes each prompt of a batch through a transformer in a pass of its own."""

    def passes(self, batch, *args, **named):
        def of(row, value):
            return value[row : row + 1] if isinstance(value, torch.Tensor | list) else value

        made = []
        for row in range(len(batch)):
            given = {name: of(row, value) for name, value in named.items()}
            made.append(forward(self, of(row, batch), *(of(row, value) for value in args), **given)[0])
        return (torch.cat(made) if isinstance(batch, torch.Tensor) else [one[0] for one in made],)

    return passes


def compared(out: Path, names: tuple[str, ...], alone: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the largest difference of each case and way from what one process makes."""
    found = {}
    for name in names:
        for way in CASES[name].ways:
            frames = torch.load(out / f"{name}-{way}.pt")
            assert frames.shape == alone[name].shape and frames.std() > 0.01
            one_card = alone.get(f"{name}-{way}", alone[name])
            found[f"{name}-{way}"] = float((frames - one_card).abs().max())
            shared_by = json.loads((out / f"{name}-{way}.json").read_text())
            assert shared_by == ("sequence" if way == "auto" else way)
    return found


def check(differences: dict[str, float], least: float = 1e-12) -> None:
    assert {case: by for case, by in differences.items() if case.endswith("-prompts") and by != 0} == {}
    shared = {case: by for case, by in differences.items() if not case.endswith("-prompts")}
    # What is bit-equal here was not shared: some sum has another order.
    assert {case: by for case, by in shared.items() if not least <= by < ROUNDING} == {}


def check_shared(first: list[list[str]], *others: list[list[str]]) -> None:
    assert ["negative"] not in first and ["prompt", "negative"] in first
    assert all(["negative"] in other or [] in other for other in others)
    assert all(["prompt", "negative"] in other for other in others)


def check_images_shared(two: Path, three: Path) -> None:
    """By prompts a call is for one prompt, by sequence for both; the third rank has no prompt of two.

    By sequence each rank has as many tokens; of three the last has fewer of the image, and none of 32.
    """
    first, second = (json.loads((two / f"calls{rank}.json").read_text()) for rank in range(2))
    assert first == second and {*first} == {1, 2}
    third = json.loads((three / "calls2.json").read_text())
    assert third == [2, 2, 2, 1, 1, 1], "z_image by sequence, hunyuan_alone"
    for rank in range(2):
        shares = json.loads((two / f"shares{rank}.json").read_text())
        assert {tokens for tokens, _, _ in shares} > {32, 64} and all(own == tokens / 2 for tokens, _, own in shares)
    shares = json.loads((three / "shares2.json").read_text())
    assert [32, 16, 0] in shares and [64, 24, 16] in shares


def test_ranks_make_what_one_makes_and_notice_one_that_hangs(models, alone, tmp_path):
    """Hints, windows, guiders, forecasts, experts, long video, first frames, shards; by prompts bit for bit.

    Of three ranks, which do not divide heads and tokens, the third has no prompt of two; then it is stopped.
    """
    two, image, three = tmp_path / "on2", tmp_path / "image-on2", tmp_path / "on3"
    groups = [f"{two}={','.join((*TWO, SHORT))}", f"{image}={','.join((*IMAGES_ON_TWO, SHORT_IMAGE))}"]
    groups.append(f"{three}={','.join((*THREE, *IMAGES_ON_THREE, ENDLESS))}")
    for out in (two, image, three):
        out.mkdir()
    command = [sys.executable, str(ROOT / "tests" / "runner" / "ranks_driver.py"), str(models), *groups]
    environment = {**ENVIRONMENT, SILENCE_VARIABLE: "5"}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)
    try:
        wait_for(three / "begun", run)
        for out in (two, image):
            said = (out / "rank0.err").read_text()
            assert json.loads((out / "codes.json").read_text()) == [1, 1], said
            assert "Out of memory on several cards: sample: transformer fp32, cpu, whole: Rank 1 of 2" in said
            assert "Run it again: the next cheaper plan is taken then." in said
            assert list((out / "rank0" / "cache-prompts" / "failed_plans").iterdir())
        check(compared(two, TWO, alone) | compared(three, THREE, alone))
        check(compared(image, IMAGES_ON_TWO, alone) | compared(three, IMAGES_ON_THREE, alone), least=0)
        check_images_shared(image, three)
        check_shared(*(json.loads((two / f"rank{rank}.json").read_text()) for rank in range(2)))
        shared = [torch.load(three / f"{name}.pt") for name in ("vace-sequence", "sharded-auto")]
        assert torch.equal(*shared)
        assert all((three / f"gathered{rank}").exists() for rank in range(3)) and (image / "gathered1").exists()
        pids = json.loads((three / "pids.json").read_text())
        os.kill(pids[2], signal.SIGSTOP)
        begun = time.monotonic()
        wait_for_end(pids[:2], seconds=40)
        assert time.monotonic() - begun > 4
        said = (three / "rank0.err").read_text()
        assert "Rank 2 of 3" in said and "no sign of life for 5 s" in said
    finally:
        for child in psutil.Process(run.pid).children():
            child.kill()
        run.communicate(timeout=30)
    assert json.loads((three / "codes.json").read_text()) == [1, 1, -signal.SIGKILL]


def wait_for_end(pids: list[int], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)


def wait_for(path: Path, run: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_rank_that_dies_ends_the_run_with_one_sentence(models, alone, tmp_path):
    """What was saved before is as one process saves it, and is all there is; torchrun's own lines follow."""
    workflow = vace() | {"shown": node("SaveImage", images=["sample", 0], filename_prefix="a")}
    again = deepcopy(vace(steps=1000, num_frames=9))
    again["start"]["inputs"] |= {"first": ["sample", 0], "num_frames": 9}
    workflow |= {f"{name}_2": one for name, one in again.items()}
    for name in ("sample", "task"):
        for key, link in workflow[f"{name}_2"]["inputs"].items():
            if isinstance(link, list) and link[0] in ("start", "task"):
                workflow[f"{name}_2"]["inputs"][key] = [f"{link[0]}_2", link[1]]
    workflow["shown_2"]["inputs"]["images"] = ["sample_2", 0]
    session = Session(device="cpu", output=tmp_path, input=tmp_path)
    path, output = tmp_path / "workflow.json", tmp_path / "output"
    path.write_text(json.dumps(filled(session, workflow)))
    session.close()
    command = [*TORCHRUN, "2", "-m", "runner", str(path), "--output", str(output), "--device", "cpu"]
    # What other runs on this machine have kept may have other last bits.
    environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True)
    try:
        wait_for(output / "a_00005_.png", run)
        ranks = {one.environ().get("RANK"): one for one in psutil.Process(run.pid).children()}
        ranks["1"].kill()
        begun = time.monotonic()
        out, err = run.communicate(timeout=60)
        taken = time.monotonic() - begun
    finally:
        with_rest = psutil.Process(run.pid).children() if run.poll() is None else []
        for one in [*with_rest, run]:
            one.kill()
    said = [line for line in err.splitlines() if line.startswith(("error", "cancelled"))]
    assert len(said) == 1 and f"Rank 1 of 2 (cpu, process {ranks['1'].pid}) has died" in said[0], err
    assert run.returncode != 0 and taken < 30 and "prompt and negative prompt on different cards" in err
    assert out == ""
    files = sorted(output.iterdir())
    assert [file.name for file in files] == [f"a_{number:05}_.png" for number in range(1, 6)]
    frames = torch.cat([read_image(file)[0] for file in files])
    assert torch.equal(frames, (alone["vace"] * 255).to(torch.uint8).float() / 255)
