"""A model's answer without what is not the prompt: thinking, greetings, markup, JSON, notes.

The forms are those that Qwen3, DeepSeek-R1, GLM, ERNIE, Kimi, Magistral, Seed, Granite and gpt-oss give,
and what small models put around an answer.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

_THOUGHT = r"(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad|seed:think)"
_OPEN, _CLOSE = rf"<\s*{_THOUGHT}\s*>", rf"<\s*/\s*{_THOUGHT}\s*>"
# (beginning, end) of thinking. Without its end everything behind the beginning is thinking; without its
# beginning, which some templates write themselves, everything before the end.
THINKING = [
    (_OPEN, _CLOSE),
    (r"◁\s*think\s*▷", r"◁\s*/\s*think\s*▷"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel\|>(?:analysis|commentary)(?:<\|message\|>)?", r"<\|channel\|>final(?:<\|message\|>)?"),
    (r"Here is my thought process:", r"Here is my response:"),
]
# What an answer is wrapped in; the tags go, the text stays.
WRAPPERS = re.compile(r"</?\s*(?:answer|response|output|result|text|prompt|final)\s*>", re.IGNORECASE)
CONTROL_TOKENS = re.compile(
    r"<\|[^<>|\n]{0,40}\|>|<｜[^<>\n]{0,40}｜>|\[/?INST\]|</?s>|\[gMASK\]|<sop>|<eop>|<(?:start|end)_of_turn>"
)
FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_LEAD = r"(?:sure|certainly|of course|okay|ok|absolutely|great|好的|当然|没问题)[!,.。，！: ]*"
_SUBJECT = (
    r"(?:here(?:['’]s| is| are)|below is|以下是|下面是|这是为您)[^\n:：]{0,120}[:：]"
    r"|(?:the |my |your )?(?:final |enhanced |expanded |rewritten |improved |detailed |video |image |positive )*"
    r"(?:prompt|answer|output|result|description|rewrite|version)s?\s*[:：]"
    r"|(?:优化|扩写|改写|润色|完整|最终|正向|视频|图像|画面|英文|中文)*后?的?(?:提示词|描述|答案|结果|版本|文本|输出)[:：]"
)
_OPTION = r"(?:option|version|prompt|方案|选项|版本)\s*(?:\d+|[一二三A-C])[^\n:：]{0,40}[:：]"
OPENING = re.compile(rf"^\s*(?:{_LEAD})?(?:{_SUBJECT}|{_OPTION})\s*|^\s*{_LEAD}(?=\n)", re.IGNORECASE)
NEXT_OPTION = re.compile(rf"\n\s*(?:[-*#]+\s*)?(?:{_OPTION})", re.IGNORECASE)
_NOTE = r"note|notes|word count|negative prompt|explanation|注|备注|说明|字数|负面提示词|反向提示词"
_FAREWELL = (
    r"let me know|i hope (?:this|that)|feel free|hope this helps|would you like"
    r"|如果您?需要|如需|希望(?:这|对)|请告诉我"
)
_COUNT = r"[(（](?:\d+ words|word count[^)]*|共?约?\d+个?字)[)）]"
CLOSING = re.compile(
    rf"(?:\n|(?<=[.!?。！？”\"])\s*)(?:[(（]?\s*(?:{_NOTE})\s*[:：]|{_FAREWELL}).*\Z|\s*{_COUNT}\s*\Z",
    re.IGNORECASE | re.DOTALL,
)
HEADING = re.compile(r"^\s{0,3}#{1,6}\s+.*$", re.MULTILINE)
MARKUP = re.compile(r"^\s*(?:[-*+•]|\d+[.)]|>)\s+|\*\*|__|`", re.MULTILINE)
EMPHASIS = re.compile(r"(?<![\w*])\*([^*\n]+)\*(?![\w*])")
# Control characters: escape sequences that a terminal would obey, zero-width and direction marks.
UNSEEN = re.compile(
    "\x1b\\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffd]"
)
QUOTE_PAIRS = {'"': '"', "“": "”", "'": "'", "‘": "’", "「": "」", "『": "』"}
JSON_KEYS = (
    "prompt",
    "expanded",
    "rewritten",
    "enhanced",
    "description",
    "answer",
    "output",
    "text",
    "result",
    "提示词",
    "描述",
)
NOT_PROMPT = ("negative", "original", "input", "language", "负面", "反向")


def clean_answer(text: str) -> str:
    """Return the prompt that an answer holds, on one line; empty where it holds none."""
    text = without_thinking(html.unescape(text) if "&lt;" in text else text)
    text = UNSEEN.sub("", CONTROL_TOKENS.sub(" ", text.replace("\r", "\n")))
    text = WRAPPERS.sub(" ", _outside_fence(text)).strip()
    text = _from_json(text)
    text = _without_frame(text)
    return " ".join(text.split())


def without_thinking(text: str) -> str:
    """Return an answer without its thinking, closed or not."""
    for opening, closing in THINKING:
        text = re.sub(f"{opening}.*?(?:{closing}|\\Z)", "", text, flags=re.DOTALL | re.IGNORECASE)
        text = re.sub(f"\\A.*{closing}", "", text, flags=re.DOTALL | re.IGNORECASE)
    return text


def _outside_fence(text: str) -> str:
    """Return what is in the longest code fence, where there is one; else the text."""
    blocks = [block.strip() for block in FENCE.findall(text)]
    return max(blocks, key=len) if any(blocks) else text


def _from_json(text: str) -> str:
    """Return the prompt of an answer in JSON, cut off or not; else the text."""
    start = min((index for index in (text.find("{"), text.find("[{")) if index >= 0), default=-1)
    if start < 0 or not re.match(r'[\[{\s]*"[^"\n]{1,40}"\s*:', text[start:]):
        return text
    try:
        return _prompt_in(json.JSONDecoder(strict=False).raw_decode(text[start:])[0]) or text
    except ValueError:
        values = re.findall(r'"([^"\n]{1,40})"\s*:\s*"((?:[^"\\]|\\.)*)', text[start:])
        return _prompt_in({key: value.replace('\\"', '"').replace("\\n", " ") for key, value in values}) or text


def _prompt_in(value: Any) -> str:
    """Return the text under the likeliest key of decoded JSON, else the longest text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return next((found for found in map(_prompt_in, value) if found), "")
    if not isinstance(value, dict):
        return ""
    texts = {str(key).lower(): _prompt_in(inner) for key, inner in value.items()}
    texts = {key: text for key, text in texts.items() if text and not any(word in key for word in NOT_PROMPT)}
    for name in JSON_KEYS:
        for key, text in texts.items():
            if name in key:
                return text
    return max(texts.values(), key=len, default="")


def _without_frame(text: str) -> str:
    """Return a text without greeting, headings, list marks, quotes around it, and notes behind it."""
    text = MARKUP.sub("", EMPHASIS.sub(r"\1", HEADING.sub("", text))).strip()
    for _ in range(3):  # "Sure! Here it is: Prompt: …" has several
        text = OPENING.sub("", text, count=1).strip()
    text = CLOSING.sub("", NEXT_OPTION.split(text)[0]).strip()
    return _without_quotes(text)


def _without_quotes(text: str) -> str:
    closing = QUOTE_PAIRS.get(text[:1])
    inner = text[1:-1]
    if closing and len(text) > 1 and text[-1] == closing and closing not in inner and text[0] not in inner:
        return inner.strip()
    return text
