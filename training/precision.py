"""Fewer bits for the models that are scored: what bf16 and FP8 cost shows in what they draw."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACK = "piying"
PRECISIONS = ("fp32", "bf16", "fp8")
ROOT = Path(__file__).resolve().parents[1]


def lower(module: nn.Module, precision: str) -> None:
    """Let a model compute in bf16, or keep the Linear weights of its blocks in FP8 and compute in fp32."""
    if precision == "bf16":
        module.to(torch.bfloat16)
    if precision == "fp8":
        of_pack("core.quantization.casting").cast_module(module, "fp8")


def of_pack(name: str) -> Any:
    """Return a module of the pack, loaded by path under a name of its own as its hosts do."""
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[PACK] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACK])
    return importlib.import_module(f"{PACK}.{name}")
