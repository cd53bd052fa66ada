"""Prompt tokens: weights as ComfyUI reads them, the room of a text encoder, and what is to be said of both."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import PiyingError, clipped

if TYPE_CHECKING:
    import torch

    from ..executor.tensor_cache import Encoded

EMPHASIS = 1.1  # of a pair of brackets without a number
MOST_WEIGHT = 10.0
MAX_PROMPT = 100_000  # characters; encoders read some 2,000, and megabytes would be split into tokens for minutes
SHOWN = 60  # characters of a prompt in a message
# Compiled at the first prompt, not at the import of the pack.
_WEIGHTED = r"\([^()]+:\s*[\d.]+\s*\)"
# Of other programs: no encoder here knows them.
_FOREIGN = r"<(?:lora|lyco|hypernet):[^>]*>|\bembedding:\S+|\[[^\[\]:]*:[^\[\]:]*:[\d.]+\]"


class Segment(NamedTuple):
    """A piece of a prompt and its weight."""

    text: str
    weight: float


def weighted_segments(prompt: str) -> list[Segment]:
    """Return the pieces of a prompt with ComfyUI's weights: (red:1.2), (red) for 1.1, and \\( \\) for brackets.

    Brackets nest: a number replaces the weight around it, and a pair without one multiplies it by 1.1. A bracket
    without its other one is text.

    Raises:
        PiyingError: a weight is beyond ±10.
    """
    closing = _matching_brackets(prompt)
    weights, pieces, ends = [1.0], list[Segment](), list[tuple[int, int]]()
    place = 0
    while place < len(prompt):
        weight = weights[-1]
        if ends and place == ends[-1][0]:
            place = ends.pop()[1]
            weights.pop()
            continue
        if place in closing:
            end = closing[place]
            # A colon and a number before the closing bracket; only what is long enough for one is looked at.
            _, colon, number = prompt[max(place + 2, end - 16) : end].rpartition(":")
            value = _number(number) if colon else None
            weight = weight * EMPHASIS if value is None else value
            if not abs(weight) <= MOST_WEIGHT:
                inside = clipped(prompt[place + 1 : end], SHOWN)
                raise PiyingError(
                    f"The prompt's weight {weight:g} of {inside!r} is out of range: -10 to 10. Most are 0.5 to 1.5. "
                    "For brackets that are text write \\( and \\)."
                )
            weights.append(weight)
            ends.append((end if value is None else end - len(number) - 1, end + 1))
        else:
            place += prompt.startswith(("\\(", "\\)"), place)
            pieces.append(Segment(prompt[place], weight))
        place += 1
    return [
        Segment("".join(piece.text for piece in alike), weight)
        for weight, alike in groupby(pieces, lambda piece: piece.weight)
    ]


def require_length(prompt: str) -> None:
    """Accept a prompt of a length that people write. Raises PiyingError for another."""
    if len(prompt) > MAX_PROMPT:
        raise PiyingError(f"The prompt has {len(prompt)} characters; at most {MAX_PROMPT} are read. Shorten it.")


@dataclass(frozen=True)
class Reading:
    """The tokens of a prompt, cut to the encoder's room, with the weight of each, and what to say of them.

    Attributes:
        notes: what was done as the prompt asks.
        warnings: what was left out of it, or is not understood.
    """

    tokens: list[int]
    weights: list[float]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class PromptTokenizer:
    """A tokenizer in front of the one of a text encoder: it reads weights, and knows what was cut off.

    Pipelines of diffusers call it as they would call that one. Without weights it returns what that one returns.
    """

    def __init__(self, tokenizer: Any, room: int, encoder: str, weighted: bool = True) -> None:
        """Stand in front of `tokenizer`.

        Args:
            tokenizer: one of transformers, or what behaves like it.
            room: tokens that the encoder reads, its end mark included.
            encoder: its name, for messages.
            weighted: whether its embeddings can be weighted one by one.
        """
        self._tokenizer, self._room, self._encoder = tokenizer, room, encoder
        # Only these say which characters a token is of.
        self._has_places = getattr(tokenizer, "is_fast", True)
        self._weighted = weighted and self._has_places
        self.reading = Reading([], [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str | list[str], padding: str | bool = False, **options: Any) -> Any:
        """Return input_ids and attention_mask of one prompt, and keep how it was read as `reading`.

        Raises:
            PiyingError: the prompt is absurdly long, or a weight in it is out of range.
        """
        import torch
        from transformers import BatchEncoding

        from ..checkpoints.tokenizers import tokenized

        prompt = text if isinstance(text, str) else text[0]
        require_length(prompt)
        segments = weighted_segments(prompt) if self._weighted else [Segment(prompt, 1.0)]
        self.reading = self._read(prompt, segments)
        if all(weight == 1 for _, weight in segments):
            plain = "".join(piece.text for piece in segments)
            whole = {"padding": padding, **options, "truncation": True, "max_length": self._room}
            return tokenized(self._tokenizer, [plain], **whole)
        tokens = self.reading.tokens
        absent = self._room - len(tokens) if padding == "max_length" else 0
        ids = torch.tensor([tokens + [self._tokenizer.pad_token_id] * absent])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.tensor([[1] * len(tokens) + [0] * absent])})

    def _read(self, prompt: str, segments: list[Segment]) -> Reading:
        # Split as a whole, so that a weight changes no token: a piece of its own would begin with a space.
        plain = "".join(text for text, _ in segments)
        tokens, places = self._tokens(plain)
        marks, _ = self._tokens("")
        # BERT has a mark in front and one at the end, T5 has one at the end, a language model none.
        front, end = len(marks) // 2, len(marks) - len(marks) // 2
        of_character = [weight for text, weight in segments for _ in text]
        weights = []
        for start, stop in places:
            # A piece may take in the space before it.
            while start < stop - 1 and plain[start].isspace():
                start += 1
            weights.append(of_character[start] if start < stop else 1.0)
        count, kept = len(tokens), max(self._room - end, front)
        notes, warnings = list[str](), list[str]()
        named = [(text, weight) for text, weight in segments if weight != 1]
        if named:
            listed = ", ".join(f"{clipped(text.strip(), SHOWN)!r} {weight:.3g}" for text, weight in named[:5])
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            notes.append(f"{self._encoder}: weights of the prompt: {listed}{more}.")
        if not self._weighted and (found := re.search(_WEIGHTED, prompt)):
            warnings.append(f"{self._encoder} knows no weights: {found[0]!r} is read as it is written.")
        if foreign := re.search(_FOREIGN, prompt):
            hint = " Use Add LoRA." if foreign[0].startswith("<lora") else ""
            warnings.append(f"{self._encoder}: {foreign[0]!r} in the prompt is read as text.{hint}")
        if count > self._room:
            lost = self._tokenizer.decode(tokens[kept : count - end], skip_special_tokens=True).strip()
            warnings.append(
                f"{self._encoder} reads {self._room} tokens. This prompt has {count}: its end, from "
                f"{clipped(lost, SHOWN)!r} on, is left out. Shorten it."
            )
            tokens, weights = tokens[:kept] + tokens[count - end :], weights[:kept] + [1.0] * end
        return Reading(tokens, weights, tuple(notes), tuple(warnings))

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return all tokens of a text, however many, and the characters that each is of: none for marks."""
        from ..checkpoints.tokenizers import tokenized

        whole = {"padding": False, "truncation": False, "verbose": False}
        found = tokenized(self._tokenizer, [text], return_offsets_mapping=self._has_places, **whole)
        tokens = list(map(int, found["input_ids"][0]))
        return tokens, found["offset_mapping"][0] if self._has_places else [(0, 0)] * len(tokens)


def encode_weighted(prompt: str, tokenizer: PromptTokenizer, encode: Callable[[str], Encoded]) -> Encoded:
    """Return what the encoder makes of a prompt, with its weights, and what is to be said of it.

    As in ComfyUI, a token's embedding moves along the line from that of an empty prompt at its place:
    (embedding - empty) · weight + empty.

    Args:
        tokenizer: that which `encode` calls.
        encode: returns `states` [1, tokens, width], and whatever else.

    Returns:
        What `encode` does, with `notes` and `warnings`, texts in UTF-8 as uint8, where there are any.
    """
    import torch

    found = encode(prompt)
    reading = tokenizer.reading
    if any(weight != 1 for weight in reading.weights):
        states, empty = found["states"].float(), encode("")["states"].float()
        weights = torch.ones(states.shape[1])
        weights[: len(reading.weights)] = torch.tensor(reading.weights)
        found["states"] = ((states - empty) * weights[None, :, None] + empty).to(found["states"].dtype)
    said = {"notes": reading.notes, "warnings": reading.warnings}
    return found | {name: _as_tensor(lines) for name, lines in said.items() if lines}


def _matching_brackets(prompt: str) -> dict[int, int]:
    """Return the place of the closing bracket for that of each opening one that has one."""
    found, opened = dict[int, int](), list[int]()
    for match in re.finditer(r"\\[()]|[()]", prompt):
        if match[0] == "(":
            opened.append(match.start())
        elif match[0] == ")" and opened:
            found[opened.pop()] = match.start()
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _as_tensor(lines: tuple[str, ...]) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray("\n".join(lines).encode(errors="replace")), dtype=torch.uint8)
