"""The family of prompt models: Qwen3, Qwen2.5 and others that write prompts, in folders and in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families.base import ComponentSpec, ModelFamily
from ..quantization.policy import CastRules

if TYPE_CHECKING:
    from ..catalog.discovery import FileCatalog
    from ..catalog.installed_model import InstalledModel
    from ..catalog.selection import ModelHandle
    from ..checkpoints.layouts.base import Description, Layout
    from ..planner.phases import Component, Phase
    from .phases import PromptWork

WRITING = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
}
SEEING = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}


class PromptFamily(ModelFamily):
    """Language models."""

    def layouts(self) -> tuple[Layout, ...]:
        """Return those of transformers and of llama.cpp."""
        from ..checkpoints.layouts.language_model import LANGUAGE_MODEL, LANGUAGE_MODEL_GGUF

        return LANGUAGE_MODEL, LANGUAGE_MODEL_GGUF

    def descriptions(self) -> Mapping[str, Description]:
        """Return those of the classes that only write."""
        from ..checkpoints.layouts import language_model

        return {
            "Qwen2ForCausalLM": language_model.qwen2_tensors,
            "Qwen3ForCausalLM": language_model.qwen3_tensors,
            "Ernie4_5ForCausalLM": language_model.ernie_tensors,
            "Glm4ForCausalLM": language_model.glm4_tensors,
        }

    def single_file_models(self, files: FileCatalog, folders: Sequence[InstalledModel]) -> list[InstalledModel]:
        """Return Qwen models in one file: ComfyUI's text encoders, then those that Ollama and LM Studio keep."""
        from ..checkpoints.layouts.language_model import LANGUAGE_MODEL
        from ..checkpoints.tokenizers import TokenizerKind, find_tokenizer
        from .shared_models import shared_models

        found, lenders = [], [folder.path for folder in folders]
        shared = (files.elsewhere(name, path) for name, path in shared_models())
        for one in [*files.all, *filter(None, shared)]:
            if one.title != LANGUAGE_MODEL.title or not one.found.readable:
                continue
            rows = files.vocabulary(one.path, "prompt_model")
            elsewhere = find_tokenizer(TokenizerKind.BPE, rows, files.host, lenders=lenders, near=one.folder)
            tokenizer = one.path if one.has_tokenizer else elsewhere
            parts = {"prompt_model": (one.path,)} | ({"tokenizer": (tokenizer,)} if tokenizer is not None else {})
            model = files.model(self, (one,), parts)
            reason = "" if tokenizer is None or model.problem else self.place_problem(tokenizer)
            found.append(replace(model, problem=reason) if reason else model)
        return found

    def why_unusable(self, file: str, files: FileCatalog) -> str | None:
        """Return why a file of Ollama or LM Studio is not offered; None for other names."""
        from .shared_models import shared_models

        path = next((path for name, path in shared_models() if name == file), None)
        return None if path is None else files.why_not(path)

    def place_problem(self, place: Path) -> str:
        """Return why the chat template of a model's folder or GGUF file cannot be used; else ""."""
        from .chat_template import why_no_template

        return why_no_template(place)

    def work(self, inputs: Mapping[str, Any], handle: ModelHandle) -> PromptWork:
        """Return what writing a prompt has to do, from the inputs of Expand Prompt."""
        from .phases import PromptWork

        known = {name: inputs[name] for name in self.planned_inputs if name in inputs}
        return PromptWork(**known, may_pack=handle.precision == "auto", fixed_cache=handle.compile_step)

    def phases(self, components: Mapping[str, Component], work: PromptWork) -> tuple[Phase, ...]:
        """Return the one phase of writing."""
        from .phases import phases

        return phases(components, work)

    def what_fits(self, found: Sequence[PromptWork], work: PromptWork) -> str:
        """Return what to do where the model does not fit: there is nothing of it to make smaller."""
        del found, work
        return "Choose a smaller model."


PROMPT = PromptFamily(
    key="prompt",
    title="prompt",
    index_classes=(*WRITING.values(), *SEEING.values()),
    model_types=WRITING | SEEING,
    folder="LLM",
    socket="PROMPT_MODEL",
    loader="Load Prompt Model",
    components=(
        ComponentSpec(
            name="prompt_model",
            classes=tuple(WRITING.values()),
            model_types=WRITING,
            rules=CastRules(("model.layers",)),
        ),
    ),
    required=("prompt_model", "tokenizer"),
    missing={"tokenizer": "the tokenizer of a Qwen model, in models/tokenizers or in a Qwen folder in models/LLM"},
    remedy="Fetch it with `python install.py --models qwen3-0.6b`, whose folder lends its tokenizer",
    planned_inputs=("max_new_tokens",),
)
