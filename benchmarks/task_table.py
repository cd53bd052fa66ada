"""The figures of VACE's tasks as a page."""

from __future__ import annotations

from typing import Any

NAMES = {
    "t2v": "text to video",
    "reference": "reference, its colour not in the prompt",
    "depth": "repaint: depth (Control: Depth)",
    "edges": "repaint: edges (Control: Edges)",
    "boxes": "repaint: boxes (Control: Layout from Mask)",
    "inpaint": "inpaint: another object in its place",
    "outpaint": "outpaint: a quarter on one side",
    "extend_frame": "extend from the first frame",
    "extend_clip": "extend from five frames",
}
SHARES = {
    "background": "background",
    "colour": "colour",
    "shape": "shape",
    "motion": "motion",
    "iou": "control followed (IoU)",
    "kept_exactly": "kept exactly",
    "kept_dB": "kept by the model alone",
}
INTRO = """# Scores of VACE's tasks

Made by one command, with the built-in model, on clips it was never trained on:

```sh
{command}
```

Each case goes through the pack's own nodes' work: a drawn clip becomes a task, the task is sampled, the video is read
from its pixels (`training/reading.py`). The words of the prompt are looked for in the result.
"""
SCORES = """
## What the videos show

{count} clips a task, {frames} frames of 64×64, {steps} steps, cfg {cfg:g}, shift {shift:g}, seed {seed}.

{table}

- **kept exactly**: the share of videos in which every kept pixel equals the given one bit for bit (*keep* is on,
  *feather* 0). **kept by the model alone**: the same pixels before they are brought back, PSNR.
- **inpaint**: the prompt names another colour and another shape than the clip has; what is read is the result.
{border}- By chance: background 0.20, colour 0.17, shape 0.33, motion 0.20. What reading and autoencoder allow at
  most is in [builtin_models/README.md](../builtin_models/README.md).
"""
BENCH = """
## Time and memory beside diffusers

The same inputs and seeds through `WanVACEPipeline` of diffusers, in turn; {frames} frames of 64×64, {steps} steps.
Processor seconds, the median of {rounds} rounds with prompts of their own; peak of the tensors made meanwhile.
{machine}, torch {torch}.

{table}

**apart**: the largest difference of a pixel, of 1, before kept pixels are brought back. The pack encodes a negative
prompt once and keeps it; a reference reaches diffusers in 8 bits.
"""


def page(found: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    parts = [INTRO.format(command=command(found))]
    if "scores" in found:
        scores = found["scores"]
        parts.append(SCORES.format(**scores, table=score_table(scores["tasks"]), border=border(scores["tasks"])))
    if "bench" in found:
        parts.append(BENCH.format(**found["bench"], table=bench_table(found["bench"]["tasks"])))
    return "".join(parts)


def command(found: dict[str, Any]) -> str:
    """Return the command that gives the figures again."""
    count = found["scores"]["count"] if "scores" in found else 0
    return f"python -m benchmarks.tasks --count {count}" + (" --bench" if "bench" in found else "")


def score_table(tasks: dict[str, dict[str, float]]) -> str:
    """Return a row for each task."""
    lines = ["| | " + " | ".join(SHARES.values()) + " |", "|---" * (len(SHARES) + 1) + "|"]
    for task, row in tasks.items():
        cells = [_cell(name, row[name]) if name in row else "" for name in SHARES]
        lines.append(f"| {NAMES[task]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    return f"{value:.1f} dB" if name == "kept_dB" else f"{value:.2f}"


def border(tasks: dict[str, dict[str, float]]) -> str:
    """Return a sentence on the border of what was outpainted."""
    if "outpaint" not in tasks:
        return ""
    row = tasks["outpaint"]
    return (
        f"- **outpaint**: from the last given column to the first made one colours step by "
        f"{row['step_at_border']:.1f} of 255 on average, between columns of the given part by "
        f"{row['step_elsewhere']:.1f}.\n"
    )


def bench_table(tasks: dict[str, dict[str, float]]) -> str:
    """Return a row for each task."""
    lines = ["| | Piying | diffusers | Piying, peak | diffusers, peak | apart |", "|---" * 6 + "|"]
    for task, row in tasks.items():
        peaks = [f"{row[f'{name}_peak'] / 1e6:.1f} MB" for name in ("ours", "diffusers")]
        lines.append(
            f"| {NAMES[task]} | {row['ours']:.2f} s | {row['diffusers']:.2f} s | {peaks[0]} | {peaks[1]} | "
            f"{row['apart']:.1g} |"
        )
    return "\n".join(lines)
