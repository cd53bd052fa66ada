"""Write the built-in models with seeded random weights: `python -m training.initial [FOLDER]`.

The same versions of torch, diffusers and transformers write the same bytes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from . import architectures

BUILT_IN = Path(__file__).resolve().parents[1] / "builtin_models"
SEED = 2025


def write(folder: Path) -> None:
    """Write all three models below `folder`, weights in bf16."""
    architectures.seeded(SEED)
    architectures.wan_vace().to(torch.bfloat16).save_pretrained(folder / "wan_vace")
    architectures.seeded(SEED)
    with tempfile.TemporaryDirectory() as scratch:
        architectures.hunyuan_dit(Path(scratch)).to(torch.bfloat16).save_pretrained(folder / "hunyuan_dit")
    architectures.seeded(SEED)
    model, tokenizer = architectures.prompt()
    model.to(torch.bfloat16).save_pretrained(folder / "prompt")
    tokenizer.save_pretrained(folder / "prompt")


def main() -> None:
    """Read the folder from the command line and write the models."""
    parser = argparse.ArgumentParser(description="Write the built-in models with seeded random weights.")
    parser.add_argument("folder", nargs="?", type=Path, default=BUILT_IN)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
