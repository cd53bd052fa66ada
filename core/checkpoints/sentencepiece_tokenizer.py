"""SentencePiece tokenizers, as T5, mT5 and UMT5 have them, without transformers' classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..main_memory import is_out_of_memory

if TYPE_CHECKING:
    import torch

SPACE = "▁"  # SentencePiece's mark of a space before a word
PAD, END = 0, 1  # of T5, mT5 and UMT5


class SentencePieceTokenizer:
    """What the pipelines of diffusers ask of a T5 tokenizer, on SentencePiece alone."""

    pad_token_id, eos_token_id = PAD, END

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        self.model_max_length = 512

    def __call__(
        self,
        text: str | Sequence[str],
        padding: str | bool = "max_length",
        max_length: int | None = None,
        truncation: bool = True,
        **options: Any,
    ) -> Any:
        """Return input_ids and attention_mask, int64 [texts, max_length]: pieces, an end mark, then padding.

        With `return_offsets_mapping` also offset_mapping: for each piece the place of its first character and that
        behind its last, (0, 0) for the end mark. Other options of transformers' tokenizers are accepted; what they
        could ask for is done anyway.
        """
        import torch
        from transformers import BatchEncoding

        most = max_length or self.model_max_length
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._processor.encode(one) for one in texts]
        rows = [[*(row[: most - 1] if truncation else row), END] for row in rows]
        width = most if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        result: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if options.get("return_offsets_mapping"):
            places = [_places(one, self._processor.encode(one, out_type=str)) for one in texts]
            result["offset_mapping"] = [[*row[: most - 1 if truncation else None], (0, 0)] for row in places]
        return BatchEncoding(result)

    def batch_decode(self, rows: torch.Tensor | Sequence[Sequence[int]], **options: Any) -> list[str]:
        """Return the texts of rows of tokens."""
        return [self.decode(row, **options) for row in rows]

    def decode(self, tokens: torch.Tensor | Sequence[int], **options: Any) -> str:
        """Return the text of tokens, without end marks and padding."""
        del options
        return str(self._processor.decode([int(token) for token in tokens if int(token) not in (PAD, END)]))


def _places(text: str, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Return where each piece begins and ends in the text; the library's own way of asking changes by version."""
    # SentencePiece normalises before it splits: "…" is three full stops, and spaces are a mark of their own.
    seen = [
        (normal, place)
        for place, character in enumerate(text)
        for normal in unicodedata.normalize("NFKC", character)
        if not normal.isspace()
    ]
    found, cursor = list[tuple[int, int]](), 0
    for piece in pieces:
        bare = piece.replace(SPACE, "")
        if byte := re.fullmatch("<0x([0-9A-F]{2})>", bare):
            # Of a character in UTF-8 the first byte takes the place, and the others share it.
            begins = int(byte[1], 16) & 0xC0 != 0x80
            cursor -= not begins and cursor > 0
            count = 1
        else:
            count = len(bare)
            # Past characters that the normalisation leaves out.
            skips = range(cursor, min(cursor + 4, len(seen)))
            cursor = next((at for at in skips if [c for c, _ in seen[at : at + count]] == list(bare)), cursor)
        here = seen[cursor : cursor + count] or seen[cursor : cursor + 1] or seen[-1:]
        found.append((here[0][1], here[-1][1] + 1) if here else (0, 0))
        cursor += count
    return found


def of_pieces(model: bytes, path: Path) -> SentencePieceTokenizer:
    """Return the tokenizer of a SentencePiece model.

    Args:
        path: where it is from, for messages.

    Raises:
        PiyingError: it is none.
    """
    try:
        return SentencePieceTokenizer(model)
    except (RuntimeError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise PiyingError(f"{path}: the tokenizer in it cannot be read. Fetch the file again.") from error
