"""Markdown page of the VACE task scores."""

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

The built-in model, on clips it was never trained on:

```sh
{command}
```

Each case runs as the pack's nodes do: a drawn clip becomes a task, the task is sampled, and attributes are detected in
the pixels of the video (`training/reading.py`) and compared with the prompt.
"""
SCORES = """
## Scores

{count} clips a task, {frames} frames of 64×64, {steps} steps, cfg {cfg:g}, shift {shift:g}, seed {seed}.

{table}

- **kept exactly**: the share of videos in which every kept pixel equals the given one bit for bit (*keep* is on,
  *feather* 0). **kept by the model alone**: the same pixels before they are restored, PSNR.
- **inpaint**: the prompt names another colour and another shape than the clip has; the score is that of the result.
{border}- Chance level: background 0.20, colour 0.17, shape 0.33, motion 0.20. The upper bound set by detection and
  autoencoder is in [builtin_models/README.md](../builtin_models/README.md).
"""
BENCH = """
## Time and memory beside diffusers

The same inputs and seeds through `WanVACEPipeline` of diffusers, in turn; {frames} frames of 64×64, {steps} steps.
Processor seconds, median of {rounds} rounds with different prompts; peak of the tensors allocated meanwhile.
{machine}, torch {torch}.

{table}

**difference**: the largest of a pixel in 0..1, before kept pixels are restored. The pack caches the encoded negative
prompt; a reference reaches diffusers in 8 bits.
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
    """Return a sentence on the border of the outpainted area."""
    if "outpaint" not in tasks:
        return ""
    row = tasks["outpaint"]
    return (
        f"- **outpaint**: from the last given column to the first generated one colours change by "
        f"{row['step_at_border']:.1f} of 255 on average, between columns of the given part by "
        f"{row['step_elsewhere']:.1f}.\n"
    )


def bench_table(tasks: dict[str, dict[str, float]]) -> str:
    """Return a row for each task."""
    lines = ["| | Piying | diffusers | Piying, peak | diffusers, peak | difference |", "|---" * 6 + "|"]
    for task, row in tasks.items():
        peaks = [f"{row[f'{name}_peak'] / 1e6:.1f} MB" for name in ("ours", "diffusers")]
        lines.append(
            f"| {NAMES[task]} | {row['ours']:.2f} s | {row['diffusers']:.2f} s | {peaks[0]} | {peaks[1]} | "
            f"{row['apart']:.1g} |"
        )
    return "\n".join(lines)
