"""Answers of language models: the prompt extracted from what a model wrote, and checks whether it can be used.

Cleaning knows the thinking marks and control tokens of Qwen3, DeepSeek-R1, GLM, ERNIE, Kimi, Magistral, Seed, Granite
and gpt-oss, and the greetings, markup, JSON and notes that small models put around an answer.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Hashable, Sequence
from typing import Any

from .facts import MEASURE_WORDS, edit_result
from .language import HAN, WORD, Language, is_finished, is_in, join_sentences, language_of, sentences, word_count

# Cleaning

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
# Checks

MAX_WORDS = 200  # Wan's text encoder reads 512 tokens, Hunyuan-DiT's 256
TOLERANCE = 0.3  # of the words that were requested
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
INJECTION = re.compile(
    r"ignore (?:all |any )?(?:the |your )?(?:previous|prior|above) |disregard (?:the |all )|system prompt"
    r"|忽略(?:以上|之前|上面)",
    re.IGNORECASE,
)
FUNCTION_WORDS = re.compile(
    "the|and|with|for|from|into|onto|over|under|near|that|this|these|those|are|was|were|its|his|her|their|our|your|who"
    "|has|have|had|not|but|very|some|any|all|there|here|then|than|out|off|one|makes?|shows?|please|want|video|picture"
    "|image|scene"
)
FUNCTION_CHARACTERS = frozenset("的了在一只个着是和有地得与上下里中把被这那请我你他她它们很都也就会到从")
# Code and the like: what a model writes that carries an instruction out.
CARRIED_OUT = re.compile(
    r"\b(?:def|function)\s+\w*\(|\b(?:print|console\.log|printf)\s*\(|\b(?:const|let|var)\s+\w+\s*="
    r"|\bSELECT\b.+\bFROM\b|#include\b|</?[a-z]+>|[={}]{2}"
    r"|\bthe answer is\b|\btranslates to\b|答案是|翻译(?:为|成|如下)|\d\s*[-+*/×]\s*\d+\s*=",
    re.IGNORECASE,
)
# What small models add behind a description.
ABOUT_ITSELF = re.compile(
    r"\b(?:this|the) (?:video|movie|film|clip|image|picture|paragraph|prompt|description|text|scene) "
    r"(?:is|was|has|shows?|showcases?|captures?|describes?|conveys?|depicts?|demonstrates?|highlights?|aims?|can|will"
    r"|should|would|could|provides?)\b"
    r"|^\W*this is\b|\bthe user\b|\blanguage of the text\b|\btext-to-\w+|\bI (?:want|have|hope|can|will|would|need)\b"
    r"|\byour? (?:can|may|want|need|text)\b"
    r"|^\W*这(?:是|种)|这个?(?:视频|图片|画作|段落|描述|文本)|这段|该(?:视频|描述|段落)|本段|以上(?:描述|内容)"
    r"|这个?(?:场景|画面)(?:是|描绘|描述|展[示现]|表现|呈现|捕捉)|用户|文本|提示词|字数|你的|您的|如果[你您]|如需"
    r"|^\W*(?:please|make sure|ensure|do not|don['’]t)\b|^\W*请|请(?:提供|告诉)"
    r"|我(?:将|会|想|希望)|\d\s*个?字(?!母)|[简繁]体中文|\b\d+ words\b",
    re.IGNORECASE,
)
FRAGMENT = 3  # words; a number with so few around it says nothing of a scene
STRAY_WORD = re.compile("(?<![A-Za-z])[a-z]{3,}(?![A-Za-z])")  # in a Chinese sentence; names and "4K" have capitals
PHRASE = 10  # words or characters in a row that are nobody's but the example's
SHINGLE = 5  # words or characters in a row by which copied text is recognised
MOST_COPIED = 0.35  # of an answer; how shots and styles are named is the same in many
LEAST_NEW = 0.35  # of the rows of words in an answer; lists of similar sentences have few
LOOP_REPEATS = 4  # a pattern so many times in a row is a loop
LOOP_MAX_PERIOD = 60  # words, characters or tokens
LOOP_MIN_LENGTH = 12  # shorter ones are emphasis: "very, very, very, very"
STEM = 3  # letters by which "running" is recognised as a form of "runs"
# Checks of answers to edit instructions
REMOVED = re.compile(
    r"\b(?:remove|delete|erase|take away|get rid of)\s+(.+?)(?=\s+(?:from|on|in|at|behind|of|and|so|then)\b|[.;,!]|\Z)"
    r"|\b(?:replace|swap)\s+(.+?)(?=\s+(?:from|on|in|at|behind|of|with|by|for)\b)"
    r"|(?:去掉|去除|移除|删除|删掉|擦除|抹去)([^，。；！]+)"
    r"|[把将]([^，。；]+?)(?:换成|换为|替换成|替换为)",
    re.IGNORECASE,
)
COUNTED = re.compile(f"^(?:那|这|所有|全部)?[一两二三四五六七八九十几]*[{MEASURE_WORDS}]?(?=.)")
EDIT_TALK = re.compile(
    r"\breplac(?:e[sd]?|ing) (?:by|with|the)\b|\b(?:in|instead of|in place of) the original\b"
    r"|\boriginal (?:video|clip|footage)"
    r"|\b(?:edited|masked|inpainted|outpainted|repainted|remov(?:e[sd]?|ing|al))\b"
    r"|\bthe mask\b|\breference (?:image|picture|photo)"
    r"|替换(?:成|为)|去掉|去除|移除|删除|换成|改成|原视频|原片|遮罩|蒙版|掩码|参考图",
    re.IGNORECASE,
)


def clean_answer(text: str) -> str:
    """Return the prompt that an answer contains, on one line; empty where it contains none."""
    text = without_thinking(html.unescape(text) if "&lt;" in text else text)
    text = UNSEEN.sub("", CONTROL_TOKENS.sub(" ", text.replace("\r", "\n")))
    fenced = [block.strip() for block in FENCE.findall(text)]
    if any(fenced):
        text = max(fenced, key=len)
    text = _from_json(WRAPPERS.sub(" ", text).strip())
    text = MARKUP.sub("", EMPHASIS.sub(r"\1", HEADING.sub("", text))).strip()
    for _ in range(3):  # openings come in a row: "Sure! Here it is: Prompt: …"
        text = OPENING.sub("", text, count=1).strip()
    text = CLOSING.sub("", NEXT_OPTION.split(text)[0]).strip()
    # Quotes around the whole answer go; those of two quotations at its ends stay.
    closing, inner = QUOTE_PAIRS.get(text[:1]), text[1:-1]
    if closing and len(text) > 1 and text[-1] == closing and closing not in inner and text[0] not in inner:
        text = inner.strip()
    return " ".join(text.split())


def without_thinking(text: str) -> str:
    """Return an answer without its thinking, closed or not."""
    for opening, closing in THINKING:
        text = re.sub(f"{opening}.*?(?:{closing}|\\Z)", "", text, flags=re.DOTALL | re.IGNORECASE)
        text = re.sub(f"\\A.*{closing}", "", text, flags=re.DOTALL | re.IGNORECASE)
    return text


def _from_json(text: str) -> str:
    """Return the prompt of an answer in JSON, complete or cut off; else the text."""
    start = min((index for index in (text.find("{"), text.find("[{")) if index >= 0), default=-1)
    if start < 0 or not re.match(r'[\[{\s]*"[^"\n]{1,40}"\s*:', text[start:]):
        return text
    try:
        return _prompt_in(json.JSONDecoder(strict=False).raw_decode(text[start:])[0]) or text
    except (ValueError, RecursionError):  # cut off, or nested without end
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


def is_refusal(answer: str, prompt: str) -> bool:
    """Return whether an answer addresses the user, which its prompt does not, instead of describing something."""
    if any(form.search(answer) and not form.search(prompt) for form in (REFUSAL, QUESTION)):
        return True
    return bool(INJECTION.search(answer)) and not INJECTION.search(prompt)


def _units(text: str) -> list[str]:
    """Return the words of a text and its Chinese characters."""
    return re.findall(f"{HAN.pattern}|{WORD.pattern}|\\d+", text.lower())


def _shingles(text: str, size: int = SHINGLE) -> list[tuple[str, ...]]:
    units = _units(text)
    return [tuple(units[start : start + size]) for start in range(len(units) - size + 1)]


def is_repetitive(answer: str) -> bool:
    """Return whether an answer repeats itself: in a loop somewhere, or the same words again and again."""
    rows = _shingles(answer)
    if len(rows) >= LOOP_MIN_LENGTH and len(set(rows)) < LEAST_NEW * len(rows):
        return True
    units = _units(answer)
    return any(ends_in_loop(units[:end]) for end in range(LOOP_MIN_LENGTH, len(units) + 1))


def without_repeated_sentences(text: str) -> str:
    """Return a text without the sentences that it has said before."""
    said: dict[tuple[str, ...], str] = {}
    for sentence in sentences(text):
        said.setdefault(tuple(_units(sentence)) or (sentence,), sentence)
    return join_sentences(list(said.values()))


def at_whole_sentence(text: str) -> str:
    """Return a text without the part behind its last whole sentence; the text where that would be most of it."""
    parts = sentences(text)
    if len(parts) > 1 and not is_finished(parts[-1]) and word_count(parts[-1]) < word_count(text) / 2:
        parts.pop()
    return join_sentences(parts)


def is_copied(answer: str, prompt: str, examples: Sequence[str]) -> bool:
    """Return whether an answer has a phrase of worked examples, or much of their text; the prompt's own words may."""
    for size, most in ((PHRASE, 0.0), (SHINGLE, MOST_COPIED)):
        rows = [row for row in _shingles(answer, size) if row not in set(_shingles(prompt, size))]
        known = {row for example in examples for row in _shingles(example, size)}
        copied = sum(row in known for row in rows)
        if copied > most * len(rows) and (most == 0.0 or len(rows) >= LOOP_MIN_LENGTH):
            return True
    return False


def is_about_itself(sentence: str, prompt: str) -> bool:
    """Return whether a sentence speaks of the prompt, its writer or its reader, which the prompt does not."""
    return any(form.search(sentence) and not form.search(prompt) for form in (ABOUT_ITSELF, QUESTION, REFUSAL))


def is_stray(sentence: str, prompt: str) -> bool:
    """Return whether a sentence is none of a description: a number alone, or one with a word of another language.

    What the prompt has may be there.
    """
    numbers = re.findall(r"\d+", sentence)
    if numbers and word_count(sentence) <= FRAGMENT and not any(number in prompt for number in numbers):
        return True
    if language_of(sentence) == "zh":
        return any(word not in prompt.lower() for word in STRAY_WORD.findall(sentence))
    return any(character not in prompt for character in HAN.findall(sentence))


def is_carried_out(answer: str, prompt: str) -> bool:
    """Return whether an answer does what its prompt says, such as to write code, instead of describing it."""
    return CARRIED_OUT.search(answer) is not None and CARRIED_OUT.search(prompt) is None


def ends_in_loop(items: Sequence[Hashable]) -> bool:
    """Return whether a sequence ends in a pattern repeated `LOOP_REPEATS` times."""
    for period in range(1, min(LOOP_MAX_PERIOD, len(items) // LOOP_REPEATS) + 1):
        span = max(LOOP_REPEATS * period, -(-LOOP_MIN_LENGTH // period) * period)
        tail = items[-span:]
        if len(tail) == span and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False


def is_wrong_language(answer: str, language: Language | None, kept: Sequence[str]) -> bool:
    """Return whether an answer is not in `language`; words that must be kept, as quotes, may be in another."""
    for text in kept:
        answer = answer.replace(text, " ")
    return language is not None and not is_in(answer, language)


def word_bounds(length: tuple[int, int] | None, is_requested: bool) -> tuple[int, int]:
    """Return how few and how many words an answer may have.

    Args:
        length: minimum and maximum that the model is told; None for none.
        is_requested: by the user: within `TOLERANCE` of the middle. What a preset says is halved at most.
    """
    if length is None:
        return 0, MAX_WORDS
    if is_requested:
        middle = sum(length) / 2
        return round(middle * (1 - TOLERANCE)), round(middle * (1 + TOLERANCE))
    return length[0] // 2, min(MAX_WORDS, round(length[1] * (1 + TOLERANCE)))


def writing_length(length: tuple[int, int] | None, is_requested: bool) -> tuple[int, int] | None:
    """Return before how many words an answer does not end, and with how many it ends with its sentence.

    Arguments: see `word_bounds`. A sentence more or less stays within the bounds.
    """
    if length is None or not is_requested:
        return length
    middle = sum(length) / 2
    return round(middle * (1 - TOLERANCE / 2)), round(middle)


def is_too_short(answer: str, prompt: str) -> bool:
    """Return whether an answer has less than half as many words as its prompt."""
    return word_count(answer) < min(word_count(prompt), MAX_WORDS) / 2


def is_on_topic(answer: str, prompt: str) -> bool:
    """Return whether an answer in the prompt's language shares a content word with it, in some form.

    A prompt with a single content word is not enough to judge by: the answer may have a synonym.
    """
    asked = _content_words(prompt)
    return len(asked) < 2 or bool(asked & _content_words(answer))


def _content_words(text: str) -> set[str]:
    """Return the stems of a text's words, and its Chinese characters, without function words."""
    words = {word for word in WORD.findall(text.lower()) if len(word) >= STEM and not FUNCTION_WORDS.fullmatch(word)}
    return {word[:STEM] for word in words} | (set(HAN.findall(text)) - FUNCTION_CHARACTERS)


def find_edit_problem(answer: str, instruction: str) -> str | None:
    """Return why an answer to an edit instruction cannot be used; None where it can.

    The video model is told what the finished video shows: an edit, a mask or a reference that is mentioned appears
    in it, and so does what is named as removed.
    """
    if EDIT_TALK.search(answer):
        return "It described the change, not what the finished video shows."
    stays = edit_result(instruction)
    for match in REMOVED.finditer(instruction):
        thing = _last_word(next(filter(None, match.groups())))
        removed = re.compile(rf"(?<![A-Za-z]){re.escape(thing)}(?:e?s)?(?![A-Za-z])", re.IGNORECASE)
        if thing and removed.search(answer) and not removed.search(stays):
            return "It named what the edit removes."
    return None


def _last_word(phrase: str) -> str:
    """Return the noun of a phrase in either language: "the red ball", 背景里的路人."""
    if HAN.search(phrase):
        return COUNTED.sub("", phrase.rpartition("的")[2].strip())
    words = re.findall(r"[A-Za-z]+", phrase)
    return words[-1].removesuffix("s") if words else ""
