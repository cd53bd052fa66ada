"""Tokenizers of the built-in models: the same kinds as the real ones, with small vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from .language import captions

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def t5_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer that ends texts with </s> and pads with <pad>, as T5's do."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=320, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(sorted(captions()), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """Return a WordPiece tokenizer over words and Chinese characters; `folder` takes its vocabulary file."""
    words = {piece for text in captions() for piece in _pieces(text)}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    path = folder / "vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}, model_max_length=77)


def _pieces(text: str) -> list[str]:
    spaced = "".join(f" {char} " if ord(char) > 0x2E80 or char == "," else char for char in text)
    return spaced.split()


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with Qwen3's chat markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(sorted(captions()), trainer)
    arguments: dict[str, Any] = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "model_max_length": 4096}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **arguments)
    fast.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return fast
