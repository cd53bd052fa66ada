"""Runs of `python -m runner`, and looking at the files that either host has written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLERS = ("PiyingVACESample", "PiyingVACELongVideo", "PiyingWanSample", "PiyingHunyuanDiT")
SAVER = "frames-saver"

# Widgets that make each workflow run long enough to be stopped.
LONG_RUNS = {"t2v": {"steps": 500}, "t2i": {"steps": 100, "width": 1024, "height": 1024}}


def run_headless(workflow: Path | dict[str, Any], folder: Path, *options: str) -> Path:
    """Run a workflow (a file, or a graph to write to one) and return the folder with what it made."""
    output = folder / "output"
    if isinstance(workflow, dict):
        workflow = write_json(folder / "workflow.json", workflow)
    command = [sys.executable, "-m", "runner", str(workflow), "--output", str(output), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def sampler_id(prompt: dict[str, Any]) -> str:
    """The sampler whose result is saved: the nearest one above the one node that saves."""
    waiting = deque(key for key, node in prompt.items() if node["class_type"].startswith("Save"))
    assert len(waiting) == 1
    while prompt[waiting[0]]["class_type"] not in SAMPLERS:
        inputs = prompt[waiting.popleft()]["inputs"].values()
        waiting.extend(value[0] for value in inputs if isinstance(value, list))
    return waiting[0]


def without_previews(prompt: dict[str, Any]) -> dict[str, Any]:
    """The graph with the saver as its only output: ComfyUI runs what is good of a graph and refuses the rest."""
    return {key: node for key, node in prompt.items() if not node["class_type"].startswith("Preview")}


def with_frames_saved(prompt: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The graph with one more node, which saves the sampler's frames as they are."""
    inputs = {"images": [sampler_id(prompt), 0], "filename_prefix": prefix}
    return {**prompt, SAVER: {"class_type": "SaveImage", "inputs": inputs}}


def read_frames(folder: Path, prefix: str) -> list[Any]:
    """The pixels of the PNGs under `prefix`, in order."""
    import numpy as np
    from PIL import Image

    return [np.asarray(Image.open(path)) for path in sorted(folder.glob(f"{prefix}_*.png"))]


def assert_same_frames(ours: list[Any], theirs: list[Any]) -> None:
    import numpy as np

    assert len(ours) == len(theirs) > 0
    for index, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        assert np.array_equal(left, right), f"frame {index} differs in {np.count_nonzero(left != right)} values"
    assert any(frame.std() > 0 for frame in ours), "the frames are one flat colour: nothing was drawn"


def shown_files(entry: dict[str, Any], output: Path) -> list[Path]:
    """The files a history entry says were saved."""
    shown = [item for node in entry["outputs"].values() for item in node.get("images", [])]
    return [output / item["subfolder"] / item["filename"] for item in shown if item["type"] == "output"]
