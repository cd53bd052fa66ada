"""A short line → a prompt: asked for, checked, remembered, and never in the way of a render."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..catalog.selection import ModelHandle
from ..errors import PiyingError
from ..host.base import Host
from .answer_cache import AnswerCache
from .checks import is_about, most_words, off_language, refuses, repeats, too_short
from .clean import clean_answer
from .edits import is_edit, names_what_is_removed, result_of, speaks_of_edit
from .facts import ADDABLE, Fact, clauses_with, find_facts, missing_facts
from .language import first_sentences, joined, language_of
from .local_model import LocalModel
from .messages import answer_language, compose, plain
from .negative import suggest_negative
from .picture import Picture, first_picture
from .presets import preset_text, shows_motion
from .request import LANGUAGES, LENGTHS, ExpandRequest
from .server import ServerHandle, ServerModel
from .writer import Answer, Write, Writer

log = logging.getLogger("piying")

TRIES = 2
SEEDS = 2**64
PromptHandle = ModelHandle | ServerHandle


class Unusable(PiyingError):
    """A model answered, and not with a prompt."""


@dataclass(frozen=True)
class Brief:
    """A request as it is worked on: with its system prompt, its picture, and what its answer must have."""

    request: ExpandRequest
    system: str
    picture: Picture | None
    facts: tuple[Fact, ...]
    language: str | None


def expand(handle: PromptHandle, request: ExpandRequest, host: Host, image: Any = None) -> tuple[str, dict[str, Any]]:
    """Return the expanded prompt and a record of what ran, fit for JSON.

    Whatever goes wrong gives the original prompt back, with a warning: a render is worth more than a
    failed expansion. The record says where the text comes from (`source`: model, server, cache, frozen or
    original), why the original was used (`problem`), and holds the suggested negative prompt.

    Args:
        handle: a local model, or a server.
        request: what to write.
        host: where folders, device and display come from.
        image: frames [N, H, W, 3] in 0..1 to look at, of which the first is used; None for none.

    Raises:
        PiyingError: the request itself is wrong; in strict mode also whatever else goes wrong.
    """
    _check(request)
    if request.frozen_prompt.strip():
        return _result(request, request.frozen_prompt.strip(), {"source": "frozen"})
    brief = _brief(request, host, image)
    record: dict[str, Any] = {}
    try:
        text = _expanded(handle, brief, host, record)
    except PiyingError as error:
        if request.strict:
            raise
        log.warning("%s Using the prompt as it was written.", error)
        text = request.prompt
        record |= {"source": "original", "problem": str(error)}
    return _result(request, text, record)


def _check(request: ExpandRequest) -> None:
    for name, value, choices in (
        ("language", request.language, LANGUAGES),
        ("length", request.length, tuple(LENGTHS)),
    ):
        if value not in choices:
            raise PiyingError(f"{name} is {value!r}. Choose one of: {', '.join(choices)}.")


def _result(request: ExpandRequest, text: str, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    negative = suggest_negative(f"{request.prompt} {request.style}", request.preset, language_of(text))
    return text, {**asdict(request), **record, "expanded": text, "negative_prompt": negative}


def _brief(request: ExpandRequest, host: Host, image: Any) -> Brief:
    return Brief(
        request,
        preset_text(request.preset, host),
        None if image is None else first_picture(image),
        tuple(find_facts(_said(request), shows_motion(request.preset), request.keep)),
        answer_language(request),
    )


def _said(request: ExpandRequest) -> str:
    """Return what of a prompt the result shows; of an order to edit, what it leads to."""
    return result_of(request.prompt) if is_edit(request.preset) else request.prompt


def _expanded(handle: PromptHandle, brief: Brief, host: Host, record: dict[str, Any]) -> str:
    """Return a prompt from the handle's model, or from the one that stands in for a server that fails.

    `record` is filled with who was asked, whether an answer comes or not.
    """
    if not brief.request.prompt.strip() and brief.picture is None:
        raise PiyingError("prompt is empty. Write what to show, or connect an image to look at.")
    if not isinstance(handle, ServerHandle):
        return _remembered(LocalModel(handle, host, brief.picture is not None), "model", brief, host, record)
    try:
        return _remembered(ServerModel(handle, host), "server", brief, host, record)
    except PiyingError as error:
        if handle.fallback is None:
            raise
        log.warning("%s Asking the local model instead.", error)
        record.clear()
        record["server_problem"] = str(error)
        return _expanded(handle.fallback, brief, host, record)


def _remembered(writer: Writer, source: str, brief: Brief, host: Host, record: dict[str, Any]) -> str:
    """Return what the writer answered to this before, or answers now."""
    record |= writer.record()
    if brief.picture is not None and not writer.sees:
        _cannot_see(writer, brief.request)
        brief = replace(brief, picture=None)
    record["saw_image"] = brief.picture is not None
    answers = AnswerCache(host.cache_folder() / "prompts")
    key = {
        "writer": writer.identity(),
        "system": brief.system,
        "request": asdict(replace(brief.request, strict=False)),
        "picture": brief.picture.digest if brief.picture else None,
    }
    text = answers.get(key)
    if text is not None and _problem(text, brief) is None:
        log.info("Expanded prompt: as this model wrote it before.")
        record["source"] = "cache"
        return text
    text = _write(writer, brief)
    answers.put(key, text)
    record |= {**writer.record(), "source": source}
    return text


def _cannot_see(writer: Writer, request: ExpandRequest) -> None:
    said = f"{writer.name} cannot look at the image: it reads text alone. A Qwen2.5-VL or Qwen3-VL folder can."
    if request.strict or not request.prompt.strip():
        raise PiyingError(said)
    log.warning("%s Going by the text.", said)


def _write(writer: Writer, brief: Brief) -> str:
    """Return the first answer that can be used.

    Raises:
        Unusable: none of them can.
    """
    return writer.hold(lambda write: _ask(write, writer, brief), brief.request.max_new_tokens)


def _ask(write: Write, writer: Writer, brief: Brief) -> str:
    problem = ""
    for number in range(_tries(writer, brief)):
        request = replace(brief.request, seed=(brief.request.seed + number) % SEEDS)
        chat = (
            plain(brief.system, request)
            if writer.plain
            else compose(brief.system, request, brief.facts, brief.picture is not None, problem)
        )
        text = usable_text(write(chat, brief.picture, request), brief)
        found = _problem(text, brief)
        if found is None:
            return text
        problem = found
        log.info("%s: %s", writer.name, problem)
    raise Unusable(f"The prompt model {writer.name} gave nothing to use: {problem}")


def _tries(writer: Writer, brief: Brief) -> int:
    """Return how often to ask: the likeliest words of a chat that stays the same are the same again."""
    return 1 if writer.plain and brief.request.temperature == 0 else TRIES


def usable_text(answer: Answer, brief: Brief) -> str:
    """Return an answer cleaned, cut to its length at a sentence, and with words added that it only forgot."""
    limit = most_words(LENGTHS[brief.request.length])
    text = first_sentences(clean_answer(answer.text), limit, answer.finished)
    forgotten = _missing(text, brief)
    if text and forgotten and all(fact.kind in ADDABLE for fact in forgotten) and not _translated(brief):
        listed = [fact.said for fact in forgotten if fact.kind == "kept"]
        clauses = clauses_with([fact for fact in forgotten if fact.kind != "kept"], brief.request.prompt)
        text = joined([text, *filter(None, [clauses, ", ".join(listed)])])
    return text


def _problem(text: str, brief: Brief) -> str | None:
    """Return what is wrong with a text, None where nothing is."""
    prompt = brief.request.prompt
    if not text:
        return "It was empty, or never came to an end."
    if refuses(text, prompt):
        return "It talked to the user, and described nothing."
    if repeats(text):
        return "It repeated itself."
    kept = [fact.said for fact in brief.facts if fact.kind in ("quoted", "name", "kept")]
    if off_language(text, brief.language, kept):
        return f"It was not in {'Chinese' if brief.language == 'zh' else 'English'}."
    if is_edit(brief.request.preset) and speaks_of_edit(text):
        return "It told of the change, and not of what is seen."
    if is_edit(brief.request.preset) and names_what_is_removed(text, prompt):
        return "It named what is to go."
    if too_short(text, prompt):
        return "It left out most of the text."
    if missing := _missing(text, brief):
        return f"It left out: {', '.join(fact.said for fact in missing)}."
    if not _translated(brief) and not is_about(text, _unchecked(brief)):
        return "It was about something else."
    return None


def _missing(text: str, brief: Brief) -> list[Fact]:
    return missing_facts(list(brief.facts), text, _translated(brief))


def _unchecked(brief: Brief) -> str:
    """Return the words of the prompt that are no facts."""
    text = _said(brief.request)
    for fact in brief.facts:
        text = text.replace(fact.said, " ")
    return text


def _translated(brief: Brief) -> bool:
    return brief.language != language_of(brief.request.prompt)
