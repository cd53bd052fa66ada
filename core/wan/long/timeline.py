"""Timeline: a prompt that says what happens when, for the windows of a long video."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from ...errors import PiyingError, clipped
from ..request import FPS, MAX_CFG, WanRequest
from .request import LongRequest, Window, window_request

# "5s: …", "80f: …" or "5秒：…", with settings before the colon: "5s cfg 3 blend 1s: …".
UNITS = "s|secs?|seconds?|f|frames?|秒钟?|帧"
TIME = rf"\s*(?:第\s*)?(\d+(?:\.\d+)?)\s*({UNITS})"
LINE = TIME + r"((?:\s+[a-z]+\s+[^\s:：]+)*)\s*[:：]\s*(.*)"
# What people write for a time, and is none here: a span ("0-2s: …"), a time without its colon or with half a setting
# ("5s …", "5s cfg: …"), and a clock ("00:05 …"). A prompt may begin with the last two, so all its lines have to.
SPAN = rf"\s*\d+(?:\.\d+)?(?:\s*(?:{UNITS}))?\s*[-–—~～至到]" + TIME + r"\s*[:：].*"
LOOSE = rf"(?:{TIME}\b|\s*\d+[:：]\d\d\b).*"
OTHER_UNITS = "ms|毫秒|m|mins?|minutes?|分钟?|h|hours?|小时"
NUMBER = r"\d+(?:\.\d+)?"
# Half a number or one with a sign, another unit, a number in words, or a time in brackets or of a list ("[5s] …").
HALF = "|".join(
    (
        rf"\s*(?:[-–+−]\s*[\d.]+|\.\d+|\d+\.|\d+e\d+|\d+[,，]\d+)\s*(?:{UNITS})\b[^:：]*[:：].*",
        rf"\s*第?{NUMBER}\s*(?:{OTHER_UNITS})(?:\s*\d+\s*(?:{UNITS}))?\s*[:：].*",
        r"\s*[一二两三四五六七八九十百零半]+(?:分钟?|秒钟?|帧)\s*[:：].*",
        rf"[^\w:：]+(?:第\s*)?{NUMBER}\s*(?:{UNITS})\s*[^\w\s]+.*",
    )
)
BARE = rf"\s*{NUMBER}\s*[:：](?!\d).*"  # without a unit: of a list, where no line has a time
MOST_NAMED = 4  # times that are left out, each with a line of its own
LATEST = 1e9  # behind the end of every video
SETTINGS = {"cfg": (1.0, MAX_CFG), "task": (0.0, 10.0), "lora": (-10.0, 10.0), "blend": (0.0, 600.0)}
EXAMPLE = "Write 0s: …, then lines such as 5s: … or 5s cfg 3 task 0.8 lora 0.5 blend 1s: …"


@dataclass(frozen=True)
class Moment:
    """What holds from a time on.

    Attributes:
        mark: as it is written, such as "5s".
        start: the frame from which it holds.
        prompt: what the video shows from there.
        cfg: the guidance scale, None for that of the sampler.
        task: what the task's strength is multiplied by.
        lora: what the strengths of all LoRAs are multiplied by.
        blend: frames over which the prompt before turns into this one.
    """

    mark: str
    start: int
    prompt: str
    cfg: float | None = None
    task: float = 1.0
    lora: float = 1.0
    blend: int = 0


TIMES_ARE_WORDS = "The prompt has times, which VACE Long Video follows: here they are read as words."


def has_times(prompt: str) -> bool:
    """Return whether a prompt says what happens when."""
    return any(_time_line(line) for line in prompt.splitlines())


def _time_line(line: str) -> re.Match[str] | None:
    return re.fullmatch(LINE, line, re.IGNORECASE)


def _check_lines(prompt: str) -> None:
    """Refuse lines that are meant as times and would be read as words."""
    lines = [line for line in prompt.splitlines() if line.strip()]
    timed = sum(map(bool, map(_time_line, lines)))
    odd = [line for line in lines if re.match(SPAN, line, re.IGNORECASE)]
    others = [line for line in lines if not _time_line(line)]
    loose = [line for line in others if re.fullmatch(f"{LOOSE}|{HALF}", line, re.IGNORECASE)]
    odd += [line for line in others if timed and re.fullmatch(f"{HALF}|{BARE}", line, re.IGNORECASE)]
    odd += loose if len(lines) > 1 and len(loose) + timed == len(lines) else []
    if odd:
        raise PiyingError(f"prompt has the line {clipped(odd[0])!r}, whose time cannot be read. {EXAMPLE}")


def parse_timeline(prompt: str) -> tuple[Moment, ...]:
    """Return the moments of a prompt in order of time; one that holds from the start where it has no times.

    A line without a time goes on with what the line before it says.

    Raises:
        PiyingError: the first time is not 0, times do not rise, a setting is none or out of range, a moment has
            no prompt, or a time is written in another way.
    """
    _check_lines(prompt)
    if not has_times(prompt):
        return (Moment("0s", 0, prompt),)
    found: list[Moment] = []
    lines: list[list[str]] = []  # of each moment
    for line in prompt.splitlines():
        match = _time_line(line)
        if match:
            found.append(_moment(*match.groups()))
            lines.append([found[-1].prompt])
        elif found and line.strip():
            lines[-1].append(line)
        elif line.strip():
            raise PiyingError(f"prompt begins with {clipped(line)!r} before its first time. {EXAMPLE}")
    found = [replace(one, prompt="\n".join(own).strip()) for one, own in zip(found, lines, strict=True)]
    _check_order(found)
    return tuple(found)


def _check_order(moments: list[Moment]) -> None:
    if moments[0].start != 0:
        raise PiyingError(f"prompt begins at {moments[0].mark}, and says nothing of the time before. {EXAMPLE}")
    for earlier, later in pairwise(moments):
        if later.start <= earlier.start:
            raise PiyingError(
                f"prompt has {later.mark} after {earlier.mark}. Times rise from line to line, by a frame at least."
            )
    for one in moments:
        if not one.prompt.strip():
            raise PiyingError(f"prompt says nothing at {one.mark}. {EXAMPLE}")


def _moment(number: str, unit: str, settings: str, prompt: str) -> Moment:
    mark = clipped(f"{number}{unit}")
    words = settings.split()
    values: dict[str, float] = {}
    for name, text in zip(words[::2], words[1::2], strict=True):
        name = name.lower()
        if name not in SETTINGS:
            raise PiyingError(f"prompt sets {name!r} at {mark}. What can be set there: {', '.join(SETTINGS)}.")
        if name in values:
            raise PiyingError(f"prompt sets {name} twice at {mark}. Leave one of them out.")
        low, high = SETTINGS[name]
        try:
            value = float(text.lower().removesuffix("s").removesuffix("秒"))
        except ValueError:
            raise PiyingError(f"prompt sets {name} to {text!r} at {mark}, which is no number. {EXAMPLE}") from None
        if not low <= value <= high:
            raise PiyingError(f"prompt sets {name} to {text} at {mark}. It goes from {low:g} to {high:g}.")
        values[name] = value
    start = round(min(float(number), LATEST) * (FPS if unit[0] in "sS秒" else 1))
    blend = round(values.pop("blend", 0.0) * FPS)
    return Moment(mark, start, prompt, blend=blend, **values)


@dataclass(frozen=True)
class Direction:
    """What a window is made by.

    Attributes:
        moment: what holds in the middle of its new frames.
        request: what the model is asked for.
    """

    moment: Moment
    request: WanRequest


def direct(request: LongRequest, moments: tuple[Moment, ...], window: Window) -> Direction:
    """Return what a window is made by: the moment that holds in the middle of the frames that are its own.

    Within the blend of a moment its prompt is mixed with the one before, by their embeddings.
    """
    middle = (window.start + window.given + window.end - window.closing) / 2
    index = max(index for index, one in enumerate(moments) if index == 0 or one.start <= middle)
    moment, asked = moments[index], window_request(request, window)
    asked = replace(asked, prompt=moment.prompt)
    if moment.cfg is not None:
        asked = replace(asked, cfg=moment.cfg)
    passed = middle - moment.start
    if index and passed < moment.blend:
        asked = replace(asked, earlier_prompt=moments[index - 1].prompt, earlier_share=1 - passed / moment.blend)
    return Direction(moment, asked)


def check_timeline(moments: tuple[Moment, ...], video: WanRequest, *, has_task: bool, has_loras: bool) -> list[str]:
    """Return what of a timeline lies behind the video's end, a sentence each.

    Raises:
        PiyingError: it sets the strength of a task or of LoRAs where there are none, or cfg beside that of each step.
    """
    for one in moments:
        if one.task != 1 and not has_task:
            raise PiyingError(f"prompt sets task at {one.mark}, and no task is connected.")
        if one.lora != 1 and not has_loras:
            raise PiyingError(f"prompt sets lora at {one.mark}, and the model has no LoRA.")
        if one.cfg is not None and video.guidance.cfg_steps:
            raise PiyingError(
                f"prompt sets cfg at {one.mark}, and cfg_steps that of each step. Leave one of them out."
            )
    end = f"{video.num_frames / FPS:g} s"
    behind = [one.mark for one in moments if one.start >= video.num_frames]
    said = [f"prompt: {mark} is behind the video's end ({end}) and is left out." for mark in behind[:MOST_NAMED]]
    if len(behind) > MOST_NAMED:
        count = len(behind) - MOST_NAMED
        said.append(f"prompt: {count} more times are behind the video's end ({end}) and are left out.")
    return said


def largest_cfg(moments: tuple[Moment, ...], cfg: float) -> float:
    """Return the largest guidance scale of any moment, that of the sampler included where one has it."""
    return max(cfg if one.cfg is None else one.cfg for one in moments)
