"""The questions of our browser extension, asked of a real ComfyUI server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from piying.tests.comfyui.server import Server, request_json, running_server
from piying.tests.install.hub import Hub, running_hub

pytestmark = pytest.mark.comfyui

REPO = "/Qwen/Qwen3-0.6B/resolve"
FILES = {"config.json": b'{"architectures": ["Qwen3ForCausalLM"]}', "vocab.txt": b"x" * 200_000}
SAMPLER = {
    "class_type": "PiyingVACESample",
    "inputs": {
        "model": {"class_type": "PiyingLoadWanVACE", "inputs": {"model": "built-in", "precision": "auto"}},
        "width": 96,
        "height": 64,
        "num_frames": 17,
        "steps": 4,
        "cfg": 5.0,
    },
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        for revision in ("main", "c0ffee"):
            for name, data in FILES.items():
                hub.put(f"{REPO}/{revision}/{name}", data)
        yield hub


@pytest.fixture(scope="module")
def server(hub, tmp_path_factory) -> Iterator[Server]:
    """A ComfyUI whose Hugging Face is the hub of this test: HF_ENDPOINT is the one way to say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        with running_server(tmp_path_factory.mktemp("comfyui")) as server:
            yield server


def ask(server, name, question):
    return request_json(f"{server.url}/piying/{name}", question)


def raw(server, data, **headers):
    request = Request(f"{server.url}/api/piying/plan", data, {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        body = error.read()
        return error.code, json.loads(body) if body.startswith(b"{") else {}


def test_a_plan_and_nothing_is_loaded(server):
    status, found = ask(server, "plan", SAMPLER)
    assert status == 200
    assert (found["verdict"], found["toy"], found["model"]) == ("cpu", True, "built-in")
    assert found["peak_ram_gb"] > 0
    assert "Loading" not in server.log


def test_mistakes_are_one_sentence(server):
    status, found = ask(server, "plan", {"class_type": "KSampler"})
    assert status == 400
    assert found == {"error": "class_type is 'KSampler', which is no node of Piying."}


def test_other_websites_get_nothing(server):
    question = json.dumps(SAMPLER).encode()
    assert raw(server, question)[0] == 200
    assert raw(server, question, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert raw(server, question, Origin="https://evil.example")[0] == 403
    assert raw(server, question, **{"Content-Type": "text/plain"})[0] == 403


def test_long_and_broken_questions_are_refused(server):
    assert raw(server, b"x" * 100_000) == (400, {"error": "The question is longer than 65536 bytes."})
    assert raw(server, b"{")[1] == {"error": "The question is no JSON."}


def test_only_posts_are_answered(server):
    with pytest.raises(HTTPError, match="40[45]"):
        urlopen(f"{server.url}/piying/plan", timeout=30)


def test_the_server_answers_others_while_it_plans(server):
    begun = time.monotonic()
    for _ in range(5):
        assert ask(server, "plan", SAMPLER)[0] == 200
        assert request_json(f"{server.url}/queue")[0] == 200
    assert time.monotonic() - begun < 60


def test_a_model_is_fetched_and_offered(server, hub):
    status, before = ask(server, "models", {"class_type": "PiyingLoadPromptModel"})
    assert status == 200
    assert before["job"] is None
    assert hub.asked == [], "nothing is asked of a hub before a click"
    status, begun = ask(server, "fetch", {"model": "qwen3-0.6b"})
    assert (status, begun["job"]["model"]) == (200, "qwen3-0.6b")
    deadline = time.monotonic() + 60
    while (found := ask(server, "models", {"class_type": "PiyingLoadPromptModel"})[1])["job"]["state"] == "fetching":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert found["job"]["state"] == "done", found
    assert {offer["id"]: offer["here"] for offer in found["offers"]}["qwen3-0.6b"] == "yes"
    assert found["folder"] == str(server.base / "models")
    assert (server.base / "models/LLM/Qwen3-0.6B/vocab.txt").read_bytes() == FILES["vocab.txt"]


@pytest.mark.parametrize("model", ["../../x", "nobody", None, 3])
def test_nothing_else_is_fetched(server, model):
    status, found = ask(server, "fetch", {"model": model})
    assert status == 400
    assert "model" in found["error"]


def test_help_texts_and_templates_are_served(server):
    folder = server.object_info()["PiyingVACESample"]["python_module"].split(".", 1)[1]
    for path in (
        f"extensions/{folder}/docs/PiyingVACESample.md",
        # The page takes the folder's name up to the dot.
        f"extensions/{folder.split('.')[0]}/docs/PiyingVACESample.md",
        f"extensions/{folder}/docs/PiyingVACESample/zh.md",
        f"extensions/{folder}/docs/images/PiyingVACESample.jpg",
        f"extensions/{folder}/piying.js",
        f"api/workflow_templates/{folder}/t2v.jpg",
    ):
        with urlopen(f"{server.url}/{path}", timeout=30) as answer:
            assert answer.status == 200
            assert answer.read(4)
    texts = request_json(f"{server.url}/i18n")[1]
    assert "文生视频" in texts["zh"]["nodeDefs"]["PiyingVACESample"]["display_name"]
    assert texts["zh"]["nodeCategories"]["samples"]


@pytest.mark.parametrize("folder", ["My nodes 皮影", "50% (1) {new}"])
def test_a_folder_of_any_name_is_served(tmp_path, folder):
    """A static route of aiohttp 3.14 does not find what lies in a folder of such a name."""
    with running_server(tmp_path, folder=folder) as server:
        scripts = [path for path in request_json(f"{server.url}/extensions")[1] if path.endswith("/piying.js")]
        assert scripts == [f"/extensions/{quote(folder)}/piying.js"]
        help_text = f"/extensions/{quote(folder)}/docs/PiyingVACESample.md"
        for path in (*scripts, help_text, f"/api/workflow_templates/{quote(folder)}/t2v.json"):
            with urlopen(server.url + path, timeout=30) as answer:
                assert answer.read(4)
        for outside in ("..%2fREADME.md", "..%2f..%2fserver.log", "%2fetc%2fhostname", "docs", "a%00b"):
            with pytest.raises(HTTPError) as refused:
                urlopen(f"{server.url}/extensions/{quote(folder)}/{outside}", timeout=30)
            assert refused.value.code == 404
