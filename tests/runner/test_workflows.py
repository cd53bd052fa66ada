"""Every shipped workflow: it validates, runs, and its file is what it promises."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from piying.core.media.audio import read_audio
from piying.core.media.images import read_image
from piying.core.media.metadata import read_workflow
from piying.core.media.video import load_frames, probe
from piying.core.samples import sample_clip, sample_picture
from piying.runner import Session

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "workflows").glob("*.json")}
NAMES = sorted(WORKFLOWS)
DELIVERED = {
    *("t2i", "t2v", "image_to_video", "reference", "repaint_depth", "repaint_pose", "inpaint", "outpaint", "extend"),
    *("first_last_frame", "text_image_video_edit", "long_video"),
}
# Frames, width, height, and whether the clip's sound goes along.
VIDEOS = {
    "t2v": (17, 96, 64, False),
    "image_to_video": (17, 64, 64, False),
    "reference": (17, 64, 64, False),
    "repaint_depth": (17, 64, 64, True),
    "repaint_pose": (17, 64, 64, False),
    "inpaint": (17, 64, 64, True),
    "outpaint": (17, 96, 64, True),
    "extend": (33, 64, 64, True),
    "first_last_frame": (17, 64, 64, False),
    "text_image_video_edit": (17, 64, 64, False),
    "long_video": (41, 64, 64, False),
}
FEW = {
    "PiyingVACESample": {"steps": 1, "cfg": 1.0},
    "PiyingWanSample": {"steps": 1, "cfg": 1.0},
    "PiyingVACELongVideo": {"steps": 1, "cfg": 1.0},
    "PiyingHunyuanDiT": {"steps": 1, "cfg": 1.0},
    "PiyingExpandPrompt": {"max_new_tokens": 2},
}
# What is to be replaced has to be found in what was made before.
ENOUGH = {"PiyingVACESample": {"steps": 3, "cfg": 1.0}, "PiyingHunyuanDiT": {"steps": 8, "cfg": 4.0}}


def nodes(name, *types):
    return [node for node in WORKFLOWS[name]["nodes"] if node["type"] in types]


def quick(name):
    """Values that make a workflow fast; a node in a subgraph has the subgraph's id before its own."""
    few = FEW | ENOUGH if name == "text_image_video_edit" else FEW
    inside = {graph["id"]: graph["nodes"] for graph in WORKFLOWS[name].get("definitions", {}).get("subgraphs", [])}
    found = [(str(node["id"]), node) for node in WORKFLOWS[name]["nodes"]]
    found += [(f"{outer}:{node['id']}", node) for outer, one in found for node in inside.get(one["type"], [])]
    return {f"{path}.{key}": value for path, node in found for key, value in few.get(node["type"], {}).items()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What a workflow gave; it runs when it is first asked for."""
    session = Session(output=tmp_path_factory.mktemp("output"), input=tmp_path_factory.mktemp("input"), device="cpu")
    yield cache(lambda name: session.run(ROOT / "workflows" / f"{name}.json", set=quick(name)))
    session.close()


def test_all_are_there():
    assert set(NAMES) == DELIVERED
    assert set(NAMES) == {"t2i", *VIDEOS}


@pytest.mark.parametrize("name", NAMES)
def test_it_validates_as_it_is(tmp_path, name):
    session = Session(output=tmp_path, input=tmp_path, device="cpu")
    graph, roots, _ = session.check(session.prepare(ROOT / "workflows" / f"{name}.json"))
    session.close()
    assert any(graph[root].class_type.startswith("Save") for root in roots)


@pytest.mark.parametrize("name", NAMES)
def test_app_mode_has_inputs_that_can_be_set_and_a_result(name):
    """App mode of ComfyUI's page shows these alone."""
    chosen = WORKFLOWS[name]["extra"]["linearData"]
    by_id = {node["id"]: node for node in WORKFLOWS[name]["nodes"]}
    free = {(id, slot["name"]) for id, node in by_id.items() for slot in node["inputs"] if slot["link"] is None}
    assert set(map(tuple, chosen["inputs"])) <= free
    assert any(widget in ("prompt", "value") for _, widget in chosen["inputs"])
    assert [by_id[id]["type"] for id in chosen["outputs"]][-1].startswith("Save")


@pytest.mark.parametrize("name", NAMES)
def test_notes_in_both_languages_and_titled_groups(name):
    texts = [node["widgets_values"][0] for node in nodes(name, "MarkdownNote")]
    chinese = [sum("\u4e00" <= letter <= "\u9fff" for letter in text) for text in texts]
    assert sorted(count > 60 for count in chinese) == [False, True]
    assert all(len(text) > 200 for text in texts)
    assert all(group["title"] for group in WORKFLOWS[name]["groups"])


@pytest.mark.parametrize("name", NAMES)
def test_no_node_lies_on_another(name):
    boxes = [(node["id"], *node["pos"], *node["size"]) for node in WORKFLOWS[name]["nodes"]]
    title = 30
    overlapping = [
        (one, other)
        for index, (one, x, y, w, h) in enumerate(boxes)
        for other, u, v, s, t in boxes[index + 1 :]
        if x < u + s and u < x + w and y - title < v + t and v - title < y + h
    ]
    assert overlapping == []


@pytest.mark.parametrize("name", NAMES)
def test_loaders_name_files_of_the_manifest(name):
    manifest = json.loads((ROOT / "models_manifest.json").read_text(encoding="utf-8"))
    known = {}
    for model in manifest["models"]:
        for file in model["files"]:
            source = file["sources"].get("huggingface", {})
            if "file" in source:
                folder, _, title = file["path"].rpartition("/")
                url = f"https://huggingface.co/{source['repo']}/resolve/{source['revision']}/{source['file']}"
                known[title] = {"name": title, "url": url, "directory": folder}
    loaders = nodes(name, "PiyingLoadWanVACE", "PiyingLoadWanVideo", "PiyingLoadHunyuanDiT")
    assert loaders
    for loader in loaders:
        models = loader["properties"]["models"]
        assert models == [known[model["name"]] for model in models] != []


@pytest.mark.parametrize("name", sorted(VIDEOS))
def test_it_makes_a_video(ran, name):
    (path,) = ran(name).files
    count, width, height, sounds = VIDEOS[name]
    info = probe(path)
    assert path.parent.name == "video"
    assert path.name == f"piying_{name}_00001_.mp4"
    assert (info.fps, info.has_audio) == (16, sounds)
    assert load_frames(path, info).shape == (count, height, width, 3)


def test_it_makes_a_picture(ran):
    (path,) = ran("t2i").files
    assert path.name == "piying_t2i_00001_.png"
    picture = read_image(path)[0]
    assert picture.shape == (1, 128, 128, 3)
    assert picture.std() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_file_carries_the_workflow(ran, name):
    texts = read_workflow(ran(name).files[0])
    carried = json.loads(texts["workflow"])
    assert [node["type"] for node in carried["nodes"]] == [node["type"] for node in WORKFLOWS[name]["nodes"]]
    records = json.loads(texts["piying"]).values()
    assert {record["model"] for record in records} == {"built-in"}


@pytest.mark.parametrize("name", [name for name, (*_, sounds) in VIDEOS.items() if sounds])
def test_the_sound_is_that_of_the_clip(ran, name):
    _, original, _, _ = sample_clip("moving circle")
    track = read_audio(ran(name).files[0])
    rate, count = track["sample_rate"], VIDEOS[name][0]
    samples = track["waveform"][0, 0]
    assert len(samples) / rate == pytest.approx(count / 16, abs=0.1)
    # Its tone rises: that of the first half second crosses zero as often as the original's.
    heard, meant = (
        crossings(wave[: wave_rate // 2])
        for wave, wave_rate in ((samples, rate), (original["waveform"][0, 0], original["sample_rate"]))
    )
    assert heard == pytest.approx(meant, abs=6)
    assert samples[round(1.2 * rate) :].abs().max() < 0.05 if count == 33 else True


def crossings(wave):
    return int((wave[1:].sign() != wave[:-1].sign()).sum())


def sampled(finished, node="PiyingVACESample"):
    return finished.outputs(node)[0][0]


def test_extension_begins_with_the_clip_bit_for_bit(ran):
    given, *_ = sample_clip("moving circle")
    frames = sampled(ran("extend"))
    assert torch.equal(frames[:17], given)
    assert not torch.equal(frames[17], given[16])


def test_first_and_last_frame_are_those_given(ran):
    frames = sampled(ran("first_last_frame"))
    for place, name in ((0, "first frame"), (-1, "last frame")):
        assert torch.equal(frames[place], sample_picture(name)[0][0])


def test_the_long_video_is_made_in_windows_and_begins_with_its_picture(ran):
    finished = ran("long_video")
    (record,) = json.loads(read_workflow(finished.files[0])["piying"]).values()
    assert (record["windows"], record["window"], record["num_frames"]) == (3, 17, 41)
    info = probe(finished.files[0])
    picture = sample_picture("first frame")[0][0]
    assert (load_frames(finished.files[0], info)[0] - picture).abs().mean() < 0.03, "what H.264 leaves of it"


def test_outpainting_keeps_the_video_in_the_middle(ran):
    finished = ran("outpaint")
    kept = finished.outputs("PiyingFrameRate")[0][0]
    feather = 4
    inner = slice(16 + feather, 80 - feather)
    assert torch.equal(sampled(finished)[:, :, inner], kept[:, :, feather:-feather])


def test_inpainting_keeps_what_is_far_from_the_mask(ran):
    given, _, _, mask = sample_clip("moving circle")
    frames = sampled(ran("inpaint"))
    far = torch.nn.functional.max_pool2d(mask[:, None], 41, 1, 20)[:, 0] == 0
    assert far.float().mean() > 0.05
    assert torch.equal(frames[far], given[far])
    assert (frames - given).abs()[mask > 0].mean() > 0.05


def test_the_chain_animates_its_picture(ran):
    finished = ran("text_image_video_edit")
    assert torch.equal(sampled(finished, "Animate")[0], finished.outputs("ImageScale")[0][0][0])
    assert not torch.equal(sampled(finished, "Animate"), sampled(finished, "Edit"))
