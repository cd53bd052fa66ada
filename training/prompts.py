"""Train the prompt model: `python -m training.prompts --runs runs --out builtin_models/prompt`.

The model reads the same chat it will be run with: system prompt, line, empty thinking. The system
prompts are long and say little, so most batches carry a random part of one, which is cheaper and
keeps the model from depending on its exact words.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from . import architectures
from .loop import Run, common_arguments, options_from
from .short_prompts import OTHERS, PRESETS, Example, example

SYSTEM_PROMPTS = Path(__file__).resolve().parents[1] / "core" / "prompting" / "system_prompts"
BATCH = 32
TRAINED = (*PRESETS * (len(OTHERS) // len(PRESETS)), *OTHERS)  # half the lines are for the first two
ODD = 0.5  # share of lines with words from outside the language: copying them is what takes longest
IGNORED = -100  # the label transformers leaves out of the loss


def system_prompt(preset: str) -> str:
    """Return the system prompt of a preset, as the pack sends it."""
    return (SYSTEM_PROMPTS / f"{preset}.txt").read_text(encoding="utf-8").strip()


def shortened(text: str, share: float, draw: random.Random) -> str:
    """Return a text with its first words and a random `share` of the rest, in order."""
    pieces = text.split(" ")
    first = 10  # "You write prompts for a video model that paints a": says which preset it is
    return " ".join(pieces[:first] + [piece for piece in pieces[first:] if draw.random() < share])


def chat(tokenizer: PreTrainedTokenizerFast, system: str, line: str) -> str:
    """Return the conversation up to the answer, thinking switched off."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": line}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return str(text)


def training_example(draw: random.Random) -> Example:
    """Return an example that is not held out."""
    while True:
        found = example(draw, TRAINED, ODD)
        if not found.held_out:
            return found


def batch(
    tokenizer: PreTrainedTokenizerFast, share: float, draw: random.Random, size: int = BATCH
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and labels [size, longest]; only answers are learned."""
    rows, starts = [], []
    for item in (training_example(draw) for _ in range(size)):
        before = tokenizer.encode(chat(tokenizer, shortened(system_prompt(item.preset), share, draw), item.line))
        starts.append(len(before))
        rows.append(before + tokenizer.encode(item.answer) + [tokenizer.eos_token_id])
    longest = max(map(len, rows))
    tokens = torch.full((size, longest), tokenizer.pad_token_id)
    labels = torch.full((size, longest), IGNORED)
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens[index, : len(row)] = torch.tensor(row)
        labels[index, start : len(row)] = torch.tensor(row[start:])
    return tokens, labels


def answer_loss(model: Qwen3ForCausalLM, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss the model itself gives, without scoring the vocabulary where nothing is learned."""
    learned = labels[:, 1:] != IGNORED
    states = model.model(input_ids=tokens).last_hidden_state[:, :-1]
    return functional.cross_entropy(model.lm_head(states[learned]), labels[:, 1:][learned])


def share_at(step: int, steps: int, draw: random.Random) -> float:
    """Return how much of the system prompt a step's batch carries: little at first, then often all of it."""
    progress = step / steps
    if progress < 0.5:
        return draw.choice([0.0, 0.05, 0.2])
    return 1.0 if draw.random() < 0.5 else draw.random()


def start(folder: Path | None) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Return the model of a folder, or an untrained one, with its tokenizer."""
    if folder is None:
        return architectures.prompt([system_prompt(preset) for preset in PRESETS])
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def train(arguments: argparse.Namespace) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Train as the command line says and return the averaged model."""
    options = options_from(arguments, "prompts", ema=0.995, muon=arguments.muon, adamw=arguments.adamw)
    architectures.seeded(arguments.seed)
    model, tokenizer = start(arguments.folder)
    run = Run({"model": model}, options)

    def loss_at(step: int) -> torch.Tensor:
        draw = random.Random(f"{arguments.seed} {step}")
        tokens, labels = batch(tokenizer, share_at(step, options.steps, draw), draw)
        return answer_loss(model, tokens, labels)

    run.train(loss_at)
    run.use_average()
    return model.eval(), tokenizer


def main() -> None:
    """Train, and write the model where asked."""
    parser = argparse.ArgumentParser(description="Train the built-in prompt model.")
    common_arguments(parser, steps=3000)
    parser.add_argument("--from", type=Path, dest="folder", help="begin with a model folder")
    parser.add_argument("--muon", type=float, default=0.02, help="learning rate of the matrices")
    parser.add_argument("--adamw", type=float, default=2e-3, help="learning rate of the rest")
    arguments = parser.parse_args()
    model, tokenizer = train(arguments)
    if arguments.out:
        model.to(torch.bfloat16).save_pretrained(arguments.out)
        tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
