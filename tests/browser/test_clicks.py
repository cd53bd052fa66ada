"""Clicks, keys and seconds from an empty page to a queued run: nodes wired by hand, a template, and a blueprint.

`python -m pytest -s tests/browser/test_clicks.py` prints them as docs/browser.md has them.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from piying.core.media.images import write_png
from piying.runner.session import Session
from piying.tests.browser.page import evaluate
from piying.tests.comfyui.convert import WORKFLOWS

pytestmark = pytest.mark.browser

PROMPT = "a red circle moves right on a blue background"
TEMPLATES = json.loads((WORKFLOWS.parent / "locales/en/main.json").read_text(encoding="utf-8"))["piying"]["templates"]
SAMPLER = "PiyingVACESample"
WRITE = ["write", {"node": SAMPLER, "widget": "prompt", "text": PROMPT}]
RUN = ["run", {}]
# What is typed, the title that comes first, and where the node goes, in pixels of the page.
NODES = {
    "LoadVideo": ("load video", "Load Video", (110, 180)),
    "GetVideoComponents": ("video components", "Get Video Components", (110, 560)),
    "LoadImage": ("load image", "Load Image", (110, 180)),
    "PiyingLoadWanVACE": ("wan vace", "Wan VACE: Load", (110, 700)),
    "PiyingSegment": ("segment", "Segment", (400, 180)),
    "PiyingVACEInpaint": ("vace: inpaint", "VACE: Inpaint", (400, 330)),
    "PiyingVACEOutpaint": ("vace: outpaint", "VACE: Outpaint", (400, 330)),
    "PiyingVACEExtend": ("vace: extend", "VACE: Extend", (400, 330)),
    SAMPLER: ("vace sample", "VACE Sample", (720, 180)),
    "CreateVideo": ("create video", "Create Video", (1080, 180)),
    "SaveVideo": ("save video", "Save Video", (1080, 330)),
}
TO_FILE = [
    ("PiyingLoadWanVACE", "model", SAMPLER, "model"),
    (SAMPLER, "frames", "CreateVideo", "images"),
    ("CreateVideo", "VIDEO", "SaveVideo", "video"),
]
FROM_FILE = [
    ("LoadVideo", "VIDEO", "GetVideoComponents", "video"),
    ("GetVideoComponents", "audio", "CreateVideo", "audio"),
    ("GetVideoComponents", "fps", "CreateVideo", "fps"),
]
BY_NAME = [
    ("GetVideoComponents", "images", "PiyingSegment", "frames"),
    ("PiyingSegment", "mask", "PiyingVACEInpaint", "mask"),
]
PICTURE, VIDEO = ("LoadImage", "IMAGE", "image"), ("LoadVideo", "VIDEO", "video")


def with_task(task, socket, source="GetVideoComponents", output="images", more=FROM_FILE):
    """Links of a task made from a file, up to the file that comes of it."""
    return [(source, output, task, socket), (task, "task", SAMPLER, "task"), *more, *TO_FILE]


EXTEND_PICTURE = with_task("PiyingVACEExtend", "first", "LoadImage", "IMAGE", more=[])
# For each job: links of the graph, its template and its blueprint, and what the blueprint is wired to.
JOBS = {
    "text to video": (TO_FILE, "t2v", "Text to Video (Piying)", None),
    "image to video": (EXTEND_PICTURE, "first_last_frame", "Image to Video (Piying)", PICTURE),
    "inpaint": ([*with_task("PiyingVACEInpaint", "video"), *BY_NAME], "inpaint", "Inpaint Video (Piying)", VIDEO),
    "outpaint": (with_task("PiyingVACEOutpaint", "video"), "outpaint", "Outpaint Video (Piying)", VIDEO),
    "extend": (with_task("PiyingVACEExtend", "first"), "extend", "Extend Video (Piying)", VIDEO),
}


def search(node):
    word, hit, at = NODES[node]
    return ["search", {"word": word, "hit": hit, "at": at, "type": node}]


def wire(source, output, target, socket):
    return ["wire", {"from": source, "output": output, "to": target, "input": socket}]


def by_wiring(job):
    links = JOBS[job][0]
    nodes = dict.fromkeys(node for source, _, target, _ in links for node in (source, target))
    return [["zoom", {"notches": 4}], *map(search, nodes), *(wire(*link) for link in links), WRITE, RUN]


def by_template(job):
    card = f'[data-testid="template-workflow-{TEMPLATES[JOBS[job][1]]}"]'
    steps = [
        {"selector": ".templates-tab-button"},
        {"selector": "[role=dialog] [role=option], [role=dialog] nav span", "text": "Piying"},
        {"selector": card},
    ]
    return [*(["click", step] for step in steps), ["settle", {}], WRITE, RUN]


def by_blueprint(job):
    name, source = JOBS[job][2:]
    added = [["search", {"word": name, "hit": name, "at": (500, 180)}], search("SaveVideo")]
    links = [wire(name, "video", "SaveVideo", "video")]
    if source:
        node, output, socket = source
        added.append(search(node))
        links.append(wire(node, output, name, socket))
    return [*added, *links, ["write", {"node": name, "widget": "prompt", "text": PROMPT}], RUN]


WAYS = {"wired by hand": by_wiring, "template": by_template, "blueprint": by_blueprint}


@pytest.fixture(scope="module")
def counted(drive, comfyui):
    """Clicks, keys, and seconds of the person and of the page, by job and way; the table is printed."""
    if not drive([evaluate("Boolean(document.querySelector('.templates-tab-button'))")]).results[0]:
        pytest.skip("this frontend has another template browser")
    # Load Image begins with the first picture that is there, as Load Video does with the pack's clips.
    write_png(comfyui.base / "input/picture.png", np.zeros((480, 832, 3), np.uint8))
    own = comfyui.base / "user/default/subgraphs"
    shutil.copytree(WORKFLOWS.parent / "subgraphs", own)
    found = {}
    for job in JOBS:
        actions = [
            action for way in WAYS.values() for action in ({"do": "new_graph"}, {"do": "by_hand", "steps": way(job)})
        ]
        found[job] = dict(zip(WAYS, drive(actions).results[1::2], strict=True))
    shutil.rmtree(own)
    for job, ways in found.items():
        told = (f"{one['clicks']}, {one['keys']}, {one['person']:.0f} s, {one['page']:.0f} s" for one in ways.values())
        print(f"| {job} |", " | ".join(told))
    return found


@pytest.mark.parametrize("job", JOBS)
def test_a_template_and_a_blueprint_take_a_fraction_of_the_clicks(counted, job):
    wired, template, blueprint = (counted[job][way] for way in WAYS)
    assert 2 * template["clicks"] <= wired["clicks"]
    assert blueprint["clicks"] < wired["clicks"]
    assert 2 * template["person"] < wired["person"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("job", JOBS)
def test_what_is_queued_can_run(counted, comfyui, tmp_path, job, way):
    file = tmp_path / "queued.json"
    file.write_text(json.dumps(counted[job][way]["prompt"]), encoding="utf-8")
    session = Session(output=tmp_path, input=comfyui.base / "input", device="cpu")
    graph, roots, _ = session.check(session.prepare(file))
    session.close()
    assert [graph[root].class_type for root in roots] == ["SaveVideo"]
