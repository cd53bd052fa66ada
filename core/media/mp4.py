"""MP4 files with ComfyUI's metadata: H.264 and AAC of frames and sound, or another file's streams as they are."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from shlex import split
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError, explain_os_errors
from . import ffmpeg
from .colour import bt709
from .encoding import RESULT, encode, scratch_folder, texts_input
from .frame_rate import exact_rate
from .metadata import is_mp4

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .encoding import Frames

log = logging.getLogger("piying")

# Visually lossless for generated footage; x264's own default of 23 shows blocks in flat gradients.
CRF = 17
AUDIO_BIT_RATE = "192k"

_H264 = split(f"-c:v libx264 -preset medium -crf {CRF} -flags:v +bitexact")
_AAC = split(f"-c:a aac -b:a {AUDIO_BIT_RATE} -flags:a +bitexact")
# bitexact leaves version strings out; use_metadata_tags keeps keys that MP4 does not know; faststart moves
# them to the front, where ComfyUI's page looks.
_MP4 = split("-fflags +bitexact -movflags +faststart+use_metadata_tags -f mp4")
# Codecs that browsers and players support in MP4; ffmpeg also accepts rarer ones.
_FITS = {"h264", "hevc", "av1", "vp9", "mpeg4", "aac", "mp3", "opus", "ac3", "eac3", "flac", "alac"}
_STREAMS = split(f"-map {ffmpeg.PICTURE} -map 0:a?")


def write_mp4(
    path: Path,
    frames: Frames,
    fps: Fraction,
    *,
    metadata: Mapping[str, str] | None = None,
    audio: Mapping[str, Any] | None = None,
) -> None:
    """Write H.264 (yuv420p, BT.709) and, where there is sound, AAC to `path`, frame by frame.

    The same input gives the same bytes, but for x264 builds whose macroblock tree is not reproducible with AVX-512.
    An existing file is replaced; after a failure it is as it was.

    Args:
        frames: [H,W,3] each, uint8 arrays or float tensors 0..1; a tensor [N,H,W,3] is an iterable of those.
            An odd height or width, which 4:2:0 cannot hold, grows by one by repeating its edge.
        fps: exact up to a denominator of 1001; above 0, up to 1000.
        metadata: JSON texts by key (`prompt`, `workflow`), stored where ComfyUI looks for them.
        audio: ComfyUI's AUDIO, {"waveform": float tensor [B,C,T], "sample_rate": int}; the first of the batch is
            taken and cut where the video ends.

    Raises:
        PiyingError: no frames, frames of unequal size, a bad rate, or the disk or ffmpeg fails.
    """
    doing = f"Cannot save the video in {path.parent}"
    rate = exact_rate("fps", fps)
    # Validated before encoding, which may take minutes.
    samples = _samples(audio) if audio else None
    with scratch_folder(path, doing) as scratch:
        # Encoded without sound first: the duration to cut it to is known after the last frame.
        silent = scratch / (RESULT if samples is None else "silent")
        texts = texts_input(scratch, metadata or {}, doing)
        video = [*bt709("yuv420p"), *_H264, *_MP4]
        count = encode(silent, frames, rate, texts=texts, arguments=video, doing=doing, even=True)
        if audio and samples is not None:
            sample_rate = int(audio["sample_rate"])
            beyond = len(samples) / sample_rate - float(count / rate)
            if beyond > 1 / rate:
                log.info("The sound is %.2f s longer than the picture: it is cut where the picture ends.", beyond)
            with explain_os_errors(doing):
                (scratch / "sound").write_bytes(samples[: math.ceil(sample_rate * count / rate)].tobytes())
            raw = split(f"-f f32le -ar {sample_rate} -ac {samples.shape[1]} -i")
            both = ["-i", ffmpeg.url(silent), *raw, ffmpeg.url(scratch / "sound")]
            copied = split("-map 0:v -map 1:a -map_metadata 0 -c:v copy")
            ffmpeg.output(["-y", *both, *copied, *_AAC, *_MP4, ffmpeg.url(scratch / RESULT)], doing)


def can_copy(path: Path, format: str, codec: str) -> bool:
    """Return whether a file's streams may be kept for an MP4 of this `format` and `codec`, "auto" being any.

    As in ComfyUI, a `format` means the file's own, so that "mp4" makes H.264 of other containers' streams.
    """
    doing = f"Cannot read {path}"
    with explain_os_errors(doing), path.open("rb") as file:
        of_mp4 = is_mp4(file.read(12))
    header = ffmpeg.output([*ffmpeg.source(path), *_STREAMS, *split("-c copy -t 0 -f framecrc pipe:1")], doing)
    codecs = re.findall(r"^#codec_id \d+: (\S+)", header.decode("ascii", "replace"), re.MULTILINE)
    fits = bool(codecs) and _FITS.issuperset(codecs)
    return fits and (format == "auto" or of_mp4) and codec in ("auto", codecs[0])


def copy_to_mp4(source: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the first video and all sound of `source` to `path`, with `metadata` over the file's own.

    Nothing is encoded: nothing is lost, and time and sound stay exact. Raises PiyingError when the disk or ffmpeg
    fails; `path` is then as it was.
    """
    doing = f"Cannot save the video in {path.parent}"
    with scratch_folder(path, doing) as scratch:
        # Where both inputs have a key, ffmpeg takes the first map's.
        texts = [*texts_input(scratch, metadata, doing), *split("-map_metadata 1 -map_metadata 0")]
        copied = [*_STREAMS, *split("-c copy -map_chapters -1"), *_MP4, ffmpeg.url(scratch / RESULT)]
        heard: list[str] = []
        ffmpeg.output(["-y", *ffmpeg.source(source), *texts, *copied], doing, heard=heard)
    if (said := ffmpeg.complaint(heard)) is not None:
        log.warning("%s is damaged: it was copied as it is. %s.", source, said)


def check_audio(audio: Mapping[str, Any] | None) -> None:
    """Accept AUDIO that a video can have, or none.

    Raises:
        PiyingError: it is no sound, or has no rate.
    """
    if audio:
        _samples(audio)


def _samples(audio: Mapping[str, Any]) -> npt.NDArray[np.float32] | None:
    """Return AUDIO as finite samples [T,C] in -1..1; None where there are none, which is a video without sound."""
    import torch

    if not isinstance(audio, Mapping) or not isinstance(audio.get("waveform"), torch.Tensor):
        raise PiyingError("The audio holds no sound. Connect an AUDIO, such as that of Get Video Components.")
    rate, waveform = int(audio.get("sample_rate", 0)), audio["waveform"]
    if rate < 1 or waveform.ndim != 3 or not waveform.shape[0] or not 1 <= waveform.shape[1] <= 8:
        raise PiyingError(
            f"The audio is a waveform {list(waveform.shape)} at {rate} Hz. Give [batch, channels, samples] "
            "with 1 to 8 channels, and a rate above 0."
        )
    # ffmpeg's AAC encoder refuses NaN and infinity.
    samples = torch.nan_to_num(waveform[0].detach().to("cpu", torch.float32)).clamp(-1, 1)
    return samples.T.contiguous().numpy() if waveform.shape[2] else None
