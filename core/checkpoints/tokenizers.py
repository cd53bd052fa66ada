"""Tokenizers: those inside files of weights, a folder's own, and those of other folders."""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError, clipped
from ..files.file_state import cached_by_state
from ..files.folder import CONFIG
from ..files.gguf_file import gguf_values
from ..files.json_file import read_json, read_json_or_empty
from ..files.open import open_tensors, read_header
from ..files.scan import find_folders, name_left_out
from ..host.base import Host
from ..main_memory import is_out_of_memory
from .layouts.base import BYTE_BPE, GGUF_DIGITS, TOKENIZER_TENSOR, UNIGRAM, holds_tokenizer
from .pretrained import reading

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from ..catalog.installed_model import InstalledModel


PIECES = "spiece.model"  # what transformers calls a SentencePiece model in a folder
SPACE = "▁"  # SentencePiece's mark of a space before a word
PAD, END = 0, 1  # of T5, mT5 and UMT5


def tokenized(tokenizer: Any, texts: str | list[str], **options: Any) -> Any:
    """Return what a tokenizer of a models folder makes of texts; for the options see its call.

    Raises:
        PiyingError: it is broken.
    """
    try:
        return tokenizer(texts, **options)
    except BaseException as error:
        # A panic of the tokenizers package, as over a pattern without end, is no Exception, and cannot be imported.
        if type(error).__module__ != "pyo3_runtime":
            raise
        reason = clipped(" ".join(str(error).split()), 200)
        raise PiyingError(f"The model's tokenizer is broken ({reason}). Fetch it again.") from error


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


def tokenizer_of(found: InstalledModel, part: str = "tokenizer") -> Any:
    """Return a tokenizer of an installed model: that of a folder, or the one inside a file of weights.

    Args:
        part: `tokenizer`, or `tokenizer_2` of the second text encoder.

    Raises:
        PiyingError: it is not there, or damaged.
    """
    place = found.place(part)[0]
    if place.is_file():
        inside = tokenizer_in(place)
        if inside is not None:
            return inside
        raise PiyingError(f"{place}: there is no tokenizer in it. Choose another file.")
    if (place / PIECES).is_file() and not (place / "tokenizer.json").is_file():
        return _of_pieces((place / PIECES).read_bytes(), place / PIECES)
    from transformers import AutoTokenizer

    with reading(place, "tokenizer"):
        return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)


def tokenizer_in(path: str | Path) -> Any | None:
    """Return the tokenizer inside a file of weights, or None where it has none.

    Raises:
        PiyingError: the file is damaged, or what it calls a tokenizer is none.
    """
    path = Path(path)
    header = read_header(path)
    if header.format == "gguf":
        if not holds_tokenizer(header.metadata):
            return None
        values = gguf_values(path)
        with reading(path, "tokenizer"):
            if values["tokenizer.ggml.model"] == UNIGRAM:
                return SentencePieceTokenizer(_sentencepiece_model(values))
            is_bytes = values["tokenizer.ggml.model"] == BYTE_BPE
            return _fast_tokenizer(values, _byte_bpe(values) if is_bytes else _piece_bpe(values))
    tensors = open_tensors(path)
    found = next((stored for name, stored in tensors.items() if name.rpartition(".")[2] == TOKENIZER_TENSOR), None)
    if found is None:
        return None
    return _of_pieces(found.read().contiguous().numpy().tobytes(), path)


TURN_END = "turn_end_token"  # attribute of a tokenizer from a GGUF file: what ends a turn of its chats
# How texts are split into words, from the tokenizer.json of Qwen/Qwen2.5-*, meta-llama/Llama-3.* and zai-org/GLM-4-*.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Types of tokens, the same in GGUF (llama_token_type) and SentencePiece (ModelProto.SentencePiece.Type).
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


def _fast_tokenizer(values: Mapping[str, Any], words: Tokenizer) -> PreTrainedTokenizerBase:
    """Return a language model's tokenizer from the metadata of a GGUF file.

    Args:
        words: its words, and how a text is split into them.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
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


@contextmanager
def _consistent_words() -> Iterator[None]:
    """Tell of words and merges that do not go together, for which the tokenizers package raises a bare Exception."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ValueError(str(error)) from error


def _byte_bpe(values: Mapping[str, Any]) -> Tokenizer:
    """Return BPE over bytes: Qwen's, Llama 3's and GLM-4's, which differ in how many digits a word has."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(values["tokenizer.ggml.tokens"])}
    merges: Any = [tuple(merge.split(" ", 1)) for merge in values["tokenizer.ggml.merges"]]
    way = values["tokenizer.ggml.pre"]
    with _consistent_words():
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

    tokens, scores = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"]
    types = values["tokenizer.ggml.token_type"]
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
    types = values["tokenizer.ggml.token_type"]
    pieces = zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"], types, strict=True)
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


def _of_pieces(model: bytes, path: Path) -> SentencePieceTokenizer:
    try:
        return SentencePieceTokenizer(model)
    except (RuntimeError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise PiyingError(f"{path}: the tokenizer in it cannot be read. Fetch the file again.") from error


CATEGORY = "tokenizers"  # below the models folder, and what ComfyUI itself comes with
SETTINGS, TOKENIZER = "tokenizer_config.json", "tokenizer.json"
OWN_WORDS = (TOKENIZER, PIECES, "vocab.json", "vocab.txt", "tokenizer.model")  # in the order in which they are read
SEARCH_DEPTH = 3
# Rows of the embeddings beyond the tokenizer's words are padding: Qwen's have up to 151,936 for 151,669 words, UMT5's
# 256,384 for 256,000.
PADDING = 512


class TokenizerKind(Enum):
    """How a tokenizer divides words, with the classes of transformers that do so."""

    UNIGRAM = ("T5Tokenizer", "T5TokenizerFast")
    BPE = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
    WORDPIECE = ("BertTokenizer", "BertTokenizerFast")


# Names of classes that say nothing: what transformers 5 writes, what transformers 4 did, and none.
ANY_CLASS = ("TokenizersBackend", "PreTrainedTokenizerFast", "")


def find_tokenizer(
    kind: TokenizerKind, rows: int, host: Host, *, lenders: Sequence[Path] = (), near: Path | None = None
) -> Path | None:
    """Return the folder of the tokenizer whose words fit the embeddings of a text encoder best, or None.

    ComfyUI comes with two (comfy/text_encoders).

    Args:
        rows: of the embeddings.
        lenders: folders of models that may hold one.
        near: the text encoder's own folder, which is looked through first.
    """
    sizes = {folder: read_json_or_empty(folder / CONFIG).get("vocab_size") for folder in lenders}
    for folder, size in sizes.items():
        if rows and size == rows and (folder / SETTINGS).is_file():
            return folder
    roots = {root: category for category, root in host.model_folders()}
    searched = [folder for folder, size in sizes.items() if size is None]
    searched += [root for root, category in roots.items() if category == CATEGORY]
    searched = searched if near is None or near in roots else [near, *searched]
    places = (
        folder
        for root in searched
        for folder in find_folders(root, SEARCH_DEPTH, [SETTINGS, PIECES], owned=lambda folder: frozenset())
    )
    spare = [(rows - _count_words(folder, kind), folder) for folder in dict.fromkeys(places)]
    # The first of several that fit equally well.
    return min((one for one in spare if 0 <= one[0] <= PADDING), key=itemgetter(0), default=(0, None))[1]


def why_unusable(folder: Path, rows: int | None, *, encodes: bool) -> str:
    """Return why a folder's tokenizer cannot be that of a model, as far as its files tell; else "".

    Args:
        rows: of the model's table of words; None where its configuration does not say.
        encodes: the model is a text encoder, and no language model that answers.
    """
    file = next((folder / name for name in OWN_WORDS if (folder / name).is_file()), None)
    if file is None:
        return f"{folder}: there is no tokenizer in it (one of {', '.join(OWN_WORDS)}). Fetch it again."
    if file.name not in (TOKENIZER, PIECES):
        return ""
    try:
        _, count = _words_in(file)
        settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    except PiyingError as error:
        return str(error)
    if not count:
        return f"{file}: holds no tokenizer. Fetch it again."
    if rows is not None and count > rows:
        fault = f"has {count} words, and the model's table {rows} rows"
        return f"{file}: {fault}. It is another model's: fetch the one that belongs to it."
    side = settings.get("padding_side", "right")
    if side not in ("left", "right"):
        return f"{folder / SETTINGS}: padding_side is {side!r}; it is left or right. Fetch the file again."
    if file.name != TOKENIZER:
        return ""
    words = _added_words(settings) | _every_word(file)
    # Language models answer one chat at a time, which needs no padding.
    for name in ("pad_token", "eos_token") if encodes else ("eos_token",):
        token = settings.get(name, "")
        token = token.get("content") if isinstance(token, dict) else token
        is_needed = bool(token) or (name == "pad_token" and name in settings)
        if is_needed and token not in words:
            return f"{folder / SETTINGS}: {name} {token!r} is no word of {TOKENIZER}. Fetch both again."
    return ""


def _added_words(settings: Mapping[str, Any]) -> set[Any]:
    added = settings.get("added_tokens_decoder")
    return (
        {one.get("content") for one in added.values() if isinstance(one, dict)} if isinstance(added, dict) else set()
    )


@cached_by_state
def _every_word(file: Path) -> frozenset[str]:
    """Return the words of a tokenizer.json, with those that were added; none of another file."""
    table = read_json_or_empty(file) if file.name == TOKENIZER else {}
    added, words = table.get("added_tokens"), table.get("model", {}).get("vocab", ())
    found = [one[0] if isinstance(one, list) and one else one for one in words]
    found += [one.get("content") for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    return frozenset(one for one in found if isinstance(one, str))


def _count_words(folder: Path, kind: TokenizerKind) -> int:
    """Return how many words a folder's tokenizer has, or more than any embeddings have rows where it has none."""
    named = str(read_json_or_empty(folder / SETTINGS).get("tokenizer_class") or "")
    if named not in (*kind.value, *ANY_CLASS):
        return NONE
    file = next(
        (folder / name for name in (PIECES, "vocab.json", "vocab.txt", TOKENIZER) if (folder / name).is_file()), None
    )
    try:
        found, count = (None, 0) if file is None else _words_in(file)
    except (PiyingError, OSError) as error:
        name_left_out(folder, str(error).removeprefix(f"{file}: "))
        return NONE
    return count if found == kind else NONE


NONE = 1 << 62  # more words than any embeddings have rows


@cached_by_state
def _words_in(file: Path) -> tuple[TokenizerKind | None, int]:
    """Return the kind of the tokenizer in a file, and its number of words; those added to them are not counted."""
    if file.name == PIECES:
        return TokenizerKind.UNIGRAM, int(_of_pieces(file.read_bytes(), file).vocab_size)
    if file.suffix == ".txt":
        return TokenizerKind.WORDPIECE, len(file.read_bytes().splitlines())
    table = read_json_or_empty(file)
    if file.name != TOKENIZER:
        return TokenizerKind.BPE, len(table)
    model = table.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(words, (list, dict)):
        return None, 0
    # Files of older versions do not name the type.
    guessed = "unigram" if isinstance(words, list) else "wordpiece" if "max_input_chars_per_word" in model else "bpe"
    return TokenizerKind.__members__.get(str(model.get("type", guessed)).upper()), len(words)
