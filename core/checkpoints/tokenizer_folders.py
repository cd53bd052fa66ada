"""Folders with the tokenizers that single files of weights do not bring."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..host import Host

CATEGORY = "tokenizers"  # below the models folder, and what ComfyUI itself comes with
SETTINGS = "tokenizer_config.json"
SEARCH_DEPTH = 3
# Rows of the embeddings beyond the tokenizer's words are padding: Qwen's have up to 151,936 for 151,669 words.
PADDING = 512


def _folders(host: Host) -> Iterator[Path]:
    """Yield the folders that hold a tokenizer, in the host's order."""
    for category, root in host.model_folders():
        if category == CATEGORY:
            yield from _below(root, SEARCH_DEPTH)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / SETTINGS).is_file():
        yield folder
    elif depth:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return  # a folder that is not there, or not ours to read, holds nothing for us
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _below(Path(entry.path), depth - 1)


def bert_tokenizer(host: Host) -> Path | None:
    """Return the folder of the tokenizer of Hunyuan-DiT's BERT, or None.

    ComfyUI comes with one (comfy/text_encoders/hydit_clip_tokenizer).
    """
    named = (folder for folder in _folders(host) if _class_in(folder) == "BertTokenizer")
    return next((folder for folder in named if (folder / "vocab.txt").is_file()), None)


def qwen_tokenizer(folders: list[Path], vocabulary: int, host: Host) -> Path | None:
    """Return a folder with the words of a Qwen model of so many, or None.

    Args:
        folders: language models that are installed; one of as many words lends its own.
        vocabulary: rows of the embeddings.
    """
    for folder in folders:
        if _json(folder / "config.json").get("vocab_size") == vocabulary and (folder / SETTINGS).is_file():
            return folder
    for folder in _folders(host):
        words = _json(folder / "vocab.json") if _class_in(folder) == "Qwen2Tokenizer" else {}
        if words and 0 <= vocabulary - len(words) <= PADDING:
            return folder
    return None


def _class_in(folder: Path) -> str:
    return str(_json(folder / SETTINGS).get("tokenizer_class", ""))


def _json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
