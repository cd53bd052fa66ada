"""Colour of video: ffmpeg's filters from what a file holds to RGB as screens show it, and from frames to BT.709."""

from __future__ import annotations

import re
from dataclasses import dataclass
from shlex import split

from . import ffmpeg

# Options of the scale filter, whose defaults trade colour accuracy for speed.
PRECISE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"

UNKNOWN = "unknown"
_HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
# Those of BT.601 and BT.709 are so close that players do not convert between them.
_WIDE = {"bt2020": "BT.2020", "smpte431": "DCI-P3", "smpte432": "Display P3"}
# What ffmpeg's scale filter converts from; it takes any other matrix for BT.601.
_SCALED = {"bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc", "gbr", UNKNOWN}
_NOT_YUV = re.compile(r"rgb|bgr|gbr|argb|abgr|0rgb|0bgr|x2|pal8|gray|mono|ya\d|xyz|bayer")
# BT.2408: white paper has 203 nits in HDR, and is the white of SDR. Brighter light, up to the 1000 nits that most
# footage is mastered for, goes into the quarter above the knee: below it nothing but the scale changes.
_WHITE, _BRIGHTEST, _KNEE = 203, 1000, 0.75


@dataclass(frozen=True)
class Colour:
    """How a video stores its colours, in ffmpeg's names; `unknown` where it does not say.

    Attributes:
        pixels: pixel format, such as yuv420p10le.
        levels: tv (limited) or pc (full).
        matrix, primaries, transfer: of H.273.
    """

    pixels: str
    levels: str = UNKNOWN
    matrix: str = UNKNOWN
    primaries: str = UNKNOWN
    transfer: str = UNKNOWN

    @property
    def has_alpha(self) -> bool:
        """Whether the pixel format has an alpha channel; that of a palette counts."""
        return bool(re.match(r"yuva|argb|rgba|abgr|bgra|gbrap|ya\d|pal8|ayuv|vuya", self.pixels))


def bt709(pixels: str) -> list[str]:
    """Return the arguments that convert frames to BT.709 in the pixel format `pixels`, such as yuv420p, and tag it."""
    # Newer ffmpegs take the tags from the frames, which setparams marks, older ones from the options.
    marks = "colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    scale = f"scale=out_color_matrix=bt709:out_range=tv:{PRECISE}"
    options = split("-colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv")
    return ["-vf", f"{scale},format={pixels},setparams={marks}", *options]


def to_rgb(colour: Colour, width: int, height: int) -> tuple[list[str], list[str]]:
    """Return ffmpeg's filters from a video's colours to BT.709, and what to say about them.

    The scale filter that follows converts their output to RGB in 8 bits. HDR is tone-mapped: PQ and HLG to light in
    units of BT.2408's white, the primaries to BT.709, and highlights into range by the curve "mobius". Where ffmpeg
    lacks the filters for that, colours are left as they are, which is said.

    Args:
        width, height: as stored. Of a file that does not say its matrix they tell BT.601 from BT.709, as in players.
    """
    matrix, filters, notes = colour.matrix, list[str](), list[str]()
    is_yuv = not _NOT_YUV.match(colour.pixels)
    hdr, wide = _HDR.get(colour.transfer), _WIDE.get(colour.primaries)
    if is_yuv and matrix in (UNKNOWN, "gbr"):
        if hdr:
            matrix = "bt2020nc"
        # Widescreen SD of portrait phones and of generated video has one side above 576.
        elif min(width, height) > 576 or max(width, height) >= 1280:
            matrix = "bt709"
            notes.append("it does not say its colour matrix: BT.709 is assumed, as in players at this size")
        else:
            matrix = "smpte170m"
    if not hdr and not wide and matrix in _SCALED:
        return ([f"setparams=colorspace={matrix}"] if matrix != colour.matrix else []), notes
    what = f"its {hdr} HDR" if hdr else f"its wide gamut {wide}" if wide else f"its colour matrix {matrix}"
    lacking = ({"zscale", "tonemap"} if hdr else {"zscale"}) - ffmpeg.names("filters")
    if lacking:
        notes.append(
            f"{what} is shown with wrong colours, since this ffmpeg ({ffmpeg.ffmpeg_exe()}) has no filter "
            f"{' and no '.join(sorted(lacking))}. Set IMAGEIO_FFMPEG_EXE to one that has"
        )
        return filters, notes
    # zscale guesses nothing: every property has to be known.
    primaries = _known(colour.primaries, "bt2020" if hdr else "bt709")
    transfer = _known(colour.transfer, "bt709")
    levels = _known(colour.levels, "tv" if is_yuv else "pc")
    tags = f"setparams=range={levels}:color_primaries={primaries}:color_trc={transfer}:colorspace"
    if is_yuv:
        # Without subsampling, for which zscale wants even sizes. Where nothing but that changes the scale filter is
        # free to take the matrix for any that it knows.
        full = f"scale={PRECISE}:in_range={levels}:out_range={levels}"
        filters += [f"{tags}=smpte170m", full, "format=yuv444p16le", f"{tags}={matrix}"]
    else:
        filters += ["format=gbrp16le", f"{tags}=gbr"]
    if hdr:
        curve = f"tonemap=mobius:param={_KNEE}:peak={_BRIGHTEST / _WHITE:.3f}:desat=0"
        filters += [f"zscale=t=linear:npl={_WHITE}", "format=gbrpf32le", "zscale=p=bt709", curve]
        notes.append(f"{what} is tone-mapped to SDR (BT.709, white at {_WHITE} nits)")
    elif wide:
        notes.append(f"{what} is converted to BT.709")
    gamma = "bt709" if hdr else transfer
    filters += [f"zscale=p=bt709:t={gamma}:m=gbr:r=pc", "format=gbrp16le"]
    if colour.has_alpha:
        # Past the conversions: versions of zscale differ in what they make of it.
        alpha = "split[colours][opacity];[opacity]alphaextract,format=gray16le[opacity]"
        filters = [f"{alpha};[colours]{','.join(filters)}[colours];[colours][opacity]alphamerge"]
    return filters, notes


def _known(value: str, otherwise: str) -> str:
    return otherwise if value == UNKNOWN else value
