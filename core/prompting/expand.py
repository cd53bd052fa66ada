"""Qwen3 writes the prompt: a chat template, `generate`, and the answer cleaned of its thinking."""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoints.choose import ModelHandle, choose_model
from ..checkpoints.folders import check_tensors, reading
from ..checkpoints.found import FoundModel
from ..host import Host, Progress
from ..memory.devices import resolve_dtype
from ..memory.kept import kept
from ..memory.residency import resident
from .presets import preset_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

log = logging.getLogger("piying")

DEFAULT_PRESET = "text_to_video"
DEFAULT_MAX_NEW_TOKENS = 256
DEFAULT_TEMPERATURE = 0.7
# Sampling advised for Qwen3 without thinking, in its model card.
TOP_P, TOP_K = 0.8, 20

THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class ExpandRequest:
    """One prompt to expand.

    Attributes:
        prompt: the short line.
        preset: a name from `presets.preset_names`.
        max_new_tokens: the longest answer.
        temperature: 0 always takes the likeliest token; higher wanders more.
        seed: 0 … 2**64-1; the same seed, model and text give the same answer.
    """

    prompt: str
    preset: str = DEFAULT_PRESET
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = DEFAULT_TEMPERATURE
    seed: int = 0


def expand(handle: ModelHandle, request: ExpandRequest, host: Host) -> tuple[str, dict[str, Any]]:
    """Return the expanded prompt and a record of what ran, fit for JSON.

    An empty answer gives the original prompt back, with a warning: a render is worth more than a
    failed expansion.

    Raises:
        PiyingError: the model is not installed or cannot be read, or the preset does not exist.
    """
    system = preset_text(request.preset)
    found = choose_model(handle, host)
    model, tokenizer = _load(found, handle, host)
    answer = _generate(model, tokenizer, system, request, host)
    if not answer:
        log.warning("The prompt model %s gave an empty answer: using the prompt as it was written.", found.name)
        answer = request.prompt
    return answer, {
        "model": found.name,
        "dtype": str(model.dtype),
        "device": host.device(),
        **asdict(request),
    }


def _load(found: FoundModel, handle: ModelHandle, host: Host) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    dtype = resolve_dtype(handle.precision, host.device())
    host.check_cancelled()
    return kept("prompt", (found.path, dtype), lambda: _read(found, dtype))


def _read(found: FoundModel, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("Loading prompt model: %s", found.name)
    with reading(found.path, "prompt"):
        tokenizer = AutoTokenizer.from_pretrained(found.path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            found.path, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        check_tensors(model, found.path, "prompt")
    return model.eval(), tokenizer


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    request: ExpandRequest,
    host: Host,
) -> str:
    import torch
    from transformers import StoppingCriteriaList

    device = host.device()
    progress = host.progress("Expanding prompt", request.max_new_tokens)
    inputs = _chat(tokenizer, system, request.prompt).to(device)
    start = inputs["input_ids"].shape[1]
    # generate() draws from torch's global generator: fork it, so that nobody else's draws change.
    with resident([model], device, host), torch.no_grad(), _forked_rng(device):
        torch.manual_seed(request.seed)
        tokens = model.generate(
            **inputs,
            **sampling_arguments(request),
            stopping_criteria=StoppingCriteriaList([_token_counter(progress, start)]),
        )
    return clean_answer(tokenizer.decode(tokens[0, start:], skip_special_tokens=True))


def _forked_rng(device: str) -> Any:
    import torch

    return torch.random.fork_rng(devices=[device] if device.startswith("cuda") else [])


def sampling_arguments(request: ExpandRequest) -> dict[str, Any]:
    """Return the arguments `generate` is called with."""
    arguments: dict[str, Any] = {"max_new_tokens": request.max_new_tokens}
    if request.temperature == 0:
        return arguments | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return arguments | {"do_sample": True, "temperature": request.temperature, "top_p": TOP_P, "top_k": TOP_K}


def _chat(tokenizer: PreTrainedTokenizerBase, system: str, prompt: str) -> Any:
    """Return input_ids and attention_mask of the conversation, thinking switched off."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
    )


def _token_counter(progress: Progress, start: int) -> StoppingCriteria:
    """Return a criterion that never stops `generate`, but reports each token so that a cancel can."""
    import torch
    from transformers import StoppingCriteria

    class TokenCounter(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            progress.step(input_ids.shape[1] - start)
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return TokenCounter()


def clean_answer(text: str) -> str:
    """Return the answer without its thinking, on one line."""
    return " ".join(THINKING.sub("", text).split())
