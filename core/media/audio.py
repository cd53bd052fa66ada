"""The sound of a video or audio file, as ComfyUI's AUDIO."""

from __future__ import annotations

import struct
from pathlib import Path
from shlex import split
from typing import IO, Any

from ..errors import PiyingError
from . import ffmpeg

# Two and a half hours of stereo at 48 kHz.
MAX_BYTES = 1 << 32

# Sun's format: a header of six numbers, then the samples; nothing in it depends on the length, as in WAV.
_SAMPLES = split("-map 0:a:0 -vn -c:a pcm_f32be -f au pipe:1")
_HEADER = ">4sIIIII"


def read_audio(path: Path) -> dict[str, Any]:
    """Return {"waveform": float32 [1,C,T], "sample_rate": int} of the first sound track, at its own rate.

    Raises PiyingError when the file is missing, damaged, has no sound, or too much of it.
    """
    import numpy as np
    import torch

    doing = f"Cannot read the sound of {path}"
    with ffmpeg.running([*ffmpeg.source(path), *_SAMPLES], doing) as process:
        assert process.stdout is not None
        rate, channels = _header(process.stdout)
        data = process.stdout.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PiyingError(f"{doing}: it is longer than {MAX_BYTES >> 30} GiB of samples. Cut it first.")
    samples = np.frombuffer(data, ">f4", len(data) // 4 // channels * channels).reshape(-1, channels)
    waveform = torch.from_numpy(np.ascontiguousarray(samples.T, np.float32))
    return {"waveform": waveform[None], "sample_rate": rate}


def _header(stream: IO[bytes]) -> tuple[int, int]:
    head = stream.read(struct.calcsize(_HEADER))
    if len(head) < struct.calcsize(_HEADER):
        return 1, 1  # ffmpeg failed, and `running` says why.
    _, start, _, _, rate, channels = struct.unpack(_HEADER, head)
    stream.read(start - len(head))
    return rate, channels
