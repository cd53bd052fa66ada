"""A good tenant: ComfyUI sees our models, and its wishes reach them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from piying.tests.comfyui.server import named_checkout

pytestmark = pytest.mark.comfyui
PROBE = Path(__file__).parent / "memory_probe.py"


def probe(*flags):
    checkout = named_checkout()
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    ran = subprocess.run([python, PROBE, checkout, *flags], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def plain():
    return probe("--cpu")


def test_one_entry_stands_for_all_of_our_models(plain):
    assert plain["entries"] == 1
    assert plain["bytes"][0] == 6_000_000


def test_other_models_coming_and_going_leave_ours(plain):
    """Ours are in main memory: dropping them would make no room on the card."""
    assert plain["bytes"][1] == 6_000_000
    assert plain["listed"] >= 1


def test_freeing_everything_frees_ours(plain):
    assert plain["bytes"][2] == 0
    assert plain["left"] == 0


def test_it_works_a_second_time(plain):
    assert plain["entries_again"] == 1
    assert plain["bytes"][3] == 0


def test_room_on_a_second_card_leaves_the_models_of_the_first(plain):
    assert plain["evictable"] == [80, 0]
    assert plain["loaded_after_room"] == [1, 0]


def test_the_device_is_comfyuis(plain):
    assert plain["device"] == ["cpu", "cpu", False]


def test_what_is_kept_lies_with_the_users_things(plain):
    assert Path(plain["cache"]) == Path("piying/cache")


def test_reserve_vram_is_heard():
    assert probe("--cpu", "--reserve-vram", "3")["rules"]["reserved"] == 3 * 2**30
