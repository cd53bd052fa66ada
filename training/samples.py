"""Draw the sample inputs: `python -m training.samples --out builtin_models/samples`.

Clips and pictures of the built-in models' language, and a person drawn as VACE's pose annotator draws one.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .data import Paths, colours, coverage, paint

ROOT = Path(__file__).resolve().parents[1]
SIDE, FRAMES, FPS, RATE = 64, 17, 16, 16000
RADIUS = 0.23 * SIDE
POSE_SIDE = 256
# OpenPose's 18 points of someone standing, in parts of the picture; the right arm hangs, the left one waves.
STANDING = [
    (0.50, 0.17), (0.50, 0.28), (0.41, 0.28), (0.37, 0.41), (0.36, 0.53), (0.59, 0.28), (0.66, 0.38), (0.68, 0.25),
    (0.44, 0.54), (0.43, 0.72), (0.42, 0.90), (0.56, 0.54), (0.57, 0.72), (0.58, 0.90),
    (0.48, 0.15), (0.52, 0.15), (0.45, 0.16), (0.55, 0.16),
]  # fmt: skip
LEFT_ELBOW, LEFT_WRIST = 6, 7


def pack(module: str) -> Any:
    """Return a module of the pack, loaded by path as its hosts do."""
    if "piying" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "piying", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules["piying"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["piying"])
    return importlib.import_module(f"piying.{module}")


def journey(start: tuple[float, float], end: tuple[float, float]) -> Paths:
    """Return an object's way through the clip, in parts of the picture."""
    times = torch.linspace(0, 1, FRAMES)[:, None]
    centres = torch.tensor(start) * (1 - times) + torch.tensor(end) * times
    return Paths(SIDE * centres[None], torch.tensor([RADIUS]))


def covered_by(shape: str, way: Paths) -> torch.Tensor:
    """Return how much of each pixel the object covers [FRAMES, SIDE, SIDE]."""
    return coverage([shape], way, SIDE, SIDE)[0]


def painted(covered: torch.Tensor, colour: str, background: str) -> torch.Tensor:
    """Return frames [T, H, W, 3] in 0..1."""
    frames = paint(covered[None], colours([colour]), colours([background]))[0]
    return ((frames + 1) / 2).permute(0, 2, 3, 1).contiguous()


def melody() -> dict[str, Any]:
    """Return a tone that rises for as long as the clip lasts, so that one hears where a piece of it comes from."""
    seconds = torch.arange(FRAMES * RATE // FPS) / RATE
    return {
        "waveform": 0.3 * torch.sin(2 * torch.pi * (300 + 150 * seconds) * seconds)[None, None],
        "sample_rate": RATE,
    }


def waving() -> torch.Tensor:
    """Return a person who waves, drawn as sticks [T, H, W, 3] in 0..1."""
    draw_people = pack("core.controls.pose").draw_people
    frames = []
    for index in range(FRAMES):
        points = np.ones((1, len(STANDING), 3), np.float32)
        points[0, :, :2] = np.array(STANDING) * POSE_SIDE
        turn = 0.5 * np.sin(2 * np.pi * index / (FRAMES - 1))
        forearm = 0.17 * POSE_SIDE * np.array([np.sin(turn), -np.cos(turn)])
        points[0, LEFT_WRIST, :2] = points[0, LEFT_ELBOW, :2] + forearm
        frames.append(draw_people(points, POSE_SIDE, POSE_SIDE, "as VACE"))
    return torch.from_numpy(np.stack(frames)).float() / 255


def save_pictures(out: Path) -> None:
    """Draw the reference on nothing, and the two frames between which a video can be made."""
    reference = covered_by("triangle", journey((0.5, 0.5), (0.5, 0.5)))[:1]
    rgb = painted(torch.ones_like(reference), "red", "white")[0]
    save_png(out / "red_triangle.png", torch.cat([rgb, reference[0, ..., None]], dim=2))
    frames = painted(covered_by("square", journey((0.3, 0.5), (0.7, 0.5))), "yellow", "blue")
    save_png(out / "first_frame.png", frames[0])
    save_png(out / "last_frame.png", frames[-1])


def save_png(path: Path, picture: torch.Tensor) -> None:
    """Write a picture [H, W, 3 or 4] in 0..1."""
    Image.fromarray((picture * 255).round().to(torch.uint8).numpy()).save(path, optimize=True)


def save_clips(out: Path, write: Callable[..., None]) -> None:
    """Draw the clips, and the mask that follows the first one's circle."""
    circle = covered_by("circle", journey((0.28, 0.5), (0.72, 0.5)))
    write(out / "moving_circle.mp4", painted(circle, "red", "blue"), Fraction(FPS), audio=melody())
    masks = [Image.fromarray(np.uint8(255) * (frame > 0.5).numpy()) for frame in circle]
    masks[0].save(
        out / "moving_circle_mask.webp", save_all=True, append_images=masks[1:], lossless=True, duration=1000 / FPS
    )
    square = covered_by("square", journey((0.5, 0.72), (0.5, 0.28)))
    write(out / "moving_square_depth.mp4", square[..., None].expand(-1, -1, -1, 3).contiguous(), Fraction(FPS))
    person = waving()
    write(out / "waving_person_pose.mp4", person, Fraction(FPS))
    # Of the toy's size, for the workflow whose video is made at the size of its input.
    small = torch.nn.functional.interpolate(person.permute(0, 3, 1, 2), size=(SIDE, SIDE), mode="area")
    write(out / "waving_person_pose_small.mp4", small.permute(0, 2, 3, 1).contiguous(), Fraction(FPS))


def main() -> None:
    """Draw all samples into a folder."""
    parser = argparse.ArgumentParser(description="Draw the sample inputs.")
    parser.add_argument("--out", type=Path, required=True, help="folder the files are written to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    save_pictures(out)
    save_clips(out, pack("core.media.mp4").write_mp4)


if __name__ == "__main__":
    main()
