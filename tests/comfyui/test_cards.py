"""Several ranks inside ComfyUI: those that a loader asks for, as long as it runs, and no longer."""

from __future__ import annotations

import shutil

import psutil
import pytest
from piying.core.parallel.cards import SHARE_VARIABLE
from piying.tests.comfyui.convert import WORKFLOWS, api_form
from piying.tests.comfyui.events import EventStream, has_ended
from piying.tests.comfyui.headless import LONG_RUNS, read_frames, sampler_id, with_frames_saved
from piying.tests.comfyui.server import request_json, running_server
from piying.tests.comfyui.test_mistakes import is_second_step

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A ComfyUI whose ranks share its device; none of them outlives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHARE_VARIABLE, "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        with running_server(tmp_path_factory.mktemp("cards")) as running:
            yield running
            left = ranks(running)
    psutil.wait_procs(left, timeout=20)
    assert not [one for one in left if one.is_running()]


def ranks(server):
    return [one for one in psutil.Process(server.process.pid).children() if "local_rank.py" in " ".join(one.cmdline())]


def asked(cards, **sampling):
    """Return text to video on so many cards."""
    prompt = api_form(WORKFLOWS / "t2v.json")
    prompt[sampler_id(prompt)]["inputs"].update({"steps": 3, "seed": 5, "speed": "reference", **sampling})
    loader = next(node for node in prompt.values() if node["class_type"] == "PiyingLoadWanVACE")
    loader["inputs"].update(cards=cards, parallel="prompts")
    return prompt


def test_frames_are_those_of_one_card_and_ranks_leave_with_the_models(server):
    for cards in (1, 2):
        run = server.run(with_frames_saved(asked(cards), f"on{cards}"))
        assert run["status"]["status_str"] == "success"
        # The second one is not to go on from what the first has kept.
        shutil.rmtree(server.base / "user" / "piying" / "cache" / "latents")
    (rank,) = ranks(server)
    one, two = (read_frames(server.output_dir, f"on{cards}") for cards in (1, 2))
    assert len(one) > 1 and all((a == b).all() for a, b in zip(one, two, strict=True))
    request_json(f"{server.url}/free", {"unload_models": True, "free_memory": True})
    server.run(asked(1, seed=6))
    psutil.wait_procs([rank], timeout=10)
    assert not rank.is_running() and ranks(server) == []


def test_after_an_interrupt_the_next_run_is_whole(server):
    long = {**LONG_RUNS["t2v"], "seed": 7}
    with EventStream(server.url, "cancels-ranks") as events:
        server.post(asked(2, **long), client_id="cancels-ranks")
        events.until(lambda message: is_second_step(message, long["steps"]))
        server.interrupt()
        after = events.until(has_ended)
    assert after[-1]["type"] == "execution_interrupted" and ranks(server) == []
    assert server.run(asked(2, seed=8))["status"]["status_str"] == "success" and len(ranks(server)) == 1
