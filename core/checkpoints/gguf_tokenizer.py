"""Tokenizers inside GGUF files: whether one is there and whole, and the tokenizer that its values make."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError, clipped
from ..files.file_state import cached_by_state
from ..files.gguf_file import gguf_values
from .layouts.base import BYTE_BPE, GGUF_DIGITS, UNIGRAM
from .pretrained import reading
from .sentencepiece_tokenizer import SPACE, SentencePieceTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

BROKEN = "the tokenizer in it is broken"
TURN_END = "turn_end_token"  # attribute of a tokenizer from a GGUF file: what ends a turn of its chats
# How texts are split into words, from the tokenizer.json of Qwen/Qwen2.5-*, meta-llama/Llama-3.* and zai-org/GLM-4-*.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Types of tokens, the same in GGUF (llama_token_type) and SentencePiece (ModelProto.SentencePiece.Type).
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


TOKENS, TYPE_LIST, SCORES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "merges"))
MODEL = "tokenizer.ggml.model"
IDS = ("bos", "eos", "eot", "unknown", "padding")  # whose tokens a file may name


def gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer inside a GGUF file that `holds_tokenizer`.

    Raises:
        PiyingError: the file is damaged, or its tokenizer is none.
    """
    values = gguf_values(path)
    check_lists(path, values, {name: len(value) for name, value in values.items() if isinstance(value, list)})
    if reason := _why_inconsistent(values):
        raise _broken(path, reason)
    with reading(path, "tokenizer"):
        if values[MODEL] == UNIGRAM:
            return SentencePieceTokenizer(_sentencepiece_model(values))
        return _fast_tokenizer(values, _byte_bpe(values) if values[MODEL] == BYTE_BPE else _piece_bpe(values))


def check_lists(path: Path, metadata: Mapping[str, Any], lengths: Mapping[str, int], rows: int = 0) -> None:
    """Accept a tokenizer by the lengths of its lists, which a header tells.

    Args:
        path: of the file, for messages.
        metadata: of a file that `holds_tokenizer`.
        lengths: of the lists among them.
        rows: of the model's embeddings; 0 where they are not known.

    Raises:
        PiyingError: lists are missing or of several lengths, it names tokens that it has not, or the embeddings have
            fewer rows than it has tokens.
    """
    count = lengths.get(TOKENS, 0)
    if not count:
        raise _broken(path, "there are no tokens in it")
    if rows and count > rows:
        raise _broken(path, f"it has {count} tokens, and the model's embeddings have {rows} rows")
    for name in (TYPE_LIST, *(() if metadata[MODEL] == BYTE_BPE else (SCORES,))):
        if lengths.get(name, 0) != count:
            raise _broken(path, f"it has {count} tokens, and {lengths.get(name, 0)} entries in {name}")
    if metadata[MODEL] == BYTE_BPE and not lengths.get(MERGES):
        raise _broken(path, "there are no merges in it")
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in IDS}
    if metadata[MODEL] != UNIGRAM and ids["eos"] is None:
        raise _broken(path, "it does not say which token ends a text")
    odd = next((name for name in IDS if f"tokenizer.ggml.{name}_token_id" in lengths), None)
    if odd is not None:
        raise _broken(path, f"its {odd} token is a list")
    for name, number in ids.items():
        # SentencePiece has -1 for none.
        if number is not None and (type(number) is not int or not -1 <= number < count):
            raise _broken(path, f"its {name} token is number {number} of {count}")


def check_words(path: Path) -> None:
    """Accept the words of a tokenizer inside a GGUF file, which takes a look at each.

    Args:
        path: of a file that `check_lists` accepts.

    Raises:
        PiyingError: they make no tokenizer.
    """
    if reason := _why_inconsistent_once(path):
        raise _broken(path, reason)


@cached_by_state
def _why_inconsistent_once(path: Path) -> str:
    return _why_inconsistent(gguf_values(path))


def _why_inconsistent(values: Mapping[str, Any]) -> str:
    tokens = values[TOKENS]
    if not isinstance(tokens[0], str):
        return "its tokens are no texts"
    if values[MODEL] != BYTE_BPE:
        return ""
    words, merges = set(tokens), values[MERGES]
    if not isinstance(merges[0], str):
        return "its merges are no texts"
    for merge in merges:
        left, _, right = merge.partition(" ")
        odd = next((word for word in (left, right, left + right) if word not in words), None)
        if odd is not None:
            return f"its merge {clipped(merge, 40)!r} needs {clipped(odd, 40)!r}, which is none of its tokens"
    return ""


def _broken(path: Path, reason: str) -> PiyingError:
    return PiyingError(f"{path}: {BROKEN} ({reason}). Fetch the file again.")


def _fast_tokenizer(values: Mapping[str, Any], words: Tokenizer) -> PreTrainedTokenizerBase:
    """Return a language model's tokenizer from the metadata of a GGUF file.

    Args:
        words: its words, and how a text is split into them.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokens, types = values[TOKENS], values[TYPE_LIST]
    end = values["tokenizer.ggml.eos_token_id"]
    begin, turn_end = values.get("tokenizer.ggml.bos_token_id"), values.get("tokenizer.ggml.eot_token_id", end)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=tokens[end],
        bos_token=None if begin is None else tokens[begin],
        pad_token=tokens[values.get("tokenizer.ggml.padding_token_id", end)],
        extra_special_tokens={TURN_END: tokens[turn_end]},
        clean_up_tokenization_spaces=False,
    )
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in added])
    tokenizer.chat_template = values.get("tokenizer.chat_template")
    return tokenizer  # type: ignore[no-any-return]


def _byte_bpe(values: Mapping[str, Any]) -> Tokenizer:
    """Return BPE over bytes: Qwen's, Llama 3's and GLM-4's, which differ in how many digits a word has."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(values[TOKENS])}
    merges: Any = [tuple(merge.split(" ", 1)) for merge in values[MERGES]]
    way = values["tokenizer.ggml.pre"]
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=way.startswith("llama")))
    if way == "qwen2":
        words.normalizer = normalizers.NFC()
    split = Regex(WORDS.replace("DIGITS", str(GGUF_DIGITS[way])))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words.decoder = decoders.ByteLevel()
    return words


def _piece_bpe(values: Mapping[str, Any]) -> Tokenizer:
    """Return SentencePiece's BPE, that of Llama 2, Mistral and ERNIE: of two merges that with the higher score."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = values[TOKENS], values[SCORES]
    types = values[TYPE_LIST]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    normal = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    pairs = [
        (-score, vocabulary[token], token[:at], token[at:])
        for token, score in normal.items()
        for at in range(1, len(token))
        if token[:at] in normal and token[at:] in normal
    ]
    unknown = tokens[values.get("tokenizer.ggml.unknown_token_id", 0)]
    words = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for *_, left, right in sorted(pairs)],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )
    prefix = [normalizers.Prepend(SPACE)] if values.get("tokenizer.ggml.add_space_prefix", True) else []
    words.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    # The space before the first word stays: an answer may go on with a sentence.
    words.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return words


def _sentencepiece_model(values: Mapping[str, Any]) -> bytes:
    """Return a SentencePiece model from the metadata of a GGUF file.

    A message of protocol buffers, by the field numbers of sentencepiece_model.proto of google/sentencepiece.
    """
    types = values[TYPE_LIST]
    pieces = zip(values[TOKENS], values[SCORES], types, strict=True)
    ids = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}
    trainer = {number: values.get(f"tokenizer.ggml.{name}_token_id", -1) for number, name in ids.items()}
    characters = bytes(value % 256 for value in values.get("tokenizer.ggml.precompiled_charsmap", ()))
    normalizer: dict[int, bytes | float | int] = {
        2: characters,
        3: bool(values.get("tokenizer.ggml.add_space_prefix", True)),
        4: bool(values.get("tokenizer.ggml.remove_extra_whitespaces", True)),
    }
    model = [_field(1, _message({1: text.encode(), 2: float(score), 3: kind})) for text, score, kind in pieces]
    unigram = 1
    model.append(_field(2, _message({3: unigram, 35: BYTE in types, **trainer})))
    return b"".join([*model, _field(3, _message(normalizer))])


def _message(fields: Mapping[int, bytes | float | int]) -> bytes:
    return b"".join(_field(number, value) for number, value in fields.items())


def _field(number: int, value: bytes | float | int) -> bytes:
    """Return a field of a message: bytes with their length, a float in 4 bytes, or an integer of variable length."""
    if isinstance(value, bytes):
        return _variable(number << 3 | 2) + _variable(len(value)) + value
    if isinstance(value, float):
        return _variable(number << 3 | 5) + struct.pack("<f", value)
    return _variable(number << 3) + _variable(int(value) & (1 << 64) - 1)


def _variable(value: int) -> bytes:
    """Return an integer with 7 bits in each byte, the lowest first; the eighth bit says that another byte follows."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
