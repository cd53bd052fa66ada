"""The words of a prompt that must stay: found in it, and looked for in the answer.

Found are quoted text, numbers, counts, colours, names, camera work and directions, and what the user
lists. All but quotes and names are known in both languages, so that a translation is checked as well. Names
are found by their capitals, in Chinese behind 叫 and 名为 alone: a Chinese name has no mark of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from .language import HAN, language_of
from .vocabulary import (
    CAMERA,
    CHINESE_NUMBERS,
    COLOURED_THINGS,
    COLOURS,
    DIRECTION_SAID,
    DIRECTIONS,
    MEASURES,
    MISLEADING,
    NUMBER_WORDS,
    SHADES,
    Term,
    number_forms,
)

QUOTED = re.compile(
    "“([^”]{1,200})”|「([^」]{1,200})」|『([^』]{1,200})』|《([^》]{1,200})》|‘([^’]{1,200})’"
    "|\"([^\"\n]{1,200})\"|(?<!\\w)'([^'\n]{1,200})'(?!\\w)"
)
NUMBER = re.compile(r"(?<![\w.])\d[\d.,:/]*(?:[A-Za-z]{1,4}\b|%)?")
ENGLISH_COUNT = re.compile(rf"\b({'|'.join(NUMBER_WORDS[2:])}|dozen|pair|couple)\b", re.IGNORECASE)
CHINESE_COUNT = re.compile(f"([两二三四五六七八九十]+)[{MEASURES}]|一(对)")
CAPITALISED = re.compile(r"[A-Z][\w'’-]*(?:\s+(?:of|the|de|von|van)(?=\s+[A-Z])|\s+[A-Z][\w'’-]*)*")
CHINESE_NAME = re.compile("(?:名叫|叫做|叫作|名为|(?<![喊呼吼鸣尖狗鸟])叫)([\u4e00-\u9fff]{2,3})(?=[的，。,. ]|$)")
LATIN_IN_CHINESE = re.compile(r"[A-Za-z][\w'’-]*(?:\s[A-Z][\w'’-]*)*")
NOT_NAMES = {"I", "I'm", "I’m", "A", "OK", "CG", "AI", "HDR", "UHD", "HD"}
SENTENCE_START = re.compile(r"(?:^|[.!?。！？:：\n\"“「(]\s*)$")
# Missing words of these kinds may be added behind an answer; one of another kind was said otherwise there.
ADDABLE = frozenset({"quoted", "number", "name", "camera", "kept"})


@dataclass(frozen=True)
class Fact:
    """Something a prompt says.

    Attributes:
        kind: quoted, kept, number, count, colour, name, camera or direction.
        said: its words in the prompt.
        value: what they mean: a colour, a number, a way of filming; else the words again.
    """

    kind: str
    said: str
    value: str


def find_facts(prompt: str, moving: bool = True, keep: str = "") -> list[Fact]:
    """Return what must be in an answer, no meaning twice.

    Args:
        prompt: the user's line.
        moving: the answer is for a video; a picture has no directions and no moving camera.
        keep: further words, parted by commas or lines.
    """
    found = [Fact("kept", word.strip(), word.strip()) for word in re.split("[,，;；\n]", keep) if word.strip()]
    found += [Fact("quoted", text, text) for text in quotes(prompt)]
    rest = QUOTED.sub(" ", prompt)
    found += [*_numbers(rest), *_colours(rest), *_camera(rest, moving), *_names(rest)]
    if moving:
        found += _directions(rest)
    return list({(fact.kind, fact.value): fact for fact in reversed(found)}.values())[::-1]


def missing_facts(facts: list[Fact], answer: str, translated: bool) -> list[Fact]:
    """Return the facts an answer does not state; `translated` leaves out names, which have other letters then."""
    return [fact for fact in facts if not (translated and fact.kind == "name") and not states(answer, fact)]


def states(answer: str, fact: Fact) -> bool:
    """Return whether an answer states a fact, in either language."""
    if fact.kind in ("quoted", "kept", "name"):
        same_case = fact.kind == "quoted"
        return _plain(fact.value, same_case) in _plain(answer, same_case)
    if fact.kind == "number":
        return re.search(rf"(?<![\d.]){re.escape(fact.value)}(?!\d)", answer, re.IGNORECASE) is not None
    if fact.kind == "camera":
        return any(_either(term.english, term.chinese).search(answer) for term in _terms(fact))
    return _pattern(fact.kind, fact.value).search(answer) is not None


def _terms(fact: Fact) -> list[Term]:
    """Return what a way of filming may be called: 推近 is a zoom as well as a push in."""
    in_chinese = HAN.search(fact.said) is not None
    return [t for t in CAMERA if t.name == fact.value or (in_chinese and re.search(t.chinese, fact.said))]


def quotes(text: str) -> list[str]:
    """Return what is quoted in a text, without the marks."""
    return [next(filter(None, match.groups())).strip() for match in QUOTED.finditer(text)]


def clauses_with(facts: list[Fact], prompt: str) -> str:
    """Return the sentences of the prompt that state given facts."""
    parts = re.findall(r"[^.!?。！？\n]+[.!?。！？]?", prompt)
    return " ".join(part.strip() for part in parts if any(fact.said in part for fact in facts))


def _plain(text: str, same_case: bool) -> str:
    text = " ".join(text.split())
    return text if same_case else text.lower()


@cache
def _pattern(kind: str, value: str) -> re.Pattern[str]:
    if kind == "colour":
        english, chinese = COLOURS[value]
    elif kind == "count":
        english, chinese = number_forms(int(value))
    else:
        english, chinese = DIRECTION_SAID[value].english, DIRECTION_SAID[value].chinese
    return _either(english, chinese)


@cache
def _either(english: str, chinese: str) -> re.Pattern[str]:
    """Return a pattern for words of English that stand alone, or characters of Chinese anywhere."""
    alone = f"(?<![A-Za-z0-9])(?:{english})(?![A-Za-z0-9])"
    return re.compile(f"{alone}|{chinese}" if chinese else alone, re.IGNORECASE)


def _numbers(text: str) -> Iterator[Fact]:
    for match in NUMBER.finditer(text):
        said = match.group().rstrip(".,:/")
        counts = said.isdigit() and int(said) <= 20
        yield Fact("count" if counts else "number", said, str(int(said)) if counts else said)
    for match in ENGLISH_COUNT.finditer(text):
        word = match.group(1).lower()
        value = {"dozen": 12, "pair": 2, "couple": 2}.get(word) or NUMBER_WORDS.index(word)
        yield Fact("count", match.group(), str(value))
    for match in CHINESE_COUNT.finditer(text):
        number = 2 if match.group(2) else CHINESE_NUMBERS.get(match.group(1))
        if number is not None and number > 1:
            yield Fact("count", match.group(), str(number))


def _colours(text: str) -> Iterator[Fact]:
    text = MISLEADING.sub("  ", text)
    for name, (english, chinese) in COLOURS.items():
        match = re.search(rf"\b(?:{english})\b", text, re.IGNORECASE) or _chinese_colour(chinese).search(text)
        if match:
            yield Fact("colour", match.group(), name)


@cache
def _chinese_colour(characters: str) -> re.Pattern[str]:
    plain = f"(?:{characters})(?=[色的{COLOURED_THINGS}])"
    return re.compile(f"{plain}|[{SHADES}](?:{characters})(?![\u5929])|(?:{characters})\\Z")


def _camera(text: str, moving: bool) -> Iterator[Fact]:
    for term in CAMERA:
        match = _either(term.english, term.chinese).search(text)
        if match and (moving or not term.moves):
            yield Fact("camera", match.group(), term.name)
            # 推近 is what both a zoom and a push in are called: it asks for one of them.
            text = text.replace(match.group(), " " * len(match.group()))


def _directions(text: str) -> Iterator[Fact]:
    for name, term in DIRECTIONS.items():
        match = _either(term.english, term.chinese).search(text)
        if match:
            yield Fact("direction", match.group(), name)


def _names(text: str) -> Iterator[Fact]:
    if language_of(text) == "zh":
        found = [match.group() for match in LATIN_IN_CHINESE.finditer(text)]
        found += [match.group(1) for match in CHINESE_NAME.finditer(text)]
    else:
        found = _capitalised(text)
    yield from (Fact("name", name, name) for name in found if name not in NOT_NAMES and len(name) > 1)


def _capitalised(text: str) -> list[str]:
    """Return runs of words with capitals that are not there for the beginning of a sentence."""
    words = [word for word in text.split() if word[0].isalpha() and not HAN.match(word)]
    if sum(word[0].isupper() for word in words) > len(words) / 2 and len(words) > 3:
        return []  # a title, or shouting: capitals say nothing
    found = []
    for match in CAPITALISED.finditer(text):
        name = match.group()
        if SENTENCE_START.search(text[: match.start()]):
            first, _, name = name.partition(" ")
            # "Tokyo Tower at night" begins with a name, "A Chinese dragon" with an article.
            name = f"{first} {name}" if name[:1].isupper() and first not in ARTICLES else name
        if name[:1].isupper():
            found.append(name)
    return found


ARTICLES = {"A", "An", "The", "In", "On", "At", "One", "Two", "Three", "Some", "Many", "My", "Our", "This", "That"}
