"""A video's streams moved into MP4 as they are: nothing is lost, and time and sound stay exact."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import split

from . import disk, ffmpeg
from .encoding import scratch_folder, texts_input
from .video import MP4

# What browsers and players expect in MP4; ffmpeg would also put less usual codecs there.
_FITS = {"h264", "hevc", "av1", "vp9", "mpeg4", "aac", "mp3", "opus", "ac3", "eac3", "flac", "alac"}
_STREAMS = split("-map 0:v:0 -map 0:a?")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def can_copy(path: Path, format: str, codec: str) -> bool:
    """Return whether a file's streams may be kept for an MP4 of this `format` and `codec`, "auto" being any.

    As in ComfyUI, a `format` means the file's own, so that "mp4" makes H.264 of other containers' streams.
    """
    doing = f"Cannot read {path}"
    with disk.explained(doing), path.open("rb") as file:
        is_mp4 = file.read(8)[4:] in _MP4_BOXES
    header = ffmpeg.output([*ffmpeg.source(path), *_STREAMS, *split("-c copy -t 0 -f framecrc pipe:1")], doing)
    codecs = re.findall(r"^#codec_id \d+: (\S+)", header.decode("ascii", "replace"), re.MULTILINE)
    kept = bool(codecs) and _FITS.issuperset(codecs)
    return kept and (format == "auto" or is_mp4) and codec in ("auto", codecs[0])


def copy_to_mp4(source: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the first video and all sound of `source` to `path`, with `metadata` over the file's own.

    Raises PiyingError when the disk or ffmpeg fails; no file is left then.
    """
    doing = f"Cannot save the video in {path.parent}"
    with scratch_folder(path.parent, doing) as scratch, disk.removed_on_failure(path):
        # Of two maps the first wins, key by key.
        texts = [*texts_input(scratch, metadata, doing), *split("-map_metadata 1 -map_metadata 0")]
        copied = [*_STREAMS, *split("-c copy -map_chapters -1"), *MP4, ffmpeg.url(path)]
        ffmpeg.output(["-y", *ffmpeg.source(source), *texts, *copied], doing)
