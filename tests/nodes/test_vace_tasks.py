"""The VACE task nodes as a graph calls them: by their widgets, wired into each other."""

from __future__ import annotations

import piying.runner
import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.wan.family import WAN_VACE

from ..core.vace_clips import box, clip, moving_box

SIZE = (64, 48)


@pytest.fixture(autouse=True)
def own_host():
    set_host(HeadlessHost())
    yield
    set_host(None)


def widgets(name):
    """Return the widgets' defaults, as a new node on the canvas has them."""
    required = piying.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["required"]
    return {key: options["default"] for key, (_, options) in required.items() if "default" in options}


def call(name, **given):
    """Run a node whose other widgets hold their defaults."""
    node = piying.NODE_CLASS_MAPPINGS[name]
    declared = node.INPUT_TYPES()
    assert set(given) <= {**declared["required"], **declared["optional"]}.keys()
    results = getattr(node(), node.FUNCTION)(**{**widgets(name), **given})
    assert len(results) == len(node.RETURN_TYPES)
    return results


def prepared(task, size=SIZE, count=9):
    from piying.core.wan.conditioning import prepare

    return prepare(task, *size, count)


def test_each_node_with_its_defaults():
    (task,) = call("PiyingVACEReference", image=clip(2))
    assert len(task.references) == 2
    assert call("PiyingVACERepaint", control=clip())[1:] == (64, 48, 9)
    assert call("PiyingVACEInpaint", video=clip(), mask=box())[1:] == (64, 48, 9)
    assert call("PiyingVACEOutpaint", video=clip())[1:] == (96, 48, 9)
    assert call("PiyingVACEExtend", first=clip(1))[1:] == (64, 48, 81)


@pytest.mark.parametrize(
    ("fitting", "size_from", "wired", "sizes"),
    [
        ({}, "auto", (), {"width": 64, "height": 48, "num_frames": 9}),
        ({}, "auto", ("width",), {"num_frames": 9}),
        ({}, "auto", ("num_frames",), {"width": 64, "height": 48}),
        ({}, "widgets", (), {}),
        ({"fit": "crop", "length": "trim"}, "auto", (), {}),
        ({"fit": "crop", "length": "trim"}, "task", (), {"width": 64, "height": 48, "num_frames": 9}),
        ({"fit": "crop", "length": "trim"}, "task", ("height", "num_frames"), {}),
    ],
)
def test_a_sampler_takes_the_sizes_of_its_task(fitting, size_from, wired, sizes):
    task = call("PiyingVACEInpaint", video=clip(), mask=box(), **fitting)[0]
    assert task.sampler_sizes(size_from, wired) == sizes


def test_of_a_video_with_odd_sides_the_nearest_size_below_is_taken():
    task = call("PiyingVACEInpaint", video=clip(11, 70, 53), mask=box(70, 53), fit="crop", length="trim")[0]
    assert task.sampler_sizes("task", ()) == {"width": 48, "height": 64, "num_frames": 9}


def test_references_set_no_size():
    assert call("PiyingVACEReference", image=clip(2))[0].sampler_sizes("task", ()) == {}


@pytest.mark.parametrize(
    ("name", "more", "frames"), [("PiyingVACESample", {}, 5), ("PiyingVACELongVideo", {"window": 5, "overlap": 1}, 9)]
)
def test_a_run_has_the_size_of_its_task_whatever_its_widgets_say(tmp_path, caplog, name, more, frames):
    set_host(HeadlessHost(output=tmp_path, chosen_device="cpu"))
    caplog.set_level("INFO", logger="piying")
    task = call("PiyingVACEExtend", first=clip(1), num_frames=frames)[0]
    model = ModelHandle(WAN_VACE, "built-in")
    node = piying.NODE_CLASS_MAPPINGS[name]()
    chosen = {**widgets(name), "prompt": "a red circle", "steps": 1, "cfg": 1.0, **more}
    (shown,) = node.sample(model, task, **chosen)["ui"]["piying"]
    assert (shown["width"], shown["height"], shown["num_frames"]) == (64, 48, frames)
    assert f"From the task: width 64, height 48, num_frames {frames}." in caplog.text


class Graph:
    """A graph as ComfyUI and the runner hand it to nodes."""

    def __init__(self, inputs):
        self.inputs = inputs

    def get_node(self, name):
        return {"7": {"class_type": "PiyingVACESample", "inputs": self.inputs}}[name]


def test_a_wired_size_that_the_task_cannot_have_is_refused(tmp_path):
    """Not replaced: whoever wires a size means it."""
    set_host(HeadlessHost(output=tmp_path, chosen_device="cpu"))
    task = call("PiyingVACEExtend", first=clip(1), num_frames=5)[0]
    graph = Graph({"width": ["3", 0], "height": 64, "num_frames": 81})
    sampler = piying.NODE_CLASS_MAPPINGS["PiyingVACESample"]()
    with pytest.raises(PiyingError, match=r"first frame is 64×48, the sampler is set to 96×64"):
        sampler.sample(
            ModelHandle(WAN_VACE, "built-in"), task, dynprompt=graph, unique_id="7",
            prompt="a red circle", width=96, height=64, num_frames=81, steps=1, cfg=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("num_frames", "count", "sentence"),
    [
        (48, "in all", "num_frames is 48. It is 4n+1 frames, from 5 to 9601: use 45 or 49."),
        (1, "in all", "num_frames is 1. It is 4n+1 frames, from 5 to 9601: use 5."),
        (0, "new", "num_frames is 0. It goes from 1 to 9601."),
        (9, "some", "count is 'some'. Choose one of: in all, new."),
        (49, "in all", True),
        (48, "new", True),
        (None, "in all", True),
    ],
)
def test_a_length_that_cannot_be_made_is_refused_before_the_run(num_frames, count, sentence):
    assert piying.NODE_CLASS_MAPPINGS["PiyingVACEExtend"].VALIDATE_INPUTS(num_frames, count) == sentence


def test_references_come_in_the_order_of_the_sockets():
    pictures = {"image_4": clip(1, 16, 40), "image_2": clip(1, 16, 20), "image": clip(1, 16, 10)}
    (task,) = call("PiyingVACEReference", **pictures, image_3=clip(2, 16, 30), mask_3=box(16, 30, slice(0, 9)))
    assert [picture.shape[1] for picture in task.references] == [10, 20, 30, 30, 40]
    assert (task.references[2][10:] == 1).all(), "each mask belongs to the image of its number"


def test_a_chain_of_all():
    """The authors' swap, animate and expand, in one graph."""
    video = clip(width=32)
    task, *size = call("PiyingVACEOutpaint", video=video, left=50, right=50)
    (task,) = call("PiyingVACEReference", image=clip(1, 20, 20), image_3=clip(2, 9, 40), mask=box(20, 20), task=task)
    task, *_ = call("PiyingVACERepaint", control=clip(seed=1), mask=box(), strength=0.5, end_percent=0.4, task=task)
    task, *last = call("PiyingVACEExtend", last=clip(1, seed=2), num_frames=9, task=task)
    assert size == last == [64, 48, 9]
    inputs = prepared(task)
    assert len(inputs.references) == 3
    assert (inputs.scale_at(3, 10), inputs.scale_at(4, 10)) == (0.5, 0)
    assert torch.equal(inputs.canvas.frames[8], clip(1, seed=2)[0])
    assert torch.equal(inputs.canvas.frames[0, :, 16:48], video[0])
    assert torch.equal(inputs.canvas.frames[0, 16:40, 8:16], clip(seed=1)[0, 16:40, 8:16])
    assert inputs.mask[0, 0, :8, :, 16:48].sum() == 0


CHANGED = {
    "PiyingVACERepaint": [
        {"strength": 0.5},
        {"start_percent": 0.5},
        {"end_percent": 0.5},
        {"fit": "crop"},
        {"length": "trim"},
        {"fps": 24.0, "length": "resample"},
    ],
    "PiyingVACEInpaint": [
        {"invert": True},
        {"shape": "box"},
        {"grow": 2},
        {"keep": False},
        {"feather": 0},
        {"fit": "stretch"},
        {"length": "spread"},
    ],
    "PiyingVACEOutpaint": [
        {"left": 50},
        {"top": 50},
        {"right": 0},
        {"bottom": 50},
        {"unit": "pixels", "left": 32, "right": 0},
        {"aspect": "21:9"},
        {"overlap": 3},
        {"keep": False},
        {"feather": 1},
        {"length": "continue"},
    ],
    "PiyingVACEExtend": [
        {"num_frames": 21},
        {"count": "new", "num_frames": 36},
        {"clip_frames": 3},
        {"fps": 8.0},
        {"keep": False},
        {"fit": "stretch"},
    ],
}


def pictures(name):
    drawn = moving_box()
    drawn[:, 20:24] = 0
    return {
        "PiyingVACERepaint": {"control": clip()},
        "PiyingVACEInpaint": {"video": clip(), "mask": drawn},
        "PiyingVACEOutpaint": {"video": clip()},
        "PiyingVACEExtend": {"first": clip(5)},
    }[name]


@pytest.mark.parametrize(("name", "changes"), [(name, changes) for name in CHANGED for changes in CHANGED[name]])
def test_every_widget_reaches_the_work(name, changes):
    plain = fingerprint(call(name, **pictures(name)))
    assert fingerprint(call(name, **pictures(name), **changes)) != plain


def fingerprint(results):
    """Return all that a task says, with its pictures reduced to sums of their rows and of their columns."""
    task, *offered = results
    layers = []
    for layer in task.layers:
        area = None if layer.area is None else layer.area.sum((1, 2)).tolist()
        words = (layer.fit, layer.length, layer.fps, layer.paste, layer.feather, layer.slots)
        layers.append((*words, area, *(layer.frames.sum(axes).tolist() for axes in ((0, 1, 3), (0, 2, 3)))))
    return offered, layers, task.strength


@pytest.mark.parametrize("name", ["PiyingVACEReference", *CHANGED])
def test_sockets_that_may_stay_open_hold_no_widgets(name):
    """Values of widgets are stored by position; one that comes and goes would move the others."""
    optional = piying.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["optional"]
    assert optional["task"][0] == "VACE_TASK"
    assert {kind for kind, _ in optional.values()} <= {"VACE_TASK", "IMAGE", "MASK"}


def test_a_graph_takes_size_and_length_from_its_task(tmp_path):
    """A picture, outpainted and held for five frames, sampled by the runner."""
    from PIL import Image

    Image.fromarray((clip(1, 48, 32)[0] * 255).round().byte().numpy()).save(tmp_path / "picture.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "picture.png"}},
        "2": {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": 5}},
        "3": {"class_type": "PiyingVACEOutpaint", "inputs": {**widgets("PiyingVACEOutpaint"), "video": ["2", 0]}},
        "4": {"class_type": "PiyingLoadWanVACE", "inputs": {"model": "built-in", "precision": "auto"}},
        "5": {
            "class_type": "PiyingVACESample",
            "inputs": {
                **widgets("PiyingVACESample"),
                "model": ["4", 0],
                "task": ["3", 0],
                "prompt": "",
                "steps": 1,
                "cfg": 1.0,
                "width": ["3", 1],
                "height": ["3", 2],
                "num_frames": ["3", 3],
            },
        },
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }
    finished = piying.runner.run(graph, input=tmp_path, output=tmp_path / "output")
    frames = finished.outputs("VACE Sample")[0][0]
    assert tuple(frames.shape) == (5, 48, 48, 3)
    assert torch.equal(frames[:, :, 16:24], clip(1, 48, 32)[:, :, 8:16].expand(5, -1, -1, -1)), "behind the feather"


def test_mistakes_are_said_before_anything_is_sampled():
    validate = piying.NODE_CLASS_MAPPINGS["PiyingVACERepaint"].VALIDATE_INPUTS
    assert validate(0.0, 1.0) is True
    assert validate(None, 0.5) is True
    assert "Choose a start below the end" in validate(0.6, 0.5)
    assert "both from 0 to 1" in validate(0.0, 7.0), "ComfyUI leaves limits to nodes that validate"
    with pytest.raises(PiyingError, match="The mask has 5 frames, the video 9"):
        call("PiyingVACEInpaint", video=clip(), mask=moving_box(5))
    with pytest.raises(PiyingError, match="Wire at least one frame"):
        call("PiyingVACEExtend")


class WatchedHost(HeadlessHost):
    """A host with a page open."""

    def is_watched(self):
        return True


def test_an_area_is_shown_over_its_video_where_a_page_is_open(tmp_path):
    node = piying.NODE_CLASS_MAPPINGS["PiyingVACEInpaint"]()
    given = {**widgets("PiyingVACEInpaint"), "video": clip(), "mask": box(), "grow": 2}
    set_host(WatchedHost(temp=tmp_path))
    made = node.make(**given)
    (sheets,) = made["ui"]["piying_frames"]
    assert sheets["total"] == 9
    assert {file.name for file in tmp_path.iterdir()} == {sheets["sheet"], sheets["mask"]}
    assert made["result"][1:] == (64, 48, 9)
    set_host(HeadlessHost(temp=tmp_path))
    assert len(node.make(**given)) == 4
    assert len(list(tmp_path.iterdir())) == 2, "nobody looks, nothing is written"


def compared(task):
    from piying.core.wan.task.canvas import compared_with

    canvas = prepared(task).canvas
    return compared_with(task, canvas, len(canvas.make))


def test_a_result_is_compared_with_the_video_as_it_was():
    video = clip(9, 80, 50)
    task = call("PiyingVACEInpaint", video=video, mask=box(80, 50), fit="stretch")[0]
    beside = compared(task)
    assert beside["before"].shape == (9, 48, 64, 3)
    assert (beside["before"] != prepared(task).canvas.frames).any(), "nothing is cut out of it"
    assert torch.equal(beside["mask"], prepared(task).canvas.make)


def test_a_result_is_compared_with_its_control_and_never_with_single_frames():
    control = clip()
    assert torch.equal(compared(call("PiyingVACERepaint", control=control)[0])["before"], control)
    assert compared(call("PiyingVACEExtend", first=clip(1), num_frames=9)[0]) == {}


def test_a_loop_keeps_what_the_task_keeps_in_every_frame(tmp_path):
    """A picture of which one part moves; three frames more than the task has lead from its end to its beginning."""
    still = clip(1).expand(9, -1, -1, -1)
    task = call("PiyingVACEInpaint", video=still, mask=box(), feather=0)[0]
    set_host(WatchedHost(chosen_device="cpu", models=[], cache=tmp_path / "cache", temp=tmp_path / "temp"))
    loop = piying.NODE_CLASS_MAPPINGS["PiyingContextWindows"]().make(
        **widgets("PiyingContextWindows") | {"loop": True}
    )
    model = piying.NODE_CLASS_MAPPINGS["PiyingLoadWanVACE"]().load("built-in", "auto", "auto")[0]
    sampler = widgets("PiyingVACESample") | {"prompt": "a red circle", "width": 64, "height": 48, "num_frames": 9}
    made = piying.NODE_CLASS_MAPPINGS["PiyingVACESample"]().sample(
        model=model, task=task, context=loop[0], **sampler | {"steps": 2}
    )
    frames, kept = made["result"][0], box()[0] == 0
    assert len(frames) == 12
    assert torch.equal(frames[:, kept], still[:1].expand(12, -1, -1, -1)[:, kept])
    assert not torch.equal(frames[0, ~kept], frames[6, ~kept])
    (sheets,) = made["ui"]["piying_frames"]
    assert sheets["total"] == 12 and {"sheet", "before", "mask"} <= sheets.keys()
