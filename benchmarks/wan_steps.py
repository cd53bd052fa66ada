"""Contenders of the step benchmark: memory modes of the pack and of diffusers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from measuring import hold_to, host_bytes, is_card, peak, seconds, settle
from wan_models import SIZES, Shape, built, empty, inputs

Step = Callable[[], list[torch.Tensor]]
FP8_MATMUL_FROM = (8, 9)  # compute capability


def core(name: str) -> Any:
    """Import a module of the pack's core."""
    return import_module(f"piying.core.{name}")


@dataclass
class Opened:
    """A contender ready to step; `traffic` where it streams."""

    step: Step
    traffic: Any = None


@dataclass(frozen=True)
class Contender:
    """One way of running the model.

    Attributes:
        open: makes it ready on a device; what it holds is let go at the end.
        plan: for ours, storage and placement as the planner names them, to predict by.
        card: whether it needs a CUDA card; fp8_matmul: one that multiplies in FP8.
    """

    name: str
    open: Callable[[Any, dict[str, Any], str], AbstractContextManager[Opened]]
    plan: tuple[str, str] | None = None
    fp8_matmul: bool = False
    card: bool = False

    def runs_on(self, device: str) -> bool:
        """Whether the device can do it."""
        if self.fp8_matmul:
            return is_card(device) and torch.cuda.get_device_capability(device) >= FP8_MATMUL_FROM
        return is_card(device) or not self.card


Inside = Callable[[Any], AbstractContextManager[Any]]


def ours(
    storage: str,
    placement: str,
    fp8_matmul: bool = False,
    batched: bool = False,
    inside: Inside = nullcontext,
) -> Any:
    """Return the opener of one of our ways.

    Args:
        batched: predict for both prompts in one batch.
        inside: given the model on its device, what its steps run in.
    """

    @contextmanager
    def opened(model: Any, given: dict[str, Any], device: str) -> Iterator[Opened]:
        forward = core("wan.transformer")
        if storage == "fp8":
            casting = core("quantization.casting")
            casting.cast_module(model, storage, core("wan.family").WAN_VACE.rules["transformer"])
            casting.use_native_matmul(model, fp8_matmul)

        def step() -> list[torch.Tensor]:
            return forward.predict(model, **given, batched=batched)

        if placement == "resident":
            model.to(device)
            with inside(model):
                yield Opened(step)
        else:
            with core("executor.streaming").streamed(model, forward.block_order(model), device) as traffic:
                yield Opened(step, traffic)

    return opened


def theirs(prepare: Callable[[Any, str], None]) -> Any:
    """Return the opener of one of diffusers' ways: the model called once for each prompt."""

    @contextmanager
    def opened(model: Any, given: dict[str, Any], device: str) -> Iterator[Opened]:
        prepare(model, device)
        scale = given["latents"].new_ones(len(model.config.vace_layers))

        def step() -> list[torch.Tensor]:
            return [
                model(
                    given["latents"],
                    given["timestep"],
                    embed,
                    control_hidden_states=given["control"],
                    control_hidden_states_scale=scale,
                    return_dict=False,
                )[0]
                for embed in given["embeds"]
            ]

        yield Opened(step)

    return opened


def _group_offload(model: Any, device: str, **options: Any) -> None:
    model.enable_group_offload(
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=is_card(device),
        **options,
    )


def _layerwise(model: Any, device: str) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)
    model.to(device)


def _layerwise_group_offload(model: Any, device: str) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)
    _group_offload(model, device)


def _model_cpu_offload(model: Any, device: str) -> None:
    from diffusers import UniPCMultistepScheduler, WanVACEPipeline

    pipeline = WanVACEPipeline(None, None, None, UniPCMultistepScheduler(), model)
    pipeline.enable_model_cpu_offload(device=device)


CONTENDERS = [
    Contender("diffusers, resident", theirs(lambda model, device: model.to(device))),
    Contender("Piying, resident", ours("bf16", "resident"), ("bf16", "resident")),
    Contender("Piying, streamed", ours("bf16", "streamed"), ("bf16", "streamed")),
    Contender("diffusers, group offload", theirs(_group_offload)),
    Contender(
        "diffusers, group offload, low RAM",
        theirs(lambda model, device: _group_offload(model, device, low_cpu_mem_usage=True)),
        card=True,
    ),
    Contender("diffusers, model CPU offload", theirs(_model_cpu_offload), card=True),
    Contender("Piying, fp8", ours("fp8", "resident"), ("fp8", "resident")),
    Contender("Piying, fp8 streamed", ours("fp8", "streamed"), ("fp8", "streamed")),
    Contender("Piying, fp8 matmul", ours("fp8", "resident", True), ("fp8", "resident"), fp8_matmul=True),
    Contender("diffusers, layerwise casting", theirs(_layerwise)),
    Contender("diffusers, layerwise, group offload", theirs(_layerwise_group_offload)),
]


def wanted(names: Sequence[str], ways: Sequence[str]) -> list[str]:
    """Return the names that are asked for by a part of them, or by the whole, which means that one alone."""
    return [name for name in names if any(way == name or (way in name and way not in names) for way in ways)]


@dataclass
class Case:
    """A model, a video size and a limit of memory, on a device.

    Attributes:
        cap: gigabytes of the card to stand in for; None for all of it.
        expected: what the first contender that ran gave, on the CPU.
    """

    shape: Shape
    device: str
    dtype: torch.dtype
    state: dict[str, torch.Tensor]
    cap: float | None = None
    expected: list[torch.Tensor] | None = None

    def measure(self, contender: Contender, steps: int) -> dict[str, Any]:
        """Return one round's figures, or the error that ended it.

        The first step warms up; its time is not counted.
        """
        settle(self.device)
        hold_to(self.cap, self.device)
        try:
            with torch.no_grad():
                return self._steps(contender, steps)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            if contender.plan is not None and not isinstance(error, torch.OutOfMemoryError):
                raise
            kind = "out of memory" if isinstance(error, torch.OutOfMemoryError) else f"{type(error).__name__}: {error}"
            return {"error": kind}
        finally:
            hold_to(None, self.device)

    def _steps(self, contender: Contender, steps: int) -> dict[str, Any]:
        host = host_bytes()
        model = built(self.shape.model, self.state)
        given = inputs(self.shape, self.dtype, self.device)
        with contender.open(model, given, self.device) as opened:
            error = self.compare(opened.step())
            before = copy.copy(opened.traffic)
            times = [seconds(opened.step, self.device) for _ in range(steps)]
            found = {"seconds": times, "error_rms": error}
            if opened.traffic is not None:
                found["moved_per_step"] = (opened.traffic.bytes - before.bytes) / steps
            if is_card(self.device):
                found["host"] = max(0, host_bytes() - host)
            if is_card(self.device) and opened.traffic is not None:
                found["pinned"] = opened.traffic.pinned_bytes
                found["stall_per_step"] = (opened.traffic.stall_seconds - before.stall_seconds) / steps
            found["peak"] = peak(opened.step, self.device)
            if is_card(self.device):
                found["reserved"] = torch.cuda.max_memory_reserved(self.device)  # what the cap holds
        return found

    def compare(self, results: list[torch.Tensor]) -> float:
        """Return the error of results against the first contender's, relative, as a root mean square."""
        results = [result.float().cpu() for result in results]
        if self.expected is None:
            self.expected = results
        pairs = list(zip(results, self.expected, strict=True))
        wrong = sum(float((ours - theirs).square().sum()) for ours, theirs in pairs)
        return (wrong / sum(float(theirs.square().sum()) for _, theirs in pairs)) ** 0.5

    def predicted(self, contender: Contender) -> int | None:
        """Return the planner's peak: all on a card, what a step makes on the CPU."""
        if contender.plan is None:
            return None
        phase = phase_of(self.shape)
        storage, placement = contender.plan
        if not is_card(self.device):
            return int(phase.variants[0].peak("fp32") + phase.component.unpacked("fp32", storage))
        cost = core("planner.cost")
        choice = cost.Choice("bf16", storage, placement, phase.variants[0], contender.fp8_matmul)
        return int(cost.cost(phase, choice, core("planner.machine").synthetic(self.cap or 80)).vram)


def phase_of(shape: Shape) -> Any:
    """Return the planner's sampling phase of a shape."""
    memory, sizes = core("wan.phases"), core("catalog.component_sizes")
    tensors = {
        name: sizes.TensorInfo(tuple(tensor.shape), "BF16") for name, tensor in empty(shape.model).named_parameters()
    }
    transformer = sizes.component("transformer", tensors, core("wan.family").WAN_VACE.rules["transformer"])
    width, height, frames = SIZES[shape.size]
    nothing = sizes.component("other", {})
    parts = {"transformer": transformer, "text_encoder": nothing, "vae": nothing}
    phases = memory.phases(parts, memory.VideoWork(width, height, frames))
    return next(phase for phase in phases if phase.name == "sample")


def merged(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of several rounds': all times, the largest of the rest."""
    whole = [row for row in rounds if "error" not in row]
    if not whole:
        return {"error": rounds[0]["error"]}
    others = {key: max(row[key] for row in whole) for key in whole[0] if key not in ("seconds", "version")}
    return {"seconds": [each for row in whole for each in row["seconds"]], **others}
