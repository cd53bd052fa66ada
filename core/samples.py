"""Small clips and pictures that come with the pack, so that every workflow runs before anything is put in."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic_write import write_bytes
from .errors import PiyingError
from .image_sizes import VideoSize

if TYPE_CHECKING:
    from fractions import Fraction

    import torch

log = logging.getLogger("piying")

FOLDER = Path(__file__).parents[1] / "builtin_models" / "samples"
# Name in the widget → file, without its ending. `training/samples.py` draws them.
CLIPS = {
    "moving circle": "moving_circle",
    "moving square, depth": "moving_square_depth",
    "waving person, pose": "waving_person_pose",
}
PICTURES = {"red triangle": "red_triangle", "first frame": "first_frame", "last frame": "last_frame"}

# Names under which clips lie in an input folder, for ComfyUI's Load Video, which reads nowhere else.
INPUT_FILES = {
    "piying_moving_circle.mp4": FOLDER / "moving_circle.mp4",
    "piying_waving_person_pose.mp4": FOLDER / "waving_person_pose_small.mp4",
}


def place_clips(folder: Path) -> None:
    """Copy the clips that an input folder lacks into it; a folder that refuses them is named in the log."""
    for name, source in INPUT_FILES.items():
        if (folder / name).exists():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, source.read_bytes())
        except OSError as error:
            log.warning("The sample %s cannot be put into %s (%s).", name, folder, error.strerror)
            return


def sample_clip(name: str) -> tuple[torch.Tensor, dict[str, Any] | None, Fraction, torch.Tensor]:
    """Return frames [N, H, W, 3], sound or None, frames per second, and a mask [N, H, W].

    The mask follows the thing that moves; where a clip has none it is 0 everywhere.

    Raises:
        PiyingError: there is no clip of that name.
    """
    import torch

    from .media.audio import read_audio
    from .media.video import load_frames, probe

    path = FOLDER / f"{_file(name, CLIPS)}.mp4"
    info = probe(path)
    frames = load_frames(path, info)
    track = path.with_name(f"{path.stem}_mask.webp")
    if track.is_file():
        mask = (load_frames(track, probe(track))[..., 0] > 0.5).float()
    else:
        mask = torch.zeros(frames.shape[:3])
    return frames, read_audio(path, info.start) if info.has_audio else None, info.fps, mask


def clip_size(name: str) -> VideoSize:
    """Return the size and number of the frames of `sample_clip`, which are not decoded."""
    from .media.video import probe

    info = probe(FOLDER / f"{_file(name, CLIPS)}.mp4")
    return VideoSize(info.width, info.height, info.frames)


def sample_picture(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a picture [1, H, W, 3] and its mask [1, H, W], 1 where it is transparent, as Load Image gives them.

    Raises:
        PiyingError: there is no picture of that name.
    """
    from .media.images import read_image

    return read_image(FOLDER / f"{_file(name, PICTURES)}.png")


def _file(name: str, known: dict[str, str]) -> str:
    if name not in known:
        raise PiyingError(f"sample is {name!r}. Choose one of: {', '.join(known)}.")
    return known[name]
