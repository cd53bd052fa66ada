"""Score of prompt expansion on real weights: facts, expansion, language, repetition and length of 60 answers.

The lines and their facts are in prompt_lines.txt, written by hand: the checks of the pack do not judge themselves.
"""

from __future__ import annotations

import ast
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

LINES = Path(__file__).with_name("prompt_lines.txt")
PUBLISHED = "wan/utils/prompt_extend.py"  # in a checkout of Wan-Video/Wan2.1
PUBLISHED_NAMES = {"zh": "LM_ZH_SYS_PROMPT", "en": "LM_EN_SYS_PROMPT"}
TOLERANCE = 0.3  # of the words that a preset asks for


class Line(NamedTuple):
    """A line to expand: its language, and a regular expression for each fact."""

    text: str
    language: str
    facts: tuple[str, ...]


class Answered(NamedTuple):
    """What became of a line: the prompt, whether it is a model's, tokens and seconds where they were measured."""

    text: str
    is_written: bool
    seconds: float


def read_lines(most: int) -> Iterator[Line]:
    """Yield the lines of the file, at most so many of each language."""
    language, count = "", 0
    for row in LINES.read_text(encoding="utf-8").splitlines():
        if row in ("# zh", "# en"):
            language, count = row[2:], 0
        elif row and not row.startswith("#") and count < most:
            text, *facts = (part.strip() for part in row.split(" | "))
            count += 1
            yield Line(text, language, tuple(facts))


def published_prompts(checkout: Path) -> dict[str, str]:
    """Return the system prompts for text that Wan2.1's authors publish, read from a checkout of their repository."""
    tree = ast.parse((checkout / PUBLISHED).read_text(encoding="utf-8"))
    values = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {language: values[name] for language, name in PUBLISHED_NAMES.items()}


def score(pack: Callable[[str], Any], line: Line, answer: Answered, preset: str) -> dict[str, float]:
    """Return the marks of one answer, each from 0 to 1.

    `facts` is the share that is stated; `expanded` at least half of the words that the preset asks for; `length`
    within 30 % of them; `own words` no phrase of a worked example that the line has not.
    """
    language, answers = pack("core.prompting.language"), pack("core.prompting.answers")
    presets = pack("core.prompting.presets")
    shortest, longest = presets.preset_length(presets.preset_text(preset))
    words, text = language.word_count(answer.text), answer.text
    stated = [re.search(fact, text, re.IGNORECASE) is not None for fact in line.facts]
    copied = [one.answer for one in presets.preset_examples(preset, line.language)]
    once = answers.without_repeated_sentences(text)
    return {
        "facts": statistics.mean(stated),
        "expanded": answer.is_written and words >= shortest / 2,
        "language": language.is_in(re.sub('“.*?”|".*?"', "", text), line.language),
        "own words": not answers.is_copied(text, line.text, copied),
        "no repeats": not answers.is_repetitive(text) and len(once) >= len(text.strip()) - 2,
        "length": shortest * (1 - TOLERANCE) <= words <= longest * (1 + TOLERANCE),
        "whole sentences": language.is_finished(text),
    }


def answers_of(
    pack: Callable[[str], Any], way: str, handle: Any, host: Any, lines: list[Line], options: Any
) -> Iterator[Answered]:
    """Yield the answers of one way: `ours`, `plain` (the preset and the line alone) or `published` (Wan2.1's)."""
    request, messages = pack("core.prompting.request"), pack("core.prompting.messages")
    published = published_prompts(options.published) if way == "published" else {}
    system = pack("core.prompting.presets").preset_text(options.preset)
    for seed, line in enumerate(lines):
        asked = request.ExpandRequest(line.text, options.preset, seed=seed)
        begun = time.process_time()
        if way == "ours":
            text, record = pack("core.prompting.expand").expand(handle, asked, host)
            yield Answered(text, record["source"] == "model", time.process_time() - begun)
            continue
        chat = messages.Chat(published.get(line.language, system), line.text)
        model = pack("core.prompting.local_model").LocalModel(handle, host)
        text = model.run(lambda generate, chat=chat, asked=asked: generate(chat, None, asked).text, 256)
        yield Answered(text.strip(), True, time.process_time() - begun)


def measure(pack: Callable[[str], Any], handle: Any, host: Any, options: Any) -> dict[str, Any]:
    """Return the mean marks of each way, and its answers; they are printed as they come."""
    lines, found = list(read_lines(options.lines)), {}
    for way in options.ways:
        marks, rows = [], []
        for line, answer in zip(lines, answers_of(pack, way, handle, host, lines, options), strict=True):
            marks.append(score(pack, line, answer, options.preset))
            rows.append({"line": line.text, "answer": answer.text, "seconds": answer.seconds, **marks[-1]})
            print(f"[{way}] {line.text} → {answer.text}", flush=True)
        means = {name: statistics.mean(mark[name] for mark in marks) for name in marks[0]}
        seconds = statistics.median(row["seconds"] for row in rows)
        found[way] = {"marks": means, "median_seconds": seconds, "answers": rows}
    return found


def table(found: dict[str, Any]) -> str:
    """Return the marks side by side."""
    names = list(next(iter(found.values()))["marks"])
    rows = [f"{'':12}" + "".join(f"{name:>17}" for name in [*names, "seconds (CPU)"])]
    for way, one in found.items():
        marks = "".join(f"{one['marks'][name]:17.2f}" for name in names)
        rows.append(f"{way:12}{marks}{one['median_seconds']:17.1f}")
    return "\n".join(rows)
