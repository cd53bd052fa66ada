"""Languages: which one a text is in, how many words it has, and where its sentences end."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["zh", "en"]

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
WORD = re.compile("[A-Za-z\u00c0-\u024f]+(?:['’-][A-Za-z\u00c0-\u024f]+)*")
# Kana, Hangul, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Thai: letters of neither language.
OTHER = re.compile(
    "[\u3040-\u30ff\uac00-\ud7af\u0400-\u04ff\u0370-\u03ff\u0600-\u06ff\u0590-\u05ff\u0900-\u097f\u0e00-\u0e7f]"
)
HAN_PER_WORD = 1.6  # characters of a Chinese text for each word of its English translation
SENTENCE_END = re.compile(r"""[.!?…](?:["”’')\]]+)?(?=\s|$)|[。！？](?:["”’』」）]+)?""")
CLAUSE_END = re.compile("[,;:](?=\\s|$)|[，；：、]")
# A full stop behind one of these does not end a sentence.
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|No|etc|e\.g|i\.e|[A-Z])\.$")
FOREIGN_SHARE = 0.1  # words of another language that a text may have: names, brands


def language_of(text: str) -> Language | None:
    """Return `zh` or `en`, or None for neither: no letters, or mostly letters of other scripts."""
    han, words, other = _counts(text)
    if other > (han + words) / 4:  # Japanese mixes kana with Han characters
        return None
    if not han and not words:
        return None
    return "zh" if han / HAN_PER_WORD >= words / 2 else "en"


def is_in(text: str, language: Language) -> bool:
    """Return whether nearly all of a text is in a language (`zh` or `en`)."""
    han, words, other = _counts(text)
    own, foreign = (han, words) if language == "zh" else (words, han)
    return own > 0 and foreign + other <= FOREIGN_SHARE * (own + foreign + other)


def _counts(text: str) -> tuple[int, int, int]:
    return len(HAN.findall(text)), len(WORD.findall(text)), len(OTHER.findall(text))


def word_count(text: str) -> int:
    """Return the number of words of a text; of a Chinese one, about that of its English translation."""
    han, words, other = _counts(text)
    return round((han + other) / HAN_PER_WORD) + words


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, the last one complete or not."""
    found, start = [], 0
    for match in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[start : match.end()]):
            found.append(text[start : match.end()].strip())
            start = match.end()
    return [*found, text[start:].strip()] if text[start:].strip() else found


def is_finished(text: str) -> bool:
    """Return whether a text ends with the end of a sentence."""
    last = sentences(text)
    return bool(last) and any(match.end() == len(last[-1]) for match in SENTENCE_END.finditer(last[-1]))


def first_sentences(text: str, words: int, finished: bool = True) -> str:
    """Return the complete sentences at the beginning of a text that have at most `words` words together.

    A text whose first sentence alone is too long, or is incomplete, is truncated at the end of a clause.

    Args:
        text: on one line.
        words: the limit, as `word_count` counts.
        finished: the text was written to its end; a truncated one loses its last sentence.
    """
    if finished and word_count(text) <= words:
        return text
    kept: list[str] = []
    for sentence in sentences(text):
        if word_count("".join([*kept, sentence])) > words or not is_finished(sentence):
            break
        kept.append(sentence)
    if kept:
        return join_sentences(kept)
    ends = [match.start() for match in CLAUSE_END.finditer(text) if word_count(text[: match.start()]) <= words]
    return text[: ends[-1]].strip() if ends else ""


def join_sentences(parts: list[str]) -> str:
    """Return sentences in a row, with a space between them unless they are Chinese."""
    text = ""
    for part in parts:
        text += part if not text or text[-1] in "。！？」』”" else f" {part}"
    return text
