"""Prompt expansion: a short line → a rich prompt, generated, checked and cached; the line itself as the fallback."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..catalog.selection import ModelHandle
from ..disk_cache import DiskCache, entry_name
from ..errors import PiyingError
from ..files.json_file import parse_json
from ..host.base import Host
from .answers import (
    at_whole_sentence,
    clean_answer,
    find_edit_problem,
    is_about_itself,
    is_carried_out,
    is_copied,
    is_on_topic,
    is_refusal,
    is_repetitive,
    is_stray,
    is_too_short,
    is_wrong_language,
    without_repeated_sentences,
    word_bounds,
    writing_length,
)
from .facts import (
    APPENDABLE,
    Fact,
    contradicted_facts,
    edit_result,
    find_facts,
    is_stated,
    missing_facts,
    sentences_stating,
)
from .language import Language, first_sentences, join_sentences, language_of, sentences, word_count
from .local_model import LocalModel
from .messages import (
    Answer,
    ChatModel,
    Generate,
    Picture,
    answer_language,
    compose_chat,
    first_picture,
    nearest_examples,
    plain_chat,
)
from .negative_prompt import suggest_negative
from .presets import (
    Example,
    is_for_editing,
    is_for_video,
    preset_examples,
    preset_length,
    preset_text,
)
from .request import LENGTHS, ExpandRequest, has_text, require_text
from .server import ServerHandle, ServerModel

log = logging.getLogger("piying")

MANY_EXAMPLES = 2  # a model that is given so many at first is so small that its answer begins with the line itself
MAX_ATTEMPTS = 2  # the second is told what was wrong with the first, and given all examples
SEEDS = 2**64
# Of the worked examples in Qwen2.5's tokenizer: 1.17 in English, 1.31 in Chinese, words as `word_count` counts them.
TOKENS_PER_WORD = 1.3
CACHE_VERSION = 3  # grows when the same key would give another answer
MOST_CACHED = 512  # files
LARGEST_CACHED = 64 * 1024  # bytes
PromptHandle = ModelHandle | ServerHandle


class AnswerCache:
    """Expanded prompts in one folder, so that one model is asked the same question once."""

    def __init__(self, folder: Path) -> None:
        self._cache = DiskCache(folder, ".json", max_entries=MOST_CACHED, largest=LARGEST_CACHED)

    def get(self, key: dict[str, Any]) -> str | None:
        """Return the answer to `key`, None where there is none."""
        data = self._cache.get(self._name(key))
        try:
            text = None if data is None else parse_json(data)
        except ValueError:
            return None
        return text if isinstance(text, str) and text else None

    def put(self, key: dict[str, Any], text: str) -> None:
        """Write an answer, and let the least recently used go."""
        self._cache.put(self._name(key), json.dumps(text, ensure_ascii=False).encode())

    @staticmethod
    def _name(key: dict[str, Any]) -> str:
        return entry_name({"version": CACHE_VERSION, "key": key})


class UnusableAnswerError(PiyingError):
    """A model answered, but not with a prompt that can be used; `missing` are the facts that it lost."""

    def __init__(self, message: str, missing: list[str]) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True, kw_only=True)
class ExpandJob:
    """A request with all that its expansion depends on.

    Attributes:
        request: what to write.
        system: the preset's system prompt.
        picture: shown to the model.
        facts: what the answer must keep.
        language: of the answer; None where any will do.
        source: what of the prompt the result shows; of an edit instruction, what it leads to.
        examples: the preset's worked examples in that language.
        bounds: how few and how many words the answer may have.
        length: with how few and how many words an answer is written to its end; None for no rule.
    """

    request: ExpandRequest
    system: str
    picture: Picture | None
    facts: tuple[Fact, ...]
    language: Language | None
    source: str
    examples: tuple[Example, ...]
    bounds: tuple[int, int]
    length: tuple[int, int] | None

    @classmethod
    def of(cls, request: ExpandRequest, host: Host, image: Any) -> ExpandJob:
        """Return the job of a request."""
        system, language = preset_text(request.preset, host), answer_language(request)
        requested = LENGTHS[request.length]
        length = requested or preset_length(system)
        source = edit_result(request.prompt) if is_for_editing(request.preset) else request.prompt
        return cls(
            request=request,
            system=system,
            picture=None if image is None else first_picture(image),
            facts=tuple(find_facts(source, is_for_video(request.preset), request.keep)),
            language=language,
            source=source,
            examples=preset_examples(request.preset, language, host),
            bounds=word_bounds(length, is_requested=requested is not None),
            length=writing_length(length, is_requested=requested is not None),
        )

    @property
    def translates(self) -> bool:
        """Whether the answer has another language than the prompt."""
        return self.language != language_of(self.request.prompt)

    def missing_facts(self, text: str) -> list[Fact]:
        """Return the facts that an answer does not state."""
        return missing_facts(list(self.facts), text, self.translates)

    @property
    def answer_tokens(self) -> int:
        """About how many tokens an answer of the length that is asked for has; 0 where none is asked for."""
        length = LENGTHS[self.request.length] or preset_length(self.system)
        return 0 if length is None else round(sum(length) / 2 * TOKENS_PER_WORD)

    @property
    def opening(self) -> str:
        """What the result shows in the prompt's own words, as the beginning of an answer; empty for a translation."""
        if self.translates:
            return ""
        line = " ".join(self.source.split()).rstrip(".。!！,，;；:： ")
        return line[:1].upper() + line[1:]


def expand(handle: PromptHandle, request: ExpandRequest, host: Host, image: Any = None) -> tuple[str, dict[str, Any]]:
    """Return the expanded prompt and a record of what ran, fit for JSON.

    Every failure of a model falls back to the original prompt, with a warning: a render is worth more than an
    expansion. The record says where the text comes from (`source`: model, server, cache, frozen or original) and why
    it fell back (`problem`), and has the suggested negative prompt.

    Args:
        handle: a local model, or a server.
        request: what to write.
        host: where folders, device and display come from.
        image: frames [N, H, W, 3] in 0..1, of which the model is shown the first; None for none.

    Raises:
        PiyingError: the request itself is wrong, or there is nothing to expand; in strict mode also every other
            failure.
    """
    request.validate()
    if image is None:
        require_text(request.prompt, request.frozen_prompt)
    record: dict[str, Any] = {}
    if has_text(request.frozen_prompt):
        text, record = request.frozen_prompt.strip(), {"source": "frozen"}
    else:
        job = ExpandJob.of(request, host, image)
        try:
            text = _expand_with_fallback(handle, job, host, record)
        except PiyingError as error:
            # Nothing was written that could stand in for an answer.
            if request.strict or not has_text(request.prompt):
                raise
            log.warning("%s Using the prompt as it was written.", error)
            text = request.prompt
            # What the record has by now stays: which model failed.
            record |= {"source": "original", "problem": str(error)}
            if isinstance(error, UnusableAnswerError):
                record["missing"] = error.missing
    negative = suggest_negative(f"{request.prompt} {request.style}", request.preset, language_of(text))
    return text, {**asdict(request), **record, "expanded": text, "negative_prompt": negative}


def _expand_with_fallback(handle: PromptHandle, job: ExpandJob, host: Host, record: dict[str, Any]) -> str:
    """Return a prompt from the handle's model, or from the fallback of a server that fails.

    `record` is filled with which model ran, whether it gives a prompt or not.
    """
    if not isinstance(handle, ServerHandle):
        model = LocalModel(handle, host, needs_vision=job.picture is not None)
        return _cached_or_generated(model, job, host, source="model", record=record)
    try:
        return _cached_or_generated(ServerModel(handle, host), job, host, source="server", record=record)
    except PiyingError as error:
        if handle.fallback is None:
            raise
        log.warning("%s Asking the local model instead.", error)
        # The record is about the model that writes the prompt, now the local one.
        record.clear()
        record["server_problem"] = str(error)
        return _expand_with_fallback(handle.fallback, job, host, record)


def _cached_or_generated(
    model: ChatModel, job: ExpandJob, host: Host, *, source: Literal["model", "server"], record: dict[str, Any]
) -> str:
    """Return the model's prompt from the cache; else generate it and cache it."""
    record |= model.record()
    request = job.request
    if job.picture is not None and not model.has_vision:
        problem = f"{model.name} cannot look at the image: it reads text alone. A Qwen2.5-VL or Qwen3-VL folder can."
        if request.strict or not has_text(request.prompt):
            raise PiyingError(problem)
        log.warning("%s Going by the text.", problem)
        job = replace(job, picture=None)
    if model.plain_chats:
        # It was trained on short prompts, and has no examples.
        job = replace(job, examples=(), bounds=(0, job.bounds[1]))
    record["saw_image"] = job.picture is not None
    cache = AnswerCache(host.cache_folder() / "prompts")
    # Strict mode decides what a failure does, not what the answer is.
    key = {
        "model": model.identity(),
        "system": job.system,
        "examples": [asdict(example) for example in job.examples],
        "request": asdict(replace(request, strict=False)),
        "picture": job.picture.digest if job.picture else None,
    }
    text = cache.get(key)
    # Checked again: the checks may have become stricter since.
    if text is not None and find_problem(text, job) is None:
        log.info("Expanded prompt: from the cache.")
        record |= {"source": "cache", "facts": [fact.text for fact in job.facts]}
        return text
    answer_tokens = 0 if model.plain_chats else job.answer_tokens
    text = model.run(lambda generate: _generate_usable(generate, model, job), request.max_new_tokens, answer_tokens)
    cache.put(key, text)
    record |= {**model.record(), "source": source, "facts": [fact.text for fact in job.facts]}
    return text


def _generate_usable(generate: Generate, model: ChatModel, job: ExpandJob) -> str:
    """Return the first answer that can be used.

    Raises:
        UnusableAnswerError: none can.
    """
    problem, text = "", ""
    # Greedy decoding of a chat that stays the same gives the same answer again.
    attempts = 1 if model.plain_chats and job.request.temperature == 0 else MAX_ATTEMPTS
    for number in range(attempts):
        # Another seed, or sampling would repeat the answer that could not be used.
        request = replace(job.request, seed=(job.request.seed + number) % SEEDS)
        if model.plain_chats:
            chat = plain_chat(job.system, request)
        else:
            chat = compose_chat(
                job.system,
                request,
                job.facts,
                examples=job.examples if number else nearest_examples(job.examples, job.facts, model.examples),
                has_picture=job.picture is not None,
                problem=problem,
                opening=job.opening if model.takes_opening and (number or model.examples >= MANY_EXAMPLES) else "",
                length=job.length,
                usable=partial(usable_text, job=job),
            )
        text = postprocess(generate(chat, job.picture, request), job)
        problem = find_problem(text, job) or ""
        if not problem:
            return text
        log.info("%s: %s", model.name, problem)
    missing = [fact.text for fact in job.missing_facts(text)]
    raise UnusableAnswerError(f"The prompt model {model.name} gave nothing to use: {problem}", missing)


def postprocess(answer: Answer, job: ExpandJob) -> str:
    """Return an answer cleaned, truncated at a sentence, and with missing facts appended where that is enough."""
    text = clean_answer(answer.text)
    once = usable_text(text, job)
    # Where little is left, what is wrong with the answer is what was dropped, not that it is short.
    if word_count(once) >= max(job.bounds[0], 1):
        text = once
    text = first_sentences(at_whole_sentence(text), job.bounds[1], answer.finished)
    missing = job.missing_facts(text)
    # Appended are the prompt's own words, which do not fit an answer in another language.
    if text and missing and all(fact.kind in APPENDABLE for fact in missing) and not job.translates:
        stated = sentences_stating([fact for fact in missing if fact.kind != "kept"], job.request.prompt)
        listed = ", ".join(fact.text for fact in missing if fact.kind == "kept")
        text = join_sentences([text, *filter(None, [stated, listed])])
    return text


def usable_text(text: str, job: ExpandJob) -> str:
    """Return a text without the sentences that it repeats or that are not of its prompt; no fact is lost by that.

    Those that are not speak of the prompt or to its reader, have a phrase of a worked example, quote what the prompt
    does not, have a word of another language or a number alone, or name the edit. The first one states the line, and
    is dropped for an edit alone.
    """
    kept: list[str] = []
    for sentence in sentences(without_repeated_sentences(text)):
        names_edit = is_for_editing(job.request.preset) and find_edit_problem(sentence, job.request.prompt) is not None
        lost = job.missing_facts(join_sentences(kept))
        states = any(is_stated(fact, sentence) for fact in lost)
        if not names_edit and (not kept or states or not _is_foreign(sentence, job)):
            kept.append(sentence)
    return join_sentences(kept)


def _is_foreign(sentence: str, job: ExpandJob) -> bool:
    """Return whether a sentence behind the first is not of its prompt, see `usable_text`."""
    prompt = job.request.prompt
    if is_about_itself(sentence, prompt) or is_stray(sentence, prompt):
        return True
    if is_copied(sentence, prompt, [one.answer for one in job.examples]):
        return True
    return any(fact.kind == "quoted" and not is_stated(fact, prompt) for fact in find_facts(sentence))


def find_problem(text: str, job: ExpandJob) -> str | None:
    """Return why a text cannot be used, as a sentence for the log and for the next attempt; None where it can."""
    return _form_problem(text, job) or _content_problem(text, job)


def _form_problem(text: str, job: ExpandJob) -> str | None:
    """Return why a text is no prompt in the language of its job."""
    prompt, verbatim = job.request.prompt, [f.text for f in job.facts if f.kind in ("quoted", "name", "kept")]
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: not text, "It was empty, or never came to an end."),
        (lambda: is_refusal(text, prompt), "It addressed the user instead of describing a scene."),
        (lambda: is_repetitive(text), "It repeated itself."),
        (
            lambda: is_wrong_language(text, job.language, verbatim),
            f"It was not in {'Chinese' if job.language == 'zh' else 'English'}.",
        ),
        (lambda: is_carried_out(text, prompt), "It did what the text says instead of describing it."),
    )
    return next((problem for is_wrong, problem in checks if is_wrong()), None)


def _content_problem(text: str, job: ExpandJob) -> str | None:
    """Return why a text is not the prompt of its job, expanded."""
    prompt, answers = job.request.prompt, [example.answer for example in job.examples]
    if is_for_editing(job.request.preset) and (problem := find_edit_problem(text, prompt)):
        return problem
    if is_copied(text, prompt, answers):
        return "It copied a worked example."
    if foreign := _facts_of_examples(text, job):
        return f"It took over what a worked example says: {', '.join(foreign)}."
    if is_too_short(text, prompt):
        return "It left out most of the text."
    if missing := job.missing_facts(text):
        return f"It left out: {', '.join(fact.text for fact in missing)}."
    if wrong := contradicted_facts(job.facts, prompt, text):
        return f"It contradicted: {', '.join(fact.text for fact in wrong)}."
    # Facts are found in the answer already, and a translation shares no words with its prompt.
    rest = job.source
    for fact in job.facts:
        rest = rest.replace(fact.text, " ")
    if not job.translates and not is_on_topic(text, rest):
        return "It was about something else."
    least, _ = job.bounds
    return f"It has {word_count(text)} words, fewer than {least}." if word_count(text) < least else None


def _facts_of_examples(text: str, job: ExpandJob) -> list[str]:
    """Return the names and quotations of the worked examples that an answer has and its prompt has not."""
    found = [fact for example in job.examples for fact in find_facts(example.line) if fact.kind in ("name", "quoted")]
    return [fact.text for fact in found if is_stated(fact, text) and not is_stated(fact, job.request.prompt)]
