"""Tokenizers of the built-in models: the same kinds as the real ones, with small vocabularies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from .language import words
from .short_prompts import typed_words

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def t5_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer that ends texts with </s> and pads with <pad>, as T5's do.

    Every word of the language is one piece; other words fall into letters.
    """
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -3.0) for piece in _t5_words())]
    scored += [(char, -10.0) for char in "▁abcdefghijklmnopqrstuvwxyz0123456789,.:;!?-'"]
    tokenizer = Tokenizer(models.Unigram(list(dict(scored).items()), unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def _t5_words() -> list[str]:
    """Return the pieces of the language: English words after a space, Chinese ones as they are."""
    lower = {word.lower() for word in words()} - {",", "."}
    return sorted(f"▁{word}" if word.isascii() else word for word in lower)


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """Return a WordPiece tokenizer over words and Chinese characters; `folder` takes its vocabulary file."""
    pieces = {piece for word in words() for piece in _pieces(word.lower())} | set(",.:;!。")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(pieces)]
    path = folder / "vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}, model_max_length=77)


def _pieces(text: str) -> list[str]:
    spaced = "".join(f" {char} " if ord(char) > 0x2E80 or char in ",。" else char for char in text)
    return spaced.split()


def qwen_tokenizer(texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with Qwen3's chat markers and a piece for every word of the language.

    It learns from single words, never from whole Chinese lines: a piece that spans two words would
    hide where one fact ends. `texts` are further English texts whose words get pieces of their own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_chat_words(texts), trainer)
    arguments: dict[str, Any] = {
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "model_max_length": 4096,
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **arguments)
    fast.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return fast


def _chat_words(texts: Iterable[str]) -> list[str]:
    """Return the words to make pieces of; English ones with and without the space before them."""
    listed = {*words(), *typed_words(), *(word.strip(".,;:") for text in texts for word in text.split())}
    english = {word for word in listed if word.isascii()}
    return sorted(listed | {f" {word}" for word in english} | {"<think>\n\n</think>\n\n"})
