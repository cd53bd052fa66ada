"""VACE Long Video in a graph: a file comes out, with sound, and its windows are not made twice."""

from __future__ import annotations

import piying
import piying.runner
import pytest
from piying.core.catalog.selection import ModelHandle
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.media.video import probe, read_frames
from piying.core.wan.family import WAN_VACE
from piying.runner.session import VideoFile

NODE = piying.NODE_CLASS_MAPPINGS["PiyingVACELongVideo"]
SMALL = {"width": 32, "height": 32, "num_frames": 13, "window": 9, "overlap": 5, "steps": 1, "cfg": 1.0}


@pytest.fixture(autouse=True)
def own_host():
    yield
    set_host(None)


class WatchedHost(HeadlessHost):
    """A host with a page open."""

    def is_watched(self):
        return True


def widgets(**changes):
    declared = NODE.INPUT_TYPES()["required"]
    defaults = {name: spec[1]["default"] for name, spec in declared.items() if "default" in spec[1]}
    return {**defaults, **SMALL, "prompt": "a red circle", **changes}


def graph(**changes):
    return {
        "1": {"class_type": "PiyingLoadWanVACE", "inputs": {"model": "built-in", "precision": "auto"}},
        "2": {"class_type": "PiyingSampleClip", "inputs": {"sample": "moving circle"}},
        "3": {
            "class_type": "PiyingVACELongVideo",
            "inputs": {**widgets(**changes), "model": ["1", 0], "audio": ["2", 1]},
        },
        "4": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["3", 0], "filename_prefix": "long", "format": "auto", "codec": "auto"},
        },
    }


def test_a_graph_saves_a_long_video_with_sound(tmp_path):
    finished = piying.runner.run(graph(), output=tmp_path / "output")
    (path,) = finished.files
    info = probe(path)
    assert (info.frames, info.width, info.height, info.fps, info.has_audio) == (13, 32, 32, 16, True)
    (video,) = finished.outputs("VACE Long Video")[0]
    assert isinstance(video, VideoFile), "Save Video copies its streams; nothing is decoded"
    again = piying.runner.run(graph(), output=tmp_path / "output")
    record = again.results["3"].ui["piying"][0]
    assert record["windows"] == record["windows_kept_from_before"] == 2
    first, second = (list(read_frames(run.files[0])) for run in (finished, again))
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


def test_its_frames_are_shown_where_a_page_is_open(tmp_path):
    set_host(WatchedHost(temp=tmp_path / "temp"))
    made = NODE().sample(ModelHandle(WAN_VACE, "built-in"), **widgets())
    (sheets,) = made["ui"]["piying_frames"]
    assert (sheets["total"], sheets["width"], sheets["height"]) == (13, 32, 32)
    assert (tmp_path / "temp" / sheets["sheet"]).is_file()


def test_lengths_are_checked_before_the_run():
    good = {"width": 64, "height": 64, "num_frames": 241, "window": 81, "overlap": 13}
    assert NODE.VALIDATE_INPUTS(**good) is True
    assert NODE.VALIDATE_INPUTS(**{**good, "window": None}) is True, "linked values are not known yet"
    assert "overlap is 81" in NODE.VALIDATE_INPUTS(**{**good, "overlap": 81})
    assert "width is 60" in NODE.VALIDATE_INPUTS(**{**good, "width": 60})


def test_the_plan_is_that_of_a_window(tmp_path):
    set_host(HeadlessHost(vram=16 * 2**30, ram=32 * 2**30, imagined=True, temp=tmp_path))
    sampler = piying.NODE_CLASS_MAPPINGS["PiyingVACESample"]()
    model, size = ModelHandle(WAN_VACE, "wan2.1-vace-1.3b"), {"width": 832, "height": 480}
    one = sampler.plan_memory(model, num_frames=81, **size)
    long = NODE().plan_memory(model, num_frames=481, window=81, **size)
    longer = NODE().plan_memory(model, num_frames=961, window=81, **size)
    assert long.plan.peak_vram == longer.plan.peak_vram
    assert long.plan.peak_vram < 1.01 * one.plan.peak_vram
