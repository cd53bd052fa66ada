"""Local prompt models: chosen among the installed ones, held in memory by a plan, and run through transformers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..catalog.discovery import installed_models
from ..catalog.installed_model import AUTO, InstalledModel
from ..catalog.selection import ModelHandle, choose_model
from ..executor.execute_plan import Meter, execute_plan
from ..executor.model_cache import cached_model
from ..executor.placement import placed, resident
from ..families.diffusion_model import ModelParts
from ..host.base import Host
from ..planner.machine import memory_bytes, resolve_dtype
from ..quantization.registry import weight_format
from .compile import CompiledStep, compiled_step, log_not_compiled, unsupported_reason
from .family import PROMPT
from .generation import (
    configure_single_file,
    generate,
    generation_config,
    has_vision,
    load_model,
    load_processor,
    model_files,
)
from .messages import Answer, Chat, Generate, Picture
from .phases import COMPONENT, phases, stays_packed
from .request import ExpandRequest
from .sampling import Processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..planner.plan_types import PhasePlan, Plan

PHASE = "expand"


# Fewer parameters than these, and a model is given as many examples; larger ones follow a description.
EXAMPLES_BY_SIZE = ((4_000_000_000, 2), (12_000_000_000, 1))


class LocalModel:
    """A chat model: the installed model a handle stands for."""

    takes_opening = True

    def __init__(self, handle: ModelHandle, host: Host, needs_vision: bool = False) -> None:
        """Choose the model; where there is a picture to look at, `auto` prefers one with vision.

        Raises:
            PiyingError: the handle names a model that is not installed.
        """
        if needs_vision and handle.model == AUTO:
            # Such a model runs whole on the device, so larger ones are no choice.
            limit = memory_bytes(host.device())
            seeing = [
                found
                for found in installed_models(handle.family, host)
                if found.size <= limit and has_vision(found.path)
            ]
            if seeing:
                handle = replace(handle, model=max(seeing, key=lambda found: found.size).name)
        self._host, self._handle = host, handle
        self.found = choose_model(handle, host)
        self.name, self.plain_chats = self.found.name, self.found.is_built_in
        self.has_vision = has_vision(self.found.path)
        self._run_record: dict[str, Any] = {}

    @property
    def examples(self) -> int:
        """How many worked examples it is given at first, by its number of parameters."""
        # Of a model with vision, which the planner has no components for: its weights are in 16 bits.
        parameters = self.found.size // 2
        if not self.has_vision:
            parameters = ModelParts(PROMPT, in_parts(self.found), self._host).components()[COMPONENT].parameters
        return next((count for limit, count in EXAMPLES_BY_SIZE if parameters < limit), 0)

    def identity(self) -> dict[str, Any]:
        """Return the model's files with their sizes and times, and the user's settings for computing with it."""
        return {
            "name": self.name,
            "files": model_files(self.found),
            "precision": self._handle.precision,
            "memory": self._handle.memory,
            "device": self._host.device(),
            "compile_step": self._handle.compile_step,
        }

    def record(self) -> dict[str, Any]:
        """Return the model's name and device; after a run, how it ran."""
        return {"model": self.name, "device": self._host.device(), **self._run_record}

    def run(self, use: Callable[[Generate], str], max_new_tokens: int, answer_tokens: int = 0) -> str:
        """Return what `use` returns, called with the model where the plan puts it."""
        if self.has_vision:
            return self._run_resident(use, answer_tokens)
        components = ModelParts(PROMPT, in_parts(self.found), self._host).components()
        asked = PROMPT.work({"max_new_tokens": max_new_tokens}, self._handle)
        work = replace(asked, answer_tokens=answer_tokens)
        device = self._host.device()
        prompt_run = PromptRun(
            found=self.found,
            use=use,
            host=self._host,
            meter=Meter(device),
            compile_step=self._handle.compile_step,
            stays_packed=stays_packed(components[COMPONENT], work),
            answer_tokens=answer_tokens,
        )
        text, ran = execute_plan(
            phases(components, work),
            self._handle,
            self._host,
            prompt_run,
            what_fits=lambda _machine: PROMPT.what_fits((), work),
        )
        self._run_record = {**ran, **prompt_run.compile_record}
        return text

    def _run_resident(self, use: Callable[[Generate], str], answer_tokens: int) -> str:
        """Run a model with vision, which the planner has no phases for, whole on the device."""
        import torch

        host = self._host
        dtype = resolve_dtype(self._handle.precision, host.device())
        self._run_record = {"dtype": str(dtype)}
        if self._handle.compile_step:
            self._run_record |= log_not_compiled("vision-language models are not compiled")
        model, processor = load_model(self.found, dtype, host), load_processor(self.found)
        with resident([model], host.device(), host), torch.no_grad():
            return use(_generator(model, processor, host, tokens=answer_tokens))


def in_parts(found: InstalledModel) -> InstalledModel:
    """Return a model with its parts named: a language model's folder is its one component."""
    return found if found.parts else replace(found, parts={COMPONENT: (found.path,)})


@dataclass(kw_only=True)
class PromptRun:
    """One use of a prompt model, as `execute_plan` runs it; attempted again after running out of memory.

    Attributes:
        found: the model.
        use: is given the function that generates an answer.
        host: the program around the pack.
        meter: measures the phase, and names the device the model computes on.
        compile_step: whether compiled code is requested.
        stays_packed: whether a CPU holds the weights packed, see `phases.stays_packed`.
        answer_tokens: about how long an answer is, see `PromptWork`.
        compile_record: what became of that request, for the run's record.
    """

    found: InstalledModel
    use: Callable[[Generate], str]
    host: Host
    meter: Meter
    compile_step: bool
    stays_packed: bool
    answer_tokens: int = 0
    compile_record: dict[str, Any] = field(default_factory=dict)

    def attempt(self, plan: Plan) -> str:
        """Return what `use` returns.

        Raises:
            PhaseOutOfMemoryError: the plan does not fit.
            PiyingError: the model cannot be read, or fails.
        """
        import torch

        choice = plan.phase(PHASE)
        with self.meter.phase(choice):
            processor = load_processor(self.found)
            model = self._load(choice, processor)
            compiling: AbstractContextManager[CompiledStep | None] = nullcontext()
            if self.compile_step:
                reason = unsupported_reason(model, choice.placement)
                if reason:
                    self.compile_record |= log_not_compiled(reason)
                else:
                    compiling = compiled_step(model, self.compile_record)
            with (
                placed(model, choice, self.meter.device, self.host, blocks=list(model.model.layers)),
                torch.no_grad(),
                compiling as step,
            ):
                seconds = choice.seconds - choice.loading
                tokens = self.answer_tokens
                return self.use(_generator(model, processor, self.host, step=step, seconds=seconds, tokens=tokens))

    def _load(self, choice: PhasePlan, processor: Processor) -> Any:
        parts = ModelParts(PROMPT, in_parts(self.found), self.host)
        packs = self.stays_packed and self.meter.device == "cpu" and weight_format(choice.storage) is None
        model = self._packed(parts, choice) if packs else parts.load(COMPONENT, choice)
        if self.found.parts:
            configure_single_file(model, processor)
        else:
            model.generation_config = generation_config(self.found.path, model)
        return model

    def _packed(self, parts: ModelParts, choice: PhasePlan) -> Any:
        """Return the model with packed weights; in the slot of the other, so that only one of them is in memory."""
        from ..checkpoints.load import load_component
        from .packed_layers import pack

        def read() -> Any:
            # In fp16 first, which is what the plan has counted.
            model = load_component(
                COMPONENT,
                self.found.place(COMPONENT),
                dtype="fp16",
                storage="fp16",
                cancelled=self.host.check_cancelled,
            )
            pack(model)
            return model

        slot, key = f"{PROMPT.key}/{COMPONENT}", (parts.identity(COMPONENT), "packed")
        return cached_model(slot, key, read, self.host, size=choice.weights)


def _generator(
    model: PreTrainedModel,
    processor: Processor,
    host: Host,
    *,
    step: CompiledStep | None = None,
    seconds: float = 0.0,
    tokens: int = 0,
) -> Generate:
    """Return the function that generates a loaded model's answers."""

    def generate_answer(chat: Chat, picture: Picture | None, request: ExpandRequest) -> Answer:
        return generate(
            model,
            processor,
            chat,
            picture=picture,
            request=request,
            host=host,
            step=step,
            seconds=seconds,
            tokens=tokens,
        )

    return generate_answer
