"""The loop all trainings share: seeded steps, an average of the weights, a log, checkpoints to resume from."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .optimizer import optimizers, set_rate

SAVE_EVERY, LOG_EVERY = 200, 25


@dataclass
class Options:
    """How long to train, how fast, and where the run is kept.

    Attributes:
        folder: takes NAME.pt (checkpoint) and NAME.jsonl (curve).
        name: of the run's files.
        steps: at which step training ends; the rate falls over the last part of them.
        resume: go on from the run's checkpoint, if there is one.
        ema: how much of the averaged weights stays at each step.
    """

    folder: Path
    name: str
    steps: int
    resume: bool = False
    seed: int = 0
    muon: float = 0.02
    adamw: float = 2e-3
    ema: float = 0.998

    @property
    def checkpoint(self) -> Path:
        """Return the file of weights and optimizer states."""
        return self.folder / f"{self.name}.pt"


class Run:
    """One training: the modules, their averaged weights, and how far they are."""

    def __init__(self, modules: Mapping[str, nn.Module], options: Options) -> None:
        self.modules, self.options, self.step = dict(modules), options, 0
        self.optimizers = optimizers(self.modules.values(), options.muon, options.adamw)
        self.average = {name: _copied(module) for name, module in self.modules.items()}
        options.folder.mkdir(parents=True, exist_ok=True)
        if options.resume and options.checkpoint.exists():
            self._restore()

    def train(self, loss_at: Callable[[int], torch.Tensor], until: int | None = None) -> None:
        """Train to the last step or `until` one; `loss_at(step)` draws that step's batch and returns its loss."""
        began, total = time.perf_counter(), 0.0
        first = self.step
        last = self.options.steps if until is None else until
        while self.step < last:
            # Seeded by step: a resumed run sees what an unbroken one would have seen.
            torch.manual_seed(self.options.seed * 1_000_003 + self.step)
            total += self._one_step(loss_at)
            self.step += 1
            if self.step % LOG_EVERY == 0:
                pace = (time.perf_counter() - began) / (self.step - first)
                self._log(total / LOG_EVERY, pace)
                total = 0.0
            if self.step % SAVE_EVERY == 0:
                self.save()
        self.save()

    def _one_step(self, loss_at: Callable[[int], torch.Tensor]) -> float:
        set_rate(self.optimizers, self.step, self.options.steps)
        loss = loss_at(self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for module in self.modules.values():
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        return float(loss.detach())

    def _average(self) -> None:
        keep = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for name, module in self.modules.items():
            for average, tensor in zip(self.average[name].values(), module.state_dict().values(), strict=True):
                average.lerp_(tensor, 1 - keep) if average.is_floating_point() else average.copy_(tensor)

    def _log(self, loss: float, pace: float) -> None:
        line = {"step": self.step, "loss": round(loss, 5), "seconds_per_step": round(pace, 3)}
        with (self.options.folder / f"{self.options.name}.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def save(self) -> None:
        """Write the checkpoint beside its place, then put it there."""
        state: dict[str, Any] = {"step": self.step, "average": self.average}
        state["modules"] = {name: module.state_dict() for name, module in self.modules.items()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        beside = self.options.checkpoint.with_suffix(".new")
        torch.save(state, beside)
        beside.replace(self.options.checkpoint)

    def _restore(self) -> None:
        state = torch.load(self.options.checkpoint, weights_only=True)
        self.step, self.average = state["step"], state["average"]
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            rates = [group["full"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["full"] = rate  # the rate asked for now, not the one of the stage before

    def use_average(self) -> None:
        """Put the averaged weights into the modules: they draw better than the last ones."""
        for name, module in self.modules.items():
            module.load_state_dict(self.average[name])


def _copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}


def load_average(path: Path, modules: Mapping[str, nn.Module]) -> int:
    """Load a checkpoint's averaged weights into the modules it has; return its step."""
    state = torch.load(path, weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state["average"][name])
    return int(state["step"])


def common_arguments(parser: argparse.ArgumentParser, steps: int) -> None:
    """Add the arguments every training has."""
    parser.add_argument("--steps", type=int, default=steps, help="train up to this step")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for checkpoints and curves")
    parser.add_argument("--out", type=Path, default=None, help="folder the finished model is written to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")


def options_from(arguments: argparse.Namespace, name: str, **fixed: Any) -> Options:
    """Return the options a command line gives."""
    torch.set_num_threads(arguments.threads)
    return Options(arguments.runs, name, arguments.steps, arguments.resume, arguments.seed, **fixed)
