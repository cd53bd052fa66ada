"""Pictures of the shipped workflows: `python -m benchmarks.pictures [NAME ...]`.

Each workflow runs with the built-in models. docs/images/workflow_NAME.png shows what goes in, what is made on the
way and what comes out, a row each, frames from left to right; workflows/NAME.jpg is the picture that ComfyUI shows
in its list of templates.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.samples import pack
from training.sheets import row, sheet, some

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "workflows"
# The nodes whose pictures are shown, in the order of the rows.
SHOWN = (
    *("GetVideoComponents", "PiyingSampleImage", "PiyingControlDepth", "PiyingHunyuanDiT"),
    *("PiyingVACESample", "PiyingWanSample", "PiyingVACELongVideo"),
)
HEIGHT, COLUMNS = 64, 9
TILE = 192  # pixels of one of a thumbnail's four pictures


def clips(finished: Any) -> list[np.ndarray]:
    """Return what the shown nodes gave, frames [N, H, W, 3] each."""
    nodes = [node for node in finished.graph.values() if node.class_type in SHOWN and node.id in finished.results]
    nodes.sort(key=lambda node: (SHOWN.index(node.class_type), int(node.id)))
    made = [finished.results[node.id].outputs[0][0] for node in nodes]
    return [each.numpy() if hasattr(each, "numpy") else frames_of(finished.files[0]) for each in made]


def frames_of(path: Path) -> np.ndarray:
    """Return the frames of a video file, [N, H, W, 3] in 0..1."""
    read = importlib.import_module("piying.core.media.video").read_frames
    return np.stack(list(read(path))) / 255


def scaled(picture: np.ndarray, height: int) -> np.ndarray:
    """Return a picture [H, W, 3] in 0..1 at another height."""
    image = Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8))
    width = round(image.width * height / image.height)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)) / 255


def contact_sheet(found: list[np.ndarray]) -> Image.Image:
    """Return a row for each clip, filled up with white."""
    rows = [row([scaled(frame, HEIGHT) for frame in some(clip, COLUMNS)]) for clip in found]
    width = max(line.shape[1] for line in rows)
    return sheet([np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=1.0) for line in rows])


def thumbnail(clip: np.ndarray) -> Image.Image:
    """Return four moments of a clip, two by two, or the one picture there is."""
    frames = [scaled(frame, TILE if len(clip) > 1 else 2 * TILE) for frame in some(clip, 4)]
    return sheet([row(frames[:2]), row(frames[2:])] if len(frames) > 1 else [frames[0]])


def main(names: list[str]) -> None:
    """Run the workflows, all unless some are named, and write their pictures."""
    run = pack("runner").run
    for name in names or sorted(path.stem for path in WORKFLOWS.glob("*.json")):
        with tempfile.TemporaryDirectory() as output:
            found = clips(run(WORKFLOWS / f"{name}.json", output=output))
        contact_sheet(found).save(ROOT / "docs" / "images" / f"workflow_{name}.png", optimize=True)
        thumbnail(found[-1]).save(WORKFLOWS / f"{name}.jpg", quality=85, optimize=True)
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
