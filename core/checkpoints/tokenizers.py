"""Tokenizers: those inside files of weights, a folder's own, and those of other folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError, clipped
from ..files.file_state import cached_by_state
from ..files.folder import CONFIG
from ..files.json_file import read_json, read_json_or_empty
from ..files.open import open_tensors, read_header
from ..files.scan import find_folders, name_left_out
from ..host.base import Host
from .gguf_tokenizer import gguf_tokenizer
from .layouts.base import TOKENIZER_TENSOR, holds_tokenizer
from .pretrained import reading
from .sentencepiece_tokenizer import of_pieces

if TYPE_CHECKING:
    from ..catalog.installed_model import InstalledModel


PIECES = "spiece.model"  # what transformers calls a SentencePiece model in a folder


def tokenized(tokenizer: Any, texts: str | list[str], **options: Any) -> Any:
    """Return what a tokenizer of a models folder makes of texts; for the options see its call.

    Raises:
        PiyingError: it is broken.
    """
    single = isinstance(texts, str)
    # Halves of surrogate pairs, as of a text that JavaScript has cut, cannot be encoded.
    whole = [text.encode("utf-8", "replace").decode() for text in ([texts] if isinstance(texts, str) else texts)]
    try:
        return tokenizer(whole[0] if single else whole, **options)
    except BaseException as error:
        # A panic of the tokenizers package, as over a pattern without end, is no Exception, and cannot be imported.
        if type(error).__module__ != "pyo3_runtime":
            raise
        reason = clipped(" ".join(str(error).split()), 200)
        raise PiyingError(f"The model's tokenizer is broken ({reason}). Fetch it again.") from error


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
        return of_pieces((place / PIECES).read_bytes(), place / PIECES)
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
        return gguf_tokenizer(path) if holds_tokenizer(header.metadata) else None
    tensors = open_tensors(path)
    found = next((stored for name, stored in tensors.items() if name.rpartition(".")[2] == TOKENIZER_TENSOR), None)
    if found is None:
        return None
    return of_pieces(found.read().contiguous().numpy().tobytes(), path)


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
        return TokenizerKind.UNIGRAM, int(of_pieces(file.read_bytes(), file).vocab_size)
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
