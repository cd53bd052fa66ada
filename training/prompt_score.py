"""How well a prompt model keeps what was said, read off its answers."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .language import BACKGROUNDS, COLOURS, MOTION_WORDS, SHAPE_WORDS
from .prompts import chat, system_prompt
from .short_prompts import NOUNS, PRESETS, STILL, TINTS, Example, example

# As core/prompting/expand.py samples.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_new_tokens": 96}
CHINESE = re.compile("[\u4e00-\u9fff]")
MEASURES = ("facts", "language", "no_contradiction", "no_motion_in_pictures", "no_looks_made_up")


def unseen(count: int, seed: int, presets: Sequence[str] = PRESETS) -> list[Example]:
    """Return examples whose lines were held out of training, no two alike."""
    draw, found = random.Random(f"unseen {seed}"), {}
    while len(found) < count:
        item = example(draw, presets)
        if item.held_out:
            found[item.preset, item.line] = item
    return list(found.values())


def answers(folder: Path, items: list[Example], seed: int) -> Iterator[str]:
    """Yield a model's answer to each line, sampled as the pack does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for index, item in enumerate(items):
        torch.manual_seed(seed + index)
        text = chat(tokenizer, system_prompt(item.preset), item.line)
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, **SAMPLING)
        yield " ".join(tokenizer.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).split())


def judge(item: Example, text: str) -> dict[str, bool]:
    """Return which of the measures an answer passes."""
    lower = text.lower()
    in_chinese = bool(CHINESE.search(text)) and "background" not in lower
    moves = any(way in lower for ways in MOTION_WORDS[item.language].values() for way in ways)
    return {
        "facts": all(says(lower, name, word.lower(), item.language) for name, word in item.said.items()),
        "language": in_chinese == (item.language == "zh"),
        "no_contradiction": "text" in item.said or consistent(item, lower),
        "no_looks_made_up": item.preset in PRESETS or "text" in item.said or not made_up_looks(item, lower),
        "no_motion_in_pictures": item.preset != STILL or "text" in item.said or not moves,
    }


def says(text: str, name: str, word: str, language: str) -> bool:
    """Tell whether a text states a fact: in its very word, a motion in any word for it."""
    if name == "motion":
        same = next(ways for ways in MOTION_WORDS[language].values() if word in ways)
        return any(has_word(text, way, language) for way in same)
    return has_word(text, word, language)


def has_word(text: str, word: str, language: str) -> bool:
    """Tell whether a text has a word, as a word of its own in English."""
    return bool(re.search(rf"\b{re.escape(word)}\b", text)) if language == "en" else word in text


def consistent(item: Example, text: str) -> bool:
    """Tell whether an answer names one background, one motion and no thing or colour beyond its own two."""
    said, language = item.said, item.language
    things = {w for words in SHAPE_WORDS[language].values() for w in words} | set(NOUNS[language])
    found = longest({word for word in things if has_word(text, word, language)})
    shape = said.get("shape", "").lower()
    extra = {word for word in found if word not in shape and shape not in word}
    motions = sum(any(way in text for way in ways) for ways in MOTION_WORDS[language].values())
    return len(named_colours(text, language)) <= 2 and not extra and motions <= 1


def named_colours(text: str, language: str) -> set[str]:
    """Return the colours of the data that a text names."""
    colours = {*COLOURS, *BACKGROUNDS} if language == "en" else {*COLOURS.values(), *BACKGROUNDS.values()}
    return {word for word in colours | set(TINTS[language]) if has_word(text, word, language)}


def made_up_looks(item: Example, text: str) -> set[str]:
    """Return the colours an answer has and its line has not: a picture or a video may show others."""
    return named_colours(text, item.language) - {word.lower() for word in item.said.values()}


def longest(words: set[str]) -> set[str]:
    """Return the words that are not part of another one."""
    return {word for word in words if not any(word != other and word in other for other in words)}


def score(folder: Path, count: int, seed: int = 0, show: int = 0, presets: Sequence[str] = PRESETS) -> dict[str, Any]:
    """Return the share of unseen lines that pass each measure, and all of them at once."""
    items = unseen(count, seed, presets)
    passed: Counter[str] = Counter()
    for index, (item, text) in enumerate(zip(items, answers(folder, items, seed), strict=True)):
        result = judge(item, text)
        passed.update(name for name, good in result.items() if good)
        passed["all"] += all(result.values())
        if index < show or not all(result.values()):
            print(f"{'ok ' if all(result.values()) else 'BAD'} {item.preset} | {item.line} | {text}")
    return {name: round(passed[name] / count, 3) for name in (*MEASURES, "all")} | {"count": count}
