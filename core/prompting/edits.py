"""Prompts that say what to change: what of them the finished video shows, and answers that speak of the change."""

from __future__ import annotations

import re

PREFIX = "vace_"  # presets whose text may be an order to edit
# What goes away, with the words that say so; what comes in its place stays.
GONE = re.compile(
    r"\b(?:replace|swap|change|turn|convert|transform)\s+(?:[^.;,]+?)\s+(?:with|by|for|into|to)\b"
    r"|\b(?:remove|delete|erase|take away|get rid of|instead of|without)\s+[^.;,]+"
    r"|把[^，。；]+?(?:换成|改成|变成|改为|变为|替换成|替换为)|将[^，。；]+?(?:换成|改成|变成|改为|变为|替换成|替换为)"
    r"|(?:去掉|去除|移除|删除|删掉|擦除|抹去|没有|不要)[^，。；]+",
    re.IGNORECASE,
)
REMOVED = re.compile(
    r"\b(?:remove|delete|erase|take away|get rid of)\s+(?:the |an? |all )*"
    r"(.+?)(?=\s+(?:from|on|in|at|behind|and|so|then)\b|[.;,!]|\Z)"
    r"|(?:去掉|去除|移除|删除|删掉|擦除|抹去)(?:画面[中里]的|那个|这个|一个)?([^，。；！]+)",
    re.IGNORECASE,
)
TALK = re.compile(
    r"\breplac(?:e[sd]?|ing) (?:by|with|the)\b|\b(?:in|instead of|in place of) the original\b"
    r"|\boriginal (?:video|clip|footage)"
    r"|\b(?:edited|masked|inpainted|outpainted|repainted)\b|\bthe mask\b|\breference (?:image|picture|photo)"
    r"|替换(?:成|为)|换成|改成|原视频|原片|遮罩|蒙版|掩码|参考图",
    re.IGNORECASE,
)


def is_edit(preset: str) -> bool:
    """Return whether a preset's text may be an order to edit."""
    return preset.startswith(PREFIX)


def result_of(prompt: str) -> str:
    """Return a prompt without what it says goes away: "replace the red car with a bus" is about a bus."""
    return " ".join(GONE.sub(" ", prompt).split())


def speaks_of_edit(answer: str) -> bool:
    """Return whether an answer tells of a change, a mask or a reference in place of what is seen."""
    return TALK.search(answer) is not None


def names_what_is_removed(answer: str, prompt: str) -> bool:
    """Return whether an answer has in it, word for word, what a prompt wants to be gone."""
    for match in REMOVED.finditer(prompt):
        gone = re.escape((match.group(1) or match.group(2)).strip())
        if re.search(f"(?<![A-Za-z]){gone}(?![A-Za-z])", answer, re.IGNORECASE):
            return True
    return False
