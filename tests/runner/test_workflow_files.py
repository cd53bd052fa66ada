"""Workflow files as they are found: in media, in other programs' JSON, in any encoding; placeholders in file names."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime

import pytest
from PIL import Image, PngImagePlugin
from piying.core.host.current import set_host
from piying.core.media import ffmpeg
from piying.runner.errors import WorkflowError
from piying.runner.session import Session

PICTURE = {"class_type": "PiyingSampleImage", "inputs": {"sample": "red triangle"}}
API = {"1": PICTURE, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
UI = {
    "last_node_id": 2,
    "last_link_id": 1,
    "nodes": [
        {
            "id": 1,
            "type": "PiyingSampleImage",
            "inputs": [],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "widgets_values": ["first frame"],
        },
        {"id": 2, "type": "PreviewImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 1}], "outputs": []},
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}
SAVER = {
    "1": PICTURE,
    "2": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": "%date:yyyy-MM-dd%/%PiyingSampleImage.sample%"},
        "_meta": {"title": "Save Image"},
    },
}


def today() -> str:
    return datetime.now().strftime("%Y-%m-%d")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    session = Session(input=folder / "input", output=folder / "output", device="cpu")
    yield session
    session.close()
    set_host(None)


def sample(workflow):
    return workflow.api["1"]["inputs"]["sample"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("workflow", [API, UI], ids=["API", "UI"])
def test_any_encoding_of_json(session, tmp_path, encoding, workflow):
    path = tmp_path / "workflow.json"
    path.write_bytes(json.dumps(workflow).encode(encoding))
    assert sample(session.prepare(path)) == ("red triangle" if workflow is API else "first frame")


@pytest.mark.parametrize(
    ("found", "chosen", "has_ui"),
    [
        ({"prompt": API, "client_id": "x"}, "red triangle", False),
        ({"prompt": API, "extra_data": {"extra_pnginfo": {"workflow": UI}}}, "red triangle", True),
        ({"output": API, "workflow": UI}, "red triangle", True),
        ({"output": API}, "red triangle", False),
        ({"workflow": UI}, "first frame", True),
        ({"prompt": {}, "workflow": UI}, "first frame", True),
        ({"prompt": json.dumps(API), "workflow": json.dumps(UI)}, "red triangle", True),
        ({"prompt": None, "workflow": json.dumps(UI)}, "first frame", True),
    ],
)
def test_json_that_holds_a_workflow(session, tmp_path, found, chosen, has_ui):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    workflow = session.prepare(path)
    assert sample(workflow) == chosen
    assert workflow.extra_pnginfo == ({"workflow": UI} if has_ui else {})


def test_nodes_may_be_called_what_holds_a_workflow(session):
    graph = {"prompt": PICTURE, "workflow": {"class_type": "PreviewImage", "inputs": {"images": ["prompt", 0]}}}
    assert session.prepare(graph).api == graph


@pytest.mark.parametrize("found", [{"workflow": {"nodes": 1}}, {"workflow": "no"}, {"prompt": "no"}, {"output": []}])
def test_json_that_holds_none_is_refused(session, tmp_path, found):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(WorkflowError, match="no nodes and links|has no class_type"):
        session.check(session.prepare(path))


def video(path, comment):
    source = ["-f", "lavfi", "-i", "color=size=64x48:duration=0.2", "-metadata", f"comment={comment}"]
    subprocess.run([ffmpeg.ffmpeg_exe(), "-v", "error", *source, str(path)], check=True)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize("as_texts", [False, True], ids=["objects", "texts"])
def test_a_comment_of_video_helper_suite(session, tmp_path, suffix, as_texts):
    graphs = {"prompt": API, "workflow": UI}
    comment = json.dumps({key: json.dumps(each) for key, each in graphs.items()} if as_texts else graphs)
    workflow = session.prepare(video(tmp_path / f"a.{suffix}", comment))
    assert sample(workflow) == "red triangle"
    assert workflow.extra_pnginfo == {"workflow": UI}


@pytest.mark.parametrize("comment", ["made by hand", "{", "{}", '{"prompt": null}', "[1]", "{" * 5000])
def test_a_comment_of_anybody(session, tmp_path, comment):
    with pytest.raises(WorkflowError, match="carries no workflow"):
        session.prepare(video(tmp_path / "a.mp4", comment))


def test_media_with_the_ui_form_alone(command, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", json.dumps(UI))
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png", pnginfo=info)
    ran = command(tmp_path / "a.png", "--check")
    assert ran.returncode == 0, ran.stderr
    assert "2 nodes, nothing wrong" in ran.stderr


def test_a_newer_comfyui_knows_how_many_bits_a_video_has(session, caplog):
    graph = {
        "1": {"class_type": "PiyingSampleClip", "inputs": {"sample": "moving circle"}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 16, "bit_depth": 10}},
        "3": {"class_type": "GetVideoComponents", "inputs": {"video": ["2", 0]}},
        "4": {"class_type": "CreateVideo", "inputs": {"images": ["3", 0], "fps": ["3", 2], "bit_depth": ["3", 3]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
    }
    caplog.set_level("INFO")
    session.run(graph)
    assert [text for text in caplog.messages if "bit_depth" in text] == ["Create Video: bit_depth 10 becomes 8."]


# Placeholders


def test_placeholders_of_an_api_form(session):
    assert session.prepare(SAVER).api["2"]["inputs"]["filename_prefix"] == f"{today()}/red triangle"


def test_placeholders_speak_of_what_was_set(session):
    workflow = session.prepare(SAVER, set={"1.sample": "first frame"})
    assert workflow.api["2"]["inputs"]["filename_prefix"] == f"{today()}/first frame"


def test_placeholders_in_what_was_set(session, t2v):
    for source in (t2v, session.prepare(t2v).api):
        name = "%date:yyyy-MM-dd%/%PiyingVACESample.seed%_%VACE Sample.steps%_%width%"
        assigned = {"SaveVideo.filename_prefix": name, "PiyingVACESample.steps": 7}
        api = session.prepare(source, set=assigned).api
        prefix = next(node["inputs"] for node in api.values() if node["class_type"] == "SaveVideo")["filename_prefix"]
        assert prefix == f"{today()}/2025_7_%width%"


def test_a_node_without_a_name_is_called_by_its_class(session):
    saver = {**UI["nodes"][1], "type": "SaveImage", "widgets_values": ["%PiyingSampleImage.sample%"]}
    workflow = session.prepare({**UI, "nodes": [UI["nodes"][0], saver]})
    assert workflow.api["2"]["inputs"]["filename_prefix"] == "first frame"


def test_the_ui_form_in_the_file_keeps_its_placeholders(session, t2v):
    workflow = session.prepare(t2v, set={"SaveVideo.filename_prefix": "%date:yyyy%/x"})
    saver = next(node for node in workflow.extra_pnginfo["workflow"]["nodes"] if node["type"] == "SaveVideo")
    assert saver["widgets_values"][0] == "%date:yyyy%/x"


# Files made to take long: each of these took minutes, or no end


def test_duplicated_names_are_found_in_linear_time(session, tmp_path, within):
    path = tmp_path / "workflow.json"
    path.write_text("{" + ",".join(f'"k{index}":0' for index in range(200_000)) + ',"z":0,"z":1}')
    with within(5), pytest.raises(WorkflowError, match="two entries are called 'z'"):
        session.prepare(path)


def test_shown_widgets_are_limited(session, within):
    inner = {"id": 5, "type": "PrimitiveString", "widgets_values": ["x"], "inputs": [], "outputs": []}
    ports = [{"name": f"i{n}", "type": "STRING", "linkIds": list(range(50))} for n in range(900)]
    graph = {"id": "S", "nodes": [inner], "links": [], "inputs": ports}
    host = {"id": 1, "type": "S", "properties": {"proxyWidgets": [["5", "value"]] * 50_000}}
    workflow = {"nodes": [host], "links": [], "definitions": {"subgraphs": [graph]}}
    with pytest.raises(WorkflowError, match="shows 50000 widgets of its subgraph; at most 1000"):
        session.prepare(workflow)
    host["properties"]["proxyWidgets"] = [["5", "1:" * 5000 + "value"]] * 1000
    with within(5):
        assert session.prepare(workflow).api["1:5"]["inputs"] == {"value": "x"}


def test_long_and_many_names_of_inputs(session, caplog, within):
    inputs = {f"k{index}": index for index in range(100_000)} | {"s" * 1_000_000: 1}
    graph = {"1": {**PICTURE, "inputs": {**PICTURE["inputs"], **inputs}}, "2": API["2"]}
    with within(5):
        session.check(session.prepare(graph))
    assert len(caplog.messages) < 10
    with within(5), pytest.raises(WorkflowError, match="is not known here"):
        session.check(session.prepare({"1": {"class_type": "x" * 1_000_000, "inputs": {}}}))


ONCE = json.dumps(API)
PADDED = {
    "a text that holds it": json.dumps(ONCE),
    "a text in a text": json.dumps(json.dumps(ONCE)),
    "NULs behind it": ONCE + "\0" * 512,
    "a mark of UTF-8": "\ufeff" + ONCE,
    "the end of a DOS file": ONCE + "\r\n\x1a",
    "a request whose prompt is a text": json.dumps({"prompt": json.dumps(ONCE)}),
}


@pytest.mark.parametrize("kind", PADDED)
def test_what_surrounds_the_json_is_no_matter(session, tmp_path, kind):
    path = tmp_path / "workflow.json"
    path.write_text(PADDED[kind], encoding="utf-8")
    assert session.prepare(path).api == API


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{ONCE}\n}}{{rest", "its JSON ends in line 2, and more follows it: '}{rest'. Remove what follows."),
        (ONCE + ONCE, "its JSON ends in line 1, and more follows it"),
        (json.dumps("a red circle"), "a workflow is a JSON object, this is a str"),
        (json.dumps('{"1": '), "not valid JSON"),
    ],
)
def test_what_is_no_workflow_is_one_sentence(session, tmp_path, text, words):
    path = tmp_path / "workflow.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WorkflowError) as caught:
        session.prepare(path)
    assert words in str(caught.value)


def test_halves_of_characters_are_replaced_and_told(session, tmp_path, caplog):
    text = json.dumps({"1": {"class_type": "PreviewAny", "inputs": {"source": "HALF PAIR TEXT"}}})
    text = text.replace("HALF", "\\ud83d").replace("PAIR", "\\ud83d\\ude00").replace("TEXT", "\\\\ud83d")
    (tmp_path / "x.json").write_text(text, encoding="ascii")
    source = session.prepare(tmp_path / "x.json").api["1"]["inputs"]["source"]
    assert source == "\ufffd \U0001f600 \\ud83d"
    assert "1 halves of characters" in caplog.text
