"""Our API form against what the frontend exports: the committed pairs made anew, and ComfyUI's own templates.

The templates are those of the package comfyui-workflow-templates-json where it is installed or where
PIYING_TEMPLATES names a folder of workflows, else those that ComfyUI itself comes with.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
from piying.runner.ui_format import to_api

pytestmark = pytest.mark.browser

PAIRS = sorted((Path(__file__).parents[1] / "runner" / "pairs").glob("*.json"))
PER_BROWSER = 30
RULES_OF = (1, 58)
BLANK = {"category": "", "description": "", "python_module": "nodes"}
BY_BROWSER = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
# Older frontends export what their widgets show too.
SHOWN = {"audioUI", "preview", "preview_text", "preview_markdown", "previewMode"}
# What the widget holds is drawn on the page, recorded or uploaded at export.
DRAWN = {"WEBCAM", "LOAD_3D", "LOAD_3D_ANIMATION", "AUDIO_RECORD"}

EXPORT = """(async () => {
  try {
    for (const [name, definition] of Object.entries(%(info)s)) await window.app.registerNodeDef(name, definition);
    await window.app.loadGraphData(%(workflow)s);
    return { api: JSON.parse(JSON.stringify((await window.app.graphToPrompt()).output)) };
  } catch (error) { return { error: String(error.stack ?? error) }; }
})()"""


@pytest.fixture(scope="module")
def info(comfyui, drive):
    """The server's definitions, where its frontend has the rules that ours are: they differ between versions."""
    version = drive([{"do": "evaluate", "script": "window.__COMFYUI_FRONTEND_VERSION__"}]).results[0]
    if tuple(map(int, version.split(".")[:2])) < RULES_OF:
        pytest.skip(f"the frontend is {version}; COMFYUI_ARGS='--front-end-root …' can name a newer one")
    return comfyui.object_info()


def export(drive, cases):
    """What the frontend exports for each (workflow, definitions it does not have)."""
    answers = []
    for begin in range(0, len(cases), PER_BROWSER):
        scripts = [
            EXPORT % {"workflow": json.dumps(workflow), "info": json.dumps(info)}
            for workflow, info in cases[begin : begin + PER_BROWSER]
        ]
        answers += drive([{"do": "evaluate", "script": script} for script in scripts]).results
    return answers


def graphs(workflow):
    return [workflow, *((workflow.get("definitions") or {}).get("subgraphs") or [])]


def classes(workflow):
    instances = {graph["id"] for graph in graphs(workflow)[1:]}
    return {node["type"] for graph in graphs(workflow) for node in graph["nodes"]} - instances - BY_BROWSER


def comparable(api, info):
    """Classes and inputs; numbers as JavaScript has them."""
    return {
        node_id: (
            node["class_type"],
            {k: as_float(v) for k, v in node["inputs"].items() if k not in SHOWN | drawn(node["class_type"], info)},
        )
        for node_id, node in api.items()
    }


def drawn(class_type, info):
    inputs = (info.get(class_type) or {"input": {}})["input"]
    return {name for group in inputs.values() for name, spec in group.items() if str(spec[0]) in DRAWN}


def as_float(value):
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_the_pairs_are_what_the_frontend_exports(drive, info):
    pairs = [json.loads(path.read_text(encoding="utf-8")) for path in PAIRS]
    own = [{name: {**BLANK, **d} for name, d in pair["object_info"].items() if name not in info} for pair in pairs]
    answers = export(drive, [(pair["ui"], new) for pair, new in zip(pairs, own, strict=True)])
    different = [
        path.stem
        for path, pair, answer in zip(PAIRS, pairs, answers, strict=True)
        if "api" not in answer or comparable(answer["api"], info) != comparable(pair["api"], info)
    ]
    errors = {path.stem: answer["error"] for path, answer in zip(PAIRS, answers, strict=True) if "error" in answer}
    assert errors == {}
    assert set(different) <= {"dynamic_prompts"}, "of a dynamic prompt each export chooses another option"


def test_templates(drive, info):
    workflows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in templates()}
    workflows = {name: workflow for name, workflow in workflows.items() if is_workflow(workflow)}
    known = {name: workflow for name, workflow in workflows.items() if not classes(workflow) - set(info)}
    answers = dict(zip(known, export(drive, [(workflow, {}) for workflow in known.values()]), strict=True))
    exported = {name: answer["api"] for name, answer in answers.items() if "api" in answer}
    different = [name for name, api in exported.items() if not same(known[name], api, info)]
    print(
        f"{len(workflows)} templates, {len(known)} of nodes that this ComfyUI has, "
        f"{len(exported)} exported by the frontend, {len(exported) - len(different)} equal"
    )
    assert different == []
    assert len(exported) >= 0.9 * len(known)


def same(workflow, api, info):
    return comparable(to_api(workflow, info), info) == comparable(api, info)


def is_workflow(decoded):
    return isinstance(decoded, dict) and "nodes" in decoded and "links" in decoded


def templates():
    folder = os.environ.get("PIYING_TEMPLATES") or folder_of_package()
    found = sorted(Path(folder).rglob("*.json")) if folder else []
    if not found:
        pytest.skip("no templates: install comfyui-workflow-templates-json, or name a folder in PIYING_TEMPLATES")
    return found


def folder_of_package():
    """Where the templates lie: in this Python's package, else in that of ComfyUI's Python."""
    for name in ("comfyui_workflow_templates_json", "comfyui_workflow_templates"):
        found = importlib.util.find_spec(name)
        if found and found.submodule_search_locations:
            return found.submodule_search_locations[0]
    find = "import importlib.util as u; print(u.find_spec('comfyui_workflow_templates').submodule_search_locations[0])"
    python = os.environ.get("COMFYUI_PYTHON")
    done = subprocess.run([python, "-c", find], capture_output=True, text=True) if python else None
    return done.stdout.strip() if done and done.returncode == 0 else None
