"""Nodes around models: what loaders, LoRA nodes and planned samplers of all families share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from ..core.catalog.experts import AUTO_EXPERT
from ..core.catalog.installed_model import has_built_in
from ..core.catalog.selection import (
    ModelHandle,
    check_model,
    choose_model,
    is_imagined,
    model_choices_and_details,
)
from ..core.errors import PiyingError
from ..core.families.base import ModelFamily
from ..core.host.current import get_host
from ..core.image_sizes import VideoSize
from ..core.parallel.cards import ASKED
from .shared import checked

if TYPE_CHECKING:
    from ..core.catalog.installed_model import InstalledModel
    from ..core.parallel.cards import Asked
    from ..core.planner.format_table import FormatTable
    from ..core.planner.report import Estimate

MEMORY_TOOLTIP = (
    "auto: the fastest plan that fits the card, computed for every size and length, and shown in the log. resident: "
    "whole models on the card. streamed: block by block, for the smallest cards. fp8, int8: weights of one byte, half "
    "the memory. gguf, mxfp8, nvfp4, int4, w4a8, nf4: the weights of a file in that format stay packed."
)
SHARDED_TOOLTIP = " sharded: where several cards share the sequence, a share of the weights on each."
CARDS_TOOLTIP = "How many cards of this machine share each run. Where there are fewer, it goes on with those."
PARALLEL_TOOLTIP = (
    "What several cards share. prompts: each predicts for one of the prompts, exactly as one card would. sequence: "
    "each has a share of the picture or video, and with memory sharded of the weights. auto: what the plan predicts "
    "to be faster."
)
NO_SECOND = "none"
SECOND_TOOLTIP = (
    "Another card of this machine for the text encoders and the VAE, where that is about as fast and fits: the first "
    "card is left to the transformer. A card that is not here is left out."
)
STRONGEST = 100.0  # as in ComfyUI's own LoRA loader
# The names of nodes differ per family; the outputs do not.
STEPS_TOOLTIP = "Steps the LoRA was distilled to, else the published number. For {node}."
CFG_TOOLTIP = "The cfg it was made for, else the published one. For {node}."


class ModelLoader:
    """A loader node: widgets, and a handle that says what to load. Nothing is read until another node needs it."""

    FAMILY: ModelFamily
    PRECISION_TOOLTIP: str
    ALSO = ""
    CATEGORY: str
    RETURN_NAMES = ("model",)
    FUNCTION = "load"
    RUNS_AT_ONCE = True  # a plan may run it to learn what it gives
    MOVES = True  # whether its models have parts that may be on a second card

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets; the list of models is what is installed now."""
        from ..core.planner.machine import MEMORY_CHOICES, PRECISIONS, SHARDED

        choices = [choice for choice in MEMORY_CHOICES if choice != SHARDED]
        toy = has_built_in(cls.FAMILY.key)
        model_tooltip = (
            f"auto: the largest installed model that fits this machine{', else the built-in toy model' * toy}. "
            f"Models are folders under models/{cls.FAMILY.folder}{cls.ALSO}."
        )
        models, details = model_choices_and_details(cls.FAMILY, get_host())
        model_tooltip = "\n".join([model_tooltip, *details])
        return {
            "required": {
                "model": (models, {"default": "auto", "tooltip": model_tooltip}),
                "precision": (list(PRECISIONS), {"default": "auto", "tooltip": cls.PRECISION_TOOLTIP}),
            },
            # Optional: prompts in API form that were saved before this widget came do not have it.
            "optional": {"memory": (choices, {"default": "auto", "tooltip": MEMORY_TOOLTIP})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None) -> bool | str:
        """Say which models are installed when the chosen one is not."""
        # ComfyUI leaves the checks of an input that is named here to this method, and gives None where it is wired.
        return model is None or checked(check_model, cls.FAMILY, model, get_host())

    def load(self, model: str, precision: str, memory: str = "auto") -> tuple[ModelHandle]:
        """Return a handle."""
        return (ModelHandle(self.FAMILY, model, precision, memory),)


class DiffusionLoader(ModelLoader):
    """A loader of a model whose runs several cards can share."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets; those of several cards are shown where advanced ones are."""
        from ..core.planner.machine import MEMORY_CHOICES

        inputs, memory, advanced = super().INPUT_TYPES(), MEMORY_TOOLTIP + SHARDED_TOOLTIP, {"advanced": True}
        seconds = [NO_SECOND, *_second_cards()]
        inputs["optional"] |= {
            "memory": (list(MEMORY_CHOICES), {"default": "auto", "tooltip": memory}),
            "cards": ("INT", {"default": 1, "min": 1, "max": 16, "tooltip": CARDS_TOOLTIP, **advanced}),
            "parallel": (list(ASKED), {"default": "auto", "tooltip": PARALLEL_TOOLTIP, **advanced}),
            "second_device": (seconds, {"default": NO_SECOND, "tooltip": SECOND_TOOLTIP, **advanced}),
        }
        return inputs

    @classmethod
    def VALIDATE_INPUTS(cls, model: str | None, second_device: str | None = None) -> bool | str:
        """Say which models are installed when the chosen one is not; workflows name cards that are not here."""
        del second_device
        return super().VALIDATE_INPUTS(model)

    def load(
        self,
        model: str,
        precision: str,
        memory: str = "auto",
        cards: int = 1,
        parallel: Asked = "auto",
        second_device: str = NO_SECOND,
    ) -> tuple[ModelHandle]:
        """Return a handle."""
        (handle,) = super().load(model, precision, memory)
        second = "" if second_device == NO_SECOND else second_device
        return (replace(handle, cards=cards, parallel=parallel, second_device=second),)


def _second_cards() -> list[str]:
    """Return the other cards that are here, once torch has been loaded."""
    if "torch" not in sys.modules:  # loading it takes seconds, which a check of a workflow does without
        return []
    from ..core.parallel.second_card import other_cards

    try:
        return other_cards(get_host().device())
    except PiyingError:  # the device that was chosen cannot be used, as the run will say
        return []


class LoRANode:
    """A LoRA node: a file and a strength, put on the model that a loader chose. Nothing is read until the model is."""

    FAMILY: ModelFamily
    SETTINGS: Mapping[str, float]  # those it outputs, in order, with what is published for the model
    FUNCTION = "add"
    RUNS_AT_ONCE = True  # a plan may run it to learn what it gives

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the socket and the widgets; the list of files is what is there now."""
        from ..core.lora.catalog import NONE, lora_choices_and_details

        choices, details = lora_choices_and_details(get_host(), cls.FAMILY)
        tooltip = "A file under models/loras. none: the model as it is."
        return {
            "required": {
                "model": (
                    cls.FAMILY.socket,
                    {"tooltip": f"From {cls.FAMILY.loader}, or from another of these nodes."},
                ),
                "lora": (
                    choices,
                    {"default": NONE, "tooltip": "\n".join([tooltip, *details])},
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -STRONGEST,
                        "max": STRONGEST,
                        "step": 0.01,
                        "tooltip": "1 is as it was trained, 0 is off; below 0 inverts it.",
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora: str | None) -> bool | str:
        """Say which files there are when the chosen one is not, or what it is when it is no LoRA."""
        from ..core.lora.catalog import check_lora

        return lora is None or checked(check_lora, lora, get_host(), cls.FAMILY)

    def add(self, model: ModelHandle, lora: str, strength: float, expert: str = AUTO_EXPERT) -> tuple[Any, ...]:
        """Return a handle, and the settings of the last LoRA on it that was made for any."""
        from ..core.lora.catalog import lora_files, made_for, with_lora

        handle = with_lora(model, lora, strength, get_host(), expert=expert)
        settings = made_for(lora_files(handle, get_host()))
        # In the type of the published value, which is that of the socket: steps stay whole numbers.
        return handle, *(type(default)(settings.get(name, default)) for name, default in self.SETTINGS.items())


class PlannedNode:
    """A node whose run has a memory plan: its `model` input carries a handle."""

    VALIDATE_INPUTS: Callable[..., bool | str]

    @classmethod
    def refusal(cls, known: Mapping[str, Any], linked: Collection[str] = ()) -> str:
        """Return why a run would refuse inputs, as far as they are known before it, by wires too, else "".

        Args:
            known: the inputs whose values are known before a run.
            linked: the names of those that only the run will know.

        Raises:
            PiyingError: the model is not installed, or cannot be used.
        """
        # ComfyUI tells VALIDATE_INPUTS of widgets alone; it takes None for what is not known.
        names = signature(cls.VALIDATE_INPUTS).parameters
        answer = cls.VALIDATE_INPUTS(**{name: known.get(name) for name in names})
        handle, host = known.get("model"), get_host()
        if answer is True and isinstance(handle, ModelHandle) and not is_imagined(handle, host):
            model = choose_model(handle, host, quiet=True)
            answer = checked(cls.check_model, {**known, "linked": linked}, model)
        return "" if answer is True else str(answer)

    @classmethod
    def check_model(cls, known: Mapping[str, Any], model: InstalledModel) -> None:
        """Accept inputs, as far as they are known before a run, for the model that it will take.

        Args:
            known: their values, and under `linked` the names of those that only the run will know.

        Raises:
            PiyingError: the model cannot take them.
        """
        known["model"].family.check_inputs(known, model)

    @staticmethod
    def sizes_before_run(known: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that a wired node sets in place of the widgets, None where only the run knows.

        Args:
            known: the inputs whose values are known before a run.
            sources: {wired input: the node it comes from, or None where that is none of ours}; of a node `node_class`,
                `known` and `sources`.
        """
        del known, sources
        return {}

    @classmethod
    def frames_before_run(cls, known: Mapping[str, Any], sources: Mapping[str, Any]) -> VideoSize | None:
        """Return the size and number of the frames that it gives, None where only the run knows.

        For the arguments see `sizes_before_run`.
        """
        sizes = {**known, **cls.sizes_before_run(known, sources)}
        width, height, count = sizes.get("width"), sizes.get("height"), cls.count_before_run(sizes, sources)
        return None if width is None or height is None or count is None else VideoSize(width, height, count)

    @staticmethod
    def count_before_run(sizes: Mapping[str, Any], sources: Mapping[str, Any]) -> int | None:
        """Return how many frames it gives, one for an image, None where only the run knows.

        Args:
            sizes: the inputs whose values are known before a run, with the sizes that wired nodes set.
            sources: see `sizes_before_run`.
        """
        del sizes, sources
        return 1

    @staticmethod
    def trained_settings(settings: Mapping[str, float]) -> dict[str, float]:
        """Return the values of the widgets that use a model as it was trained.

        Args:
            settings: `TrainedOn.settings` of the model, with those of a LoRA that it wears.
        """
        return dict(settings)

    @staticmethod
    def plan_inputs(known: dict[str, Any], linked: Collection[str]) -> dict[str, Any]:
        """Return what the plan is made from.

        Args:
            known: the inputs whose values are known before a run.
            linked: the names of those that only the run will know.
        """
        del linked
        return known

    def plan_memory(self, model: ModelHandle, linked: Collection[str] = (), **known: Any) -> Estimate:
        """Return what a run would need; nothing is loaded. For the arguments see `plan_inputs`."""
        from ..core.families.diffusion_model import estimate

        return estimate(model, get_host(), model.family.work(self.plan_inputs(known, linked), model))

    def plan_formats(self, model: ModelHandle, linked: Collection[str] = (), **known: Any) -> FormatTable:
        """Return what a run would need were the model's files in each weight format; see `plan_memory`."""
        from ..core.families.diffusion_model import estimate_formats

        return estimate_formats(model, get_host(), model.family.work(self.plan_inputs(known, linked), model))
