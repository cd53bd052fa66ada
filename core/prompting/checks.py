"""Whether an answer can be used: what is wrong with it, in words for the log and for a second try."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

from .language import HAN, WORD, is_in, word_count

LONGEST = 200  # words of a prompt: Wan's text encoder reads 512 tokens, Hunyuan-DiT's 256
REFUSAL = re.compile(
    r"^\W*(?:i['’]?m (?:really |very )?sorry|i am (?:really |very )?sorry|sorry\b|i apologi[sz]e"
    r"|i (?:can(?:no|['’])?t|am unable|['’]m unable|won['’]?t)\b|as an? (?:ai|artificial|language model)"
    r"|unfortunately,? i\b|(?:很|非常)?抱歉|对不起|作为一?[个名款]?(?:ai|人工智能|语言模型|大模型)"
    r"|我(?:无法|不能|没有办法|是一?[个名款]?(?:ai|人工智能|语言模型))|无法(?:满足|提供|协助|完成))",
    re.IGNORECASE,
)
QUESTION = re.compile(
    r"^\W*(?:please (?:provide|give|share|tell)|could you|can you|what would you like|how can i (?:help|assist)"
    r"|hello|hi[ !,]|请(?:提供|告诉|问|输入)|您?好[,，!！]|有什么)",
    re.IGNORECASE,
)
ANOTHER_ORDER = re.compile(
    r"ignore (?:all |any )?(?:the |your )?(?:previous|prior|above) |disregard (?:the |all )|system prompt"
    r"|忽略(?:以上|之前|上面)",
    re.IGNORECASE,
)
REPEATS = 4  # a pattern so many times in a row is a loop
LONGEST_PERIOD = 60
STEM = 3  # letters by which "running" is a form of "runs"
FUNCTION_WORDS = re.compile(
    "the|and|with|for|from|into|onto|over|under|near|that|this|these|those|are|was|were|its|his|her|their|our|your|who"
    "|has|have|had|not|but|very|some|any|all|there|here|then|than|out|off|one|makes?|shows?|please|want|video|picture"
    "|image|scene"
)
FUNCTION_CHARACTERS = frozenset("的了在一只个着是和有地得与上下里中把被这那请我你他她它们很都也就会到从")
SHORTEST_LOOP = 12  # words or characters; "very, very, very, very" is none


def refuses(answer: str, prompt: str) -> bool:
    """Return whether an answer talks to the user in place of describing, which the prompt does not."""
    if any(form.search(answer) and not form.search(prompt) for form in (REFUSAL, QUESTION)):
        return True
    return bool(ANOTHER_ORDER.search(answer)) and not ANOTHER_ORDER.search(prompt)


def repeats(answer: str) -> bool:
    """Return whether an answer goes round in a circle somewhere."""
    units = re.findall(f"{HAN.pattern}|{WORD.pattern}|\\d+", answer.lower())
    return any(loops(units[:end]) for end in range(SHORTEST_LOOP, len(units) + 1))


def loops(items: Sequence[Hashable]) -> bool:
    """Return whether a sequence ends in a pattern said `REPEATS` times in a row."""
    for period in range(1, min(LONGEST_PERIOD, len(items) // REPEATS) + 1):
        span = max(REPEATS * period, -(-SHORTEST_LOOP // period) * period)
        tail = items[-span:]
        if len(tail) == span and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False


def off_language(answer: str, language: str | None, kept: Sequence[str]) -> bool:
    """Return whether an answer is not in `language`, words that must stay as they are left aside."""
    for text in kept:
        answer = answer.replace(text, " ")
    return language is not None and not is_in(answer, language)


def most_words(length: tuple[int, int] | None) -> int:
    """Return how many words an answer may have; half as many again as asked for are let pass."""
    return LONGEST if length is None else min(LONGEST, round(length[1] * 1.5))


def too_short(answer: str, prompt: str) -> bool:
    """Return whether an answer says less than half of what the prompt did."""
    return word_count(answer) < min(word_count(prompt), LONGEST) / 2


def is_about(answer: str, prompt: str) -> bool:
    """Return whether an answer in the prompt's language has any of its words, in some form.

    It may have another word for a single one.
    """
    asked = _content(prompt)
    return len(asked) < 2 or bool(asked & _content(answer))


def _content(text: str) -> set[str]:
    """Return what a text's words begin with, and its Chinese characters; without those that any text has."""
    words = {word for word in WORD.findall(text.lower()) if len(word) >= STEM and not FUNCTION_WORDS.fullmatch(word)}
    return {word[:STEM] for word in words} | (set(HAN.findall(text)) - FUNCTION_CHARACTERS)
