"""Runs the scenarios through ComfyUI's own executor: `python execution_probe.py CHECKOUT < scenarios > results`.

A process of its own, since ComfyUI's modules have names like `nodes`.
"""

import asyncio
import json
import sys
from pathlib import Path

checkout = sys.argv[1]
sys.argv[1:] = ["--cpu"]
sys.path[:0] = [checkout, str(Path(__file__).parent)]
shown, sys.stdout = sys.stdout, sys.stderr  # ComfyUI prints while it loads

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import execution  # noqa: E402
import testing_nodes  # noqa: E402
from comfy_execution.graph_utils import ExecutionBlocker  # noqa: E402

import nodes  # noqa: E402

testing_nodes.ExecutionBlocker = ExecutionBlocker
nodes.NODE_CLASS_MAPPINGS.update(testing_nodes.NODE_CLASS_MAPPINGS)


class Server:
    """Takes the place of the web server: remembers what would be sent to the browser."""

    client_id = last_node_id = None

    def __init__(self):
        self.sent = []

    def send_sync(self, event, data, client_id=None):
        self.sent.append((event, data))


def run(executor, prompt):
    server = executor.server
    server.sent.clear()
    testing_nodes.CALLS.clear()
    roots = [
        node_id
        for node_id, node in prompt.items()
        if getattr(testing_nodes.NODE_CLASS_MAPPINGS[node["class_type"]], "OUTPUT_NODE", False)
    ]
    executor.execute(prompt, "prompt", {"client_id": "test"}, roots)
    events = dict(server.sent)
    error = events.get("execution_error", {})
    return {
        "calls": json.loads(json.dumps(testing_nodes.CALLS)),
        "cached": sorted(events["execution_cached"]["nodes"]),
        "shown": executor.history_result["outputs"],
        "error": [error["node_id"], error["exception_message"].split("\n")[0]] if error else None,
        "ended": "execution_success" in events,
    }


def validate(prompt):
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("prompt", prompt, None))
    found = {node_id: sorted({e["type"] for e in entry["errors"]}) for node_id, entry in node_errors.items()}
    return {"valid": valid, "error": error["type"] if error else None, "outputs": sorted(outputs), "nodes": found}


work = json.load(sys.stdin)
results = {"scenarios": {}, "validation": {name: validate(api) for name, api in work["validation"].items()}}
for name, prompts in work["scenarios"].items():
    executor = execution.PromptExecutor(Server())
    results["scenarios"][name] = [run(executor, prompt) for prompt in prompts]
json.dump(results, shown)
