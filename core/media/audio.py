"""Audio: the sound of a file as ComfyUI's AUDIO, padded or cut when frames are added or cut."""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from shlex import split
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..main_memory import available_bytes
from . import ffmpeg
from .frame_rate import exact_rate

if TYPE_CHECKING:
    import torch

log = logging.getLogger("piying")

# Two and a half hours of stereo at 48 kHz.
MAX_BYTES = 1 << 32

# Sun's AU format can be read from a pipe: unlike WAV's, its header need not hold the length.
_SAMPLES = split("-map 0:a:0 -vn -c:a pcm_f32be -f au pipe:1")
# Times begin at the first frame. Sound that begins later gets silence before it, what is earlier is left out, and gaps
# of 0.1 s and more are filled with silence.
_ALIGNED = "asetpts=PTS-({start:.6f})/TB,aresample=async=1:first_pts=0"
# A second output, of nothing: times are those that `video.probe` sees. Sound need not have a picture.
_SAME_TIMES = split(f"-map {ffmpeg.PICTURE}? {ffmpeg.SOUNDS_AND_TEXTS} -c copy -t 0 -f null -")
_HEADER = ">4sIIIII"


def read_audio(path: Path, start: float = 0.0) -> dict[str, Any]:
    """Return {"waveform": float32 [1,C,T], "sample_rate": int} of the first sound track, at its own rate.

    What a damaged file makes ffmpeg complain of is logged.

    Args:
        start: seconds from the file's beginning to the first sample, where the first frame is shown
            (`VideoInfo.start`).

    Raises PiyingError when the file is missing, damaged, has no sound, or too much of it.
    """
    import numpy as np
    import torch

    doing, rate, channels = f"Cannot read the sound of {path}", 1, 1
    heard: list[str] = []
    arguments = [*ffmpeg.source(path), "-af", _ALIGNED.format(start=float(start)), *_SAMPLES, *_SAME_TIMES]
    with ffmpeg.running(arguments, doing, heard) as process:
        assert process.stdout is not None
        head = process.stdout.read(struct.calcsize(_HEADER))
        # Without a header ffmpeg has failed: the end of the block says why.
        if len(head) == struct.calcsize(_HEADER):
            _, offset, _, _, rate, channels = struct.unpack(_HEADER, head)
            process.stdout.read(offset - len(head))
        # Twice: as they come, and as a tensor.
        free = available_bytes()
        most = min(MAX_BYTES, free // 2)
        data = process.stdout.read(most + 1)
        if len(data) > most:
            raise PiyingError(f"{doing}: it is longer than {most / 2**30:.1f} GiB of samples. Cut it first.")
    if (said := ffmpeg.complaint(heard)) is not None:
        log.warning("%s is damaged: %.2f s of sound could be read. %s.", path, len(data) / 4 / channels / rate, said)
    samples = np.frombuffer(data, ">f4", len(data) // 4 // channels * channels).reshape(-1, channels)
    waveform = torch.from_numpy(np.ascontiguousarray(samples.T, np.float32))
    return {"waveform": waveform[None], "sample_rate": rate}


def align(audio: Mapping[str, Any] | None, num_frames: int, fps: float, frames_before: int) -> dict[str, Any] | None:
    """Return audio of the duration of `num_frames`, shifted by `frames_before` frames.

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
    known = isinstance(audio, Mapping) and {"waveform", "sample_rate"} <= audio.keys()
    if not known or audio["waveform"].ndim != 3 or int(audio["sample_rate"]) < 1:
        raise PiyingError(
            "audio is not a sound: {waveform [batch, channels, samples], sample_rate}. Connect Load Audio or "
            "Get Video Components."
        )
    rate = exact_rate("fps", fps)
    if num_frames < 1:
        raise PiyingError(f"num_frames is {num_frames}. Give the number of frames of the new video, 1 or more.")
    waveform: torch.Tensor = audio["waveform"]
    # Both are rounded once, from exact fractions: rounded per frame, sound would drift from the picture.
    shift = round(frames_before / rate * int(audio["sample_rate"]))
    total = round(num_frames / rate * int(audio["sample_rate"]))
    aligned = waveform.new_zeros(*waveform.shape[:2], total)
    skipped, start = max(-shift, 0), max(shift, 0)
    kept = waveform[..., skipped : skipped + max(total - start, 0)]
    aligned[..., start : start + kept.shape[-1]] = kept
    return {**audio, "waveform": aligned}
