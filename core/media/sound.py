"""A soundtrack that goes along when frames are added or cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from .frame_rate import exact_rate

if TYPE_CHECKING:
    import torch


def align(audio: Mapping[str, Any] | None, num_frames: int, fps: float, frames_before: int) -> dict[str, Any] | None:
    """Return sound as long as `num_frames`, begun `frames_before` frames later.

    Args:
        audio: ComfyUI's AUDIO, {"waveform": float tensor [B, C, T], "sample_rate": Hz}, or None: a video
            without sound stays one.
        num_frames: of the new video.
        fps: of the new video; above 0, up to 1000.
        frames_before: how many frames were added in front: silence there. Below 0: how many were cut off there.

    Raises:
        PiyingError: the value is no sound, `fps` is no rate, or `num_frames` is below 1.
    """
    if audio is None:
        return None
    waveform, sample_rate = _checked(audio)
    rate = exact_rate("fps", fps)
    if num_frames < 1:
        raise PiyingError(f"num_frames is {num_frames}. Give the number of frames of the new video, 1 or more.")
    shift = round(frames_before / rate * sample_rate)
    total = round(num_frames / rate * sample_rate)
    return {**audio, "waveform": _moved(waveform, shift, total)}


def _moved(waveform: torch.Tensor, shift: int, total: int) -> torch.Tensor:
    """Return `total` samples [B, C, total] of silence with `waveform` in it from sample `shift` on."""
    result = waveform.new_zeros(*waveform.shape[:2], total)
    skipped, start = max(-shift, 0), max(shift, 0)
    kept = waveform[..., skipped : skipped + max(total - start, 0)]
    result[..., start : start + kept.shape[-1]] = kept
    return result


def _checked(audio: Any) -> tuple[torch.Tensor, int]:
    known = isinstance(audio, Mapping) and {"waveform", "sample_rate"} <= audio.keys()
    if not known or audio["waveform"].ndim != 3 or int(audio["sample_rate"]) < 1:
        raise PiyingError(
            "audio is not a sound: {waveform [batch, channels, samples], sample_rate}. Connect Load Audio or "
            "Get Video Components."
        )
    return audio["waveform"], int(audio["sample_rate"])
