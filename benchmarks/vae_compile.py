"""torch.compile on the VAE's decoder: as a whole, block by block, and its norms alone. For ends.py --compile."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from measuring import clock


@dataclass(frozen=True)
class Compiled:
    """What compiling parts of the decoder gives.

    Attributes:
        first: wall seconds of the first decode, compiling included.
        seconds: of the best decode after that.
        graphs: how many were compiled.
        difference: the largest of a frame's values in 0..1 from what is not compiled.
        problem: what went wrong; the figures then mean nothing.
    """

    first: float = 0.0
    seconds: float = 0.0
    graphs: int = 0
    difference: float = 0.0
    problem: str = ""


def parts_of(decoder: Any) -> dict[str, list[torch.nn.Module]]:
    """Return what can be compiled apart."""
    from diffusers.models.autoencoders import autoencoder_kl_wan as wan

    def all_of(kind: type[torch.nn.Module]) -> list[torch.nn.Module]:
        return [module for module in decoder.modules() if isinstance(module, kind)]

    return {
        "its norms": all_of(wan.WanRMS_norm),
        "its residual blocks": all_of(wan.WanResidualBlock),
        "its up blocks": [decoder.mid_block, *decoder.up_blocks],
        "all of it": [decoder],
    }


def compiled(vae: Any, decode: Callable[[], torch.Tensor], device: str, rounds: int) -> dict[str, Compiled]:
    """Return what each way of compiling gives; `decode` is called with nothing compiled as well."""
    from torch._dynamo.exc import TorchDynamoException

    wanted = decode()
    found = {"nothing": _measured(decode, wanted, device, rounds)}
    for name, parts in parts_of(vae.decoder).items():
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        for part in parts:
            # Blocks share their code and differ in shape: left to itself torch makes shapes symbols, and fails.
            part.compile(dynamic=False)
        # What a run before has compiled would be found again.
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": folder}):
            try:
                found[name] = _measured(decode, wanted, device, rounds)
            except (TorchDynamoException, RuntimeError) as error:
                found[name] = Compiled(problem=str(error).partition("\n")[0])
        for part in parts:
            part._compiled_call_impl = None
    return found


def _measured(decode: Callable[[], torch.Tensor], wanted: torch.Tensor, device: str, rounds: int) -> Compiled:
    begun = time.perf_counter()
    frames = decode()
    first = time.perf_counter() - begun
    times = []
    for _ in range(rounds):
        begun = clock(device)
        decode()
        times.append(clock(device) - begun)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return Compiled(first, min(times), graphs, float((frames - wanted).abs().max()))


def table(found: dict[str, Compiled]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| compiled | first decode | decode | graphs | largest difference |", "|---|---|---|---|---|"]
    for name, row in found.items():
        figures = f"{row.first:.0f} | {row.seconds:.3f} | {row.graphs} | {row.difference:.1e}"
        lines.append(f"| {name} | {row.problem or figures} |")
    return "\n".join(lines)
