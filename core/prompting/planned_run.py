"""Writing a prompt under a memory plan: a language model stored and placed as the plan says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..checkpoints.found import FoundModel
from ..checkpoints.model_parts import ModelParts
from ..host import Host
from ..memory.measure import Meter
from ..memory.place import placed
from .compiling import CompiledStep, compiled_step, left_out, why_not
from .local import Reader, generate, load_reader
from .memory import BLOCK_LISTS, FP8_KEEP
from .one_file import finish_alone
from .writer import Write

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..memory.planned import PhasePlan, Plan

PART, PHASE = "prompt_model", "expand"
GENERATION = "generation_config.json"


@dataclass
class PromptRun:
    """Something to ask a model. `attempt` may be called again after running out of memory.

    Attributes:
        use: asks the model, by the function it is given.
        compile_step: whether code for writing one token is wanted.
        notes: is told whether there was any, where it was wanted.
    """

    found: FoundModel
    use: Callable[[Write], str]
    host: Host
    device: str
    meter: Meter
    compile_step: bool
    notes: dict[str, Any]

    def attempt(self, plan: Plan) -> str:
        """Return what `use` makes of the answers.

        Raises:
            PhaseOutOfMemoryError: the plan does not fit.
            PiyingError: the model cannot be read, or fails.
        """
        import torch

        choice = plan.phase(PHASE)
        with self.meter.phase(choice):
            reader = load_reader(self.found)
            model = self._load(choice, reader)
            with (
                placed(model, list(model.model.layers), choice, self.device, self.host),
                torch.no_grad(),
                self._step(model, choice) as step,
            ):
                return self.use(
                    lambda chat, picture, request: generate(model, reader, chat, picture, request, self.host, step)
                )

    def _step(self, model: PreTrainedModel, choice: PhasePlan) -> AbstractContextManager[CompiledStep | None]:
        """Return what compiles the model's step where that is wanted and possible."""
        if not self.compile_step:
            return nullcontext()
        reason = why_not(model, choice.placement)
        if reason:
            self.notes |= left_out(reason)
            return nullcontext()
        return compiled_step(model, self.notes)

    def _load(self, choice: PhasePlan, reader: Reader) -> Any:
        from transformers import GenerationConfig

        # The folder of a language model holds it itself, not in a folder for each part.
        found = self.found if self.found.parts else replace(self.found, parts={PART: (self.found.path,)})
        parts = ModelParts("prompt", found.name, found, self.host, BLOCK_LISTS, FP8_KEEP)
        model = parts.load(PART, choice)
        if (self.found.path / GENERATION).is_file():  # which tokens end an answer, beside the model's own
            model.generation_config = GenerationConfig.from_pretrained(self.found.path)
        elif self.found.parts:
            finish_alone(model, reader)
        return model
