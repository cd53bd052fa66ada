"""Plan table of docs/memory.md: plans for cards and memories of common sizes.

Arithmetic alone: needs no card, no models, and no torch. Run it from the project's folder:

    python benchmarks/plan_table.py [--formats]

`--formats`: 14B with its files in each weight format in place of all models.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import conftest  # noqa: F401, E402 - loads the pack under the name piying

CARDS = (4, 6, 8, 12, 16, 24, 80)
MEMORIES = (16, 32, 64)
VIDEOS = (("wan2.1-vace-1.3b", "1.3B"), ("wan2.1-vace-14b", "14B"), ("wan2.1-vace-14b-fp8", "14B, FP8 files"))
VIDEO_SIZES = ((832, 480), (1280, 720))
FRAMES = 81
NO = "–"


def module(name: str) -> Any:
    """Return a module of the pack."""
    return importlib.import_module(f"piying.core.{name}")


def cell(work: Any, vram: int, ram: int) -> str:
    """Return one plan in a few words: how the weights are kept and where, the card's peak, the time."""
    machine = module("planner.machine").synthetic(vram, ram)
    plan = module("planner.plan").plan(work, machine)
    if not plan.fits:
        return NO
    sample = plan.phase("sample")
    from_disk = "* " if any("reads it from disk" in reason for reason in plan.reasons) else " "
    peak = module("planner.plan_types").gigabytes(plan.peak_vram)
    return f"{sample.storage} {sample.placement}{from_disk}{peak:.1f} GB"


def rows() -> list[tuple[str, Any]]:
    """Return (title, work) of each row of the table."""
    listed = module("catalog.component_sizes").listed_components
    video, hunyuan, z_image = (module(f"{package}.phases") for package in ("wan", "hunyuan_dit", "z_image"))
    found = [
        (
            f"VACE {title}, {width}×{height}, {FRAMES} frames",
            video.phases(listed(model), video.VideoWork(width, height, FRAMES)),
        )
        for model, title in VIDEOS
        for width, height in VIDEO_SIZES
    ]
    for width, height in VIDEO_SIZES:
        # Two networks of VACE's shapes, as its authors' script samples with them: 50 steps, shift 12.
        title = f"VACE-Fun A14B (two experts), FP8 files, {width}×{height}, {FRAMES} frames"
        one = listed("wan2.1-vace-14b-fp8")
        two = {**one, "transformer_2": replace(one["transformer"], name="transformer_2")}
        found.append((title, video.phases(two, video.VideoWork(width, height, FRAMES, steps=50, shift=12.0))))
    family = module("wan_video.family").WAN_VIDEO
    for model, known in module("wan_video.family").KNOWN.items():
        settings = known.trained_on.settings
        frames = {"first_frame": known.inputs.first != "no", "last_frame": known.inputs.last == "must"}
        sizes = [{}, dict(zip(("width", "height"), VIDEO_SIZES[1], strict=True))] if known.experts == 2 else [{}]
        for size in sizes:
            set_to = settings | size
            work = family.work({**set_to, **frames}, module("catalog.selection").ModelHandle(family, model))
            title = f"{model}, {set_to['width']}×{set_to['height']}, {set_to['num_frames']} frames"
            found.append((title, family.phases(listed(model), work)))
    found += [
        ("Hunyuan-DiT, 1024×1024", hunyuan.phases(listed("hunyuan-dit-v1.2"), hunyuan.ImageWork(1024, 1024))),
        ("Z-Image-Turbo, 1024×1024", z_image.phases(listed("z-image-turbo"), z_image.ZImageWork(1024, 1024))),
    ]
    return found


def table() -> str:
    """Return the table in Markdown; amounts of main memory with the same plans share a line."""
    head = "| | main memory | " + " | ".join(f"{card} GB card" for card in CARDS) + " |"
    lines = [head, "|---" * (len(CARDS) + 2) + "|"]
    for title, work in rows():
        plans: dict[tuple[str, ...], list[int]] = {}
        for ram in MEMORIES:
            plans.setdefault(tuple(cell(work, card, ram) for card in CARDS), []).append(ram)
        for cells, rams in plans.items():
            lines.append(f"| {title} | {', '.join(map(str, rams))} GB | {' | '.join(cells)} |")
            title = ""
    return "\n".join(lines)


def formats_table(model: str = "wan2.1-vace-14b", ram: int = 64) -> str:
    """Return what a video model needs in each weight format, in Markdown: sampling, and the smallest card."""
    video, build = module("wan.phases"), module("planner.format_table").format_table
    components = module("catalog.component_sizes").listed_components(model)
    synthetic = module("planner.machine").synthetic
    lines = ["| files | transformer | main memory |", "|---|---|---|"]
    tables = []
    for width, height in VIDEO_SIZES:
        work = video.VideoWork(width, height, FRAMES)
        made = [
            build(model, components, lambda at, one=work: video.phases(at, one), synthetic(card, ram))
            for card in CARDS
        ]
        tables.append([{row.title: row for row in one.rows} for one in made])
        lines[0] += f" {width}×{height} resident | streamed | smallest card |"
        lines[1] += "---|---|---|"
    size = module("planner.plan_types").gigabytes
    for title, row in tables[0][0].items():
        cells = [title, f"{size(row.parts['transformer']):.1f} GB", f"{size(row.plan.peak_ram):.1f} GB"]
        for of_size in tables:
            at = of_size[0][title].placed
            cells += [f"{size(at[name].plan.vram):.1f} GB" for name in ("resident", "streamed")]
            fitting = [card for card, rows_of in zip(CARDS, of_size, strict=True) if rows_of[title].plan.fits]
            cells.append(f"{fitting[0]} GB" if fitting else NO)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(formats_table() if "--formats" in sys.argv[1:] else table())
