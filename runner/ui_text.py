"""What the browser does to text at export: dynamic prompts, and the names in %…% of file names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from .errors import WorkflowError

MAX_NESTING = 64
_LINE_END = re.compile("[\n\r\u2028\u2029]")
_TOKEN = re.compile(r"\\.?|[{}|]|[^\\{}|]+", re.DOTALL)
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')
_DATE = re.compile("d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{2,4}")


def dynamic_prompt(text: str, chooser: random.Random, depth: int = 0) -> str:
    """Return the prompt without comments, one option of each {a|b} chosen.

    Raises:
        WorkflowError: the braces are nested absurdly deep.
    """
    if depth > MAX_NESTING:
        raise WorkflowError(f"A prompt has choices nested more than {MAX_NESTING} deep.")
    result: list[str] = []
    tokens = iter(_TOKEN.findall(_without_comments(text)))
    for token in tokens:
        if token == "{":
            token = dynamic_prompt(chooser.choice(_options(tokens)), chooser, depth + 1)
        result.append(token)
    return re.sub(r"\\([{}|])", r"\1", "".join(result))


def _options(tokens: Any) -> list[str]:
    """Read up to the closing brace and return what the bars of this level divide."""
    options: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        if token == "}" and not depth:
            break
        if token == "|" and not depth:
            options.append([])
            continue
        depth += {"{": 1, "}": -1}.get(token, 0)
        options[-1].append(token)
    return ["".join(option) for option in options]


def _without_comments(text: str) -> str:
    kept: list[str] = []
    at = 0
    closed = "*/" in text
    for mark in re.finditer(r"//|/\*", text):
        if mark.start() < at or (mark.group() == "/*" and not closed):
            continue
        end = _comment_end(text, mark)
        closed = closed and end >= 0
        if end >= 0:
            kept.append(text[at : mark.start()])
            at = end
    return "".join([*kept, text[at:]])


def _comment_end(text: str, mark: re.Match[str]) -> int:
    if mark.group() == "/*":
        found = text.find("*/", mark.end())
        return found + 2 if found >= 0 else -1
    line_end = _LINE_END.search(text, mark.end())
    return line_end.start() if line_end else len(text)


def with_replacements(text: str, lookup: Callable[[str, str], Any], now: datetime) -> str:
    """Return a file name with its %date:…% and %node.widget% filled in; others stay.

    Args:
        text: the name.
        lookup: (node, widget) → the widget's value, or None where there is no such widget.
        now: what %date:…% means.
    """

    def fill(match: re.Match[str]) -> str:
        parts = match.group(1).split(".")
        if len(parts) != 2:
            return _date(parts[0][5:], now) if parts[0].startswith("date:") else match.group()
        found = lookup(*parts)
        return match.group() if found is None else _UNSAFE.sub("_", _as_text(found))

    return re.sub("%([^%]+)%", fill, text)


def _date(pattern: str, now: datetime) -> str:
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def fill(match: re.Match[str]) -> str:
        found = match.group()
        if found[0] in parts:
            return str(parts[found[0]]).zfill(len(found))
        return {"yy": str(now.year)[2:], "yyyy": str(now.year)}.get(found, found)

    return _DATE.sub(fill, pattern)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
