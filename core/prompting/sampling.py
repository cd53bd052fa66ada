"""Sampling: which token an answer may go on with, and where it ends.

Small models go on with the pattern of their chat: they write worked examples off, repeat themselves, and end after one
sentence. Here a run of tokens is written once, and an answer ends within the words that were asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..checkpoints.tokenizers import tokenized
from ..errors import PiyingError
from .answers import clean_answer, ends_in_loop
from .chat_template import CONTROL_MARKS
from .language import is_finished, word_count

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

    from ..host.base import Progress
    from .messages import Chat
    from .request import ExpandRequest

# Sampling recommended for Qwen3 and Qwen2.5 without thinking, in their model cards.
TOP_P, TOP_K = 0.8, 20
# Of answers after worked examples, whose pattern small models go on with for ever: that of Qwen2.5-0.5B-Instruct's own
# generation_config.json.
REPETITION_PENALTY = 1.1
COPIED_RUN = 5  # tokens in a row that no answer takes from an example; names of shots and styles have fewer
REPEATED_RUN = 3  # tokens in a row that come once, as BART's summaries have it (no_repeat_ngram_size)
SECONDS_BETWEEN_TEXTS = 0.1
# Looking for loops takes longer than a token of a small model: not after each, and not in the beginning.
TOKENS_BETWEEN_LOOP_CHECKS, MIN_LOOP_TOKENS = 16, 32

# As byte-level BPE and SentencePiece write it in their words.
LINE_BREAKS = ("\n", "\u010a", "<0x0A>")

Rule = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]  # tokens [1, n], scores [1, vocabulary] → scores


def sampling_arguments(request: ExpandRequest) -> dict[str, Any]:
    """Return the arguments that make `generate` sample as a request says."""
    arguments: dict[str, Any] = {"max_new_tokens": request.max_new_tokens}
    if request.temperature == 0:
        return arguments | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return arguments | {"do_sample": True, "temperature": request.temperature, "top_p": TOP_P, "top_k": TOP_K}


@dataclass(frozen=True)
class Processor:
    """A model's tokenizer and image processor; the latter is None for a model without vision."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: Any

    @cached_property
    def breaks(self) -> list[int]:
        """The tokens that begin a line or a turn: those with a line break in them, and control tokens."""
        words = self.tokenizer.get_vocab()
        lines = [number for word, number in words.items() if any(mark in word for mark in LINE_BREAKS)]
        added = self.tokenizer.get_added_vocab()
        return lines + [number for word, number in added.items() if any(mark in word for mark in CONTROL_MARKS)]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """An answer that is being written.

    Attributes:
        chat: what it answers.
        processor: of the model.
        ends: the tokens that end an answer.
        penalty: the model's own for repetition; 1 for none.
        start: how many tokens the chat has; those behind it are the answer's.
    """

    chat: Chat
    processor: Processor
    ends: tuple[int, ...]
    penalty: float
    start: int

    @classmethod
    def of(cls, model: PreTrainedModel, processor: Processor, chat: Chat, start: int) -> Writing:
        """Return the answer of a model, which it does not hold: the criterion's class lives until it is collected."""
        ends = model.generation_config.eos_token_id
        return cls(
            chat=chat,
            processor=processor,
            ends=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
            penalty=float(model.generation_config.repetition_penalty or 1.0),
            start=start,
        )

    def text(self, tokens: torch.Tensor) -> str:
        """Return the text of an answer's tokens, with the beginning that was given."""
        # Special tokens stay until thinking is removed: some models mark it with them.
        return self.chat.opening + str(self.processor.tokenizer.decode(tokens, skip_special_tokens=False))

    def prompt(self, tokens: torch.Tensor) -> str:
        """Return the prompt that an answer's tokens contain so far."""
        return clean_answer(self.text(tokens))

    def rules(self) -> list[Rule]:
        """Return logits processors of one answer, in the order in which they work; they remember its tokens."""
        penalty = max(self.penalty, REPETITION_PENALTY) if self.chat.examples else self.penalty
        rules = [_check_logits, self._repeated_less(penalty)]
        if self.chat.examples:
            rules.append(self._written_once())
        if self.chat.length:
            rules += [self._one_paragraph(), self._not_too_short()]
        return rules

    def _repeated_less(self, penalty: float) -> Rule:
        """Return a rule that makes tokens of the answer less likely to come again, by a factor.

        Over the whole chat, as in transformers, it would be one for the words of the line.
        """

        def rule(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            said = tokens[:, self.start :]
            if penalty == 1.0 or said.shape[1] == 0:
                return logits
            scores = logits.gather(1, said)
            lower = scores.where(scores < 0, scores / penalty).where(scores > 0, scores * penalty)
            return logits.scatter(1, said, lower)

        return rule

    def _written_once(self) -> Rule:
        """Return a rule that lets no run of tokens come that an example has, nor one of the answer again.

        What must stay as it is written may come again: a quotation is never changed.
        """
        verbatim = {token for text in self.chat.verbatim for token in self._tokens(text)}
        line = set(_runs(self._tokens(self.chat.user), COPIED_RUN))
        next_tokens: dict[tuple[int, ...], set[int]] = {}

        def forbid(runs: Iterable[tuple[int, ...]]) -> None:
            for run in runs:
                if run[-1] not in verbatim:
                    next_tokens.setdefault(run[:-1], set()).add(run[-1])

        for _, answer in self.chat.examples:
            forbid(run for run in _runs(self._tokens(answer), COPIED_RUN) if run not in line)
        forbid(_runs(self._tokens(self.chat.opening), REPEATED_RUN))

        def rule(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            said = tokens[0, self.start :][-COPIED_RUN:].tolist()
            forbid(_runs(said[-REPEATED_RUN:], REPEATED_RUN))
            ruled_out = [next_tokens.get(tuple(said[1 - size :]), set()) for size in (COPIED_RUN, REPEATED_RUN)]
            return _without(logits, sorted(set().union(*ruled_out)))

        return rule

    def _one_paragraph(self) -> Rule:
        """Return a rule that lets no line and no turn begin once the answer has words: only its end may follow."""
        others = [number for number in self.processor.breaks if number not in self.ends]
        has_words = bool(self.chat.opening)

        def rule(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            nonlocal has_words
            # Around thinking there are lines and control tokens; of what is in it, nothing is left.
            has_words = has_words or bool(self.prompt(tokens[0, self.start :]))
            return _without(logits, others) if has_words else logits

        return rule

    def _not_too_short(self) -> Rule:
        """Return a rule that lets an answer end only when it has the words that were asked for."""
        least = self.chat.length[0] if self.chat.length else 0
        ends = list(self.ends)

        def rule(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            # Words are counted only where the end could be drawn.
            if not ends or logits[0, ends].max() < logits[0].topk(min(TOP_K, logits.shape[1])).values[-1]:
                return logits
            return logits if self._words(tokens[0, self.start :]) >= least else _without(logits, ends)

        return rule

    def _words(self, tokens: torch.Tensor) -> int:
        prompt = self.prompt(tokens)
        return word_count(self.chat.usable(prompt) if self.chat.usable else prompt)

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = tokenized(self.processor.tokenizer, text, add_special_tokens=False)["input_ids"]
        return found

    def is_long_enough(self, tokens: torch.Tensor) -> bool:
        """Return whether an answer has all the words that were asked for, and is at the end of a sentence."""
        most = self.chat.length[1] if self.chat.length else 0
        if not most or len(tokens) < most:  # a word takes a token at least
            return False
        return is_finished(self.prompt(tokens)) and self._words(tokens) >= most

    def criterion(self, progress: Progress, total: int) -> StoppingCriteria:
        """Return a stopping criterion that reports each token, and stops an answer that loops or is long enough.

        Args:
            progress: called for every token; cancels the run by raising from `step`.
            total: tokens that are counted to; an answer that goes on behind them is not over.
        """
        import torch
        from transformers import StoppingCriteria

        writing = self

        class ProgressCriterion(StoppingCriteria):  # type: ignore[misc]
            shown = 0.0

            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
                answer = input_ids[0, writing.start :]
                done = len(answer)
                progress.step(min(done, max(1, total - 1)))
                now = time.monotonic()
                if now - self.shown >= SECONDS_BETWEEN_TEXTS:
                    self.shown = now
                    progress.text(writing.prompt(answer))
                due = done % TOKENS_BETWEEN_LOOP_CHECKS == 0 and done >= MIN_LOOP_TOKENS
                stop = (due and ends_in_loop(answer.tolist())) or writing.is_long_enough(answer)
                return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)

        return ProgressCriterion()


def _runs(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)]


def _without(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Return scores with some tokens ruled out."""
    if not tokens:
        return logits
    scores = logits.clone()
    scores[:, tokens] = -float("inf")
    return scores


def _check_logits(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Accept the scores of the next token; of NaN the most likely one would be any, to the end of the answer.

    Raises:
        PiyingError: one is NaN or infinite; -inf is that of a token that was ruled out.
    """
    if logits.isnan().any() or logits.isposinf().any():
        raise PiyingError(
            f"Expanding the prompt: the prompt model gave scores that are no numbers (NaN or infinity) after "
            f"{tokens.shape[1]} tokens. Likely cause: its number type is too narrow for its weights, or its files are "
            "damaged. Try precision fp32, fetch the model again, or choose another one."
        )
    return logits
