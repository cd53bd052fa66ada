"""Text generation with transformers: a model and its processor from a folder, and `generate` with progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.pretrained import class_name, reading
from ..checkpoints.tokenizers import tokenizer_of
from ..errors import PiyingError
from ..executor.model_cache import cached_model
from ..files.folder import CONFIG, CONFIG_BYTES
from ..files.json_file import read_json, read_json_or_empty
from ..files.scan import find_files
from ..main_memory import is_out_of_memory
from .answers import clean_answer, ends_in_loop
from .chat_prefix import cache_argument, chat_prefix
from .chat_template import encode
from .family import PROMPT, SEEING
from .messages import Answer, Chat, Picture
from .request import ExpandRequest

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

    from ..catalog.installed_model import InstalledModel
    from ..host.base import Host, Progress
    from .compile import CompiledStep

log = logging.getLogger("piying")


# Sampling recommended for Qwen3 and Qwen2.5 without thinking, in their model cards.
TOP_P, TOP_K = 0.8, 20
# Of answers after worked examples, whose pattern small models go on with for ever: that of Qwen2.5-0.5B-Instruct's own
# generation_config.json.
REPETITION_PENALTY = 1.1
GENERATION_CONFIG = "generation_config.json"
LARGEST_PENALTY = 10.0
TOKENIZER = "tokenizer"  # the part of a single-file model that is not in the file
FOLDER_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")
# What transformers and the models raise on damaged folders, unknown tokens and failing kernels.
MODEL_ERRORS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    OSError,
)
QWEN3 = "qwen3"
THINKING_TOKENS = (151667, 151668)  # <think> and </think> in tokenizer_config.json of Qwen/Qwen3-*
THINKING_SWITCH = "enable_thinking"
SECONDS_BETWEEN_TEXTS = 0.1
# Looking for loops takes longer than a token of a small model: not after each, and not in the beginning.
TOKENS_BETWEEN_LOOP_CHECKS, MIN_LOOP_TOKENS = 16, 32


@dataclass(frozen=True)
class Processor:
    """A model's tokenizer and image processor; the latter is None for a model without vision."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: Any


def has_vision(folder: Path) -> bool:
    """Return whether the model in a folder accepts pictures."""
    return class_name(read_json_or_empty(folder / CONFIG, CONFIG_BYTES)) in SEEING


def model_files(found: InstalledModel) -> list[list[Any]]:
    """Return name, size and time of all files that determine how a model answers, as its identity in caches."""
    places = [place for part in found.parts.values() for place in part] or [found.path]
    files = []
    for place in places:
        inside = list(find_files(place, 0, FOLDER_FILES)) if place.is_dir() else [place]
        files += [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in inside]
    return files


def load_model(found: InstalledModel, dtype: torch.dtype, host: Host) -> PreTrainedModel:
    """Return a model in host memory, read by transformers and cached between runs.

    Raises:
        PiyingError: the folder is incomplete, damaged, or another model's.
    """

    def read() -> PreTrainedModel:
        from ..checkpoints.load import load_pretrained

        log.info("Loading prompt model: %s", found.name)
        model = load_pretrained(found.path, "prompt", PROMPT.index_classes, dtype)
        model.generation_config = generation_config(found.path, model)
        return model

    host.check_cancelled()
    return cached_model("prompt", (found.path, dtype), read, host, size=found.size)


def generation_config(folder: Path, model: PreTrainedModel) -> GenerationConfig:
    """Return the settings of a folder's generation_config.json that are followed, else those of its config.json.

    They are the tokens that end and pad an answer, and a penalty for repetition: how an answer is sampled is the
    request's to say, and the rest chooses code.
    """
    from transformers import GenerationConfig

    said = read_json_or_empty(folder / GENERATION_CONFIG, CONFIG_BYTES)
    config = model.config.get_text_config()
    settings: dict[str, Any] = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = said.get(name, getattr(config, name, None))
        tokens = value if isinstance(value, list) else [value]
        if all(type(token) is int and 0 <= token < config.vocab_size for token in tokens):
            settings[name] = value
    penalty = said.get("repetition_penalty")
    if isinstance(penalty, (int, float)) and 0 < penalty < LARGEST_PENALTY:
        settings["repetition_penalty"] = float(penalty)
    return GenerationConfig(**settings)


def load_processor(found: InstalledModel) -> Processor:
    """Return a model's processor, cached between runs.

    Raises:
        PiyingError: the folder is incomplete or damaged.
    """
    folder = found.place(TOKENIZER)[0] if found.parts else found.path

    def read() -> Processor:
        if folder.is_file():
            return Processor(tokenizer_of(found), None)
        from transformers import AutoImageProcessor, AutoTokenizer

        with reading(folder, "prompt"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            image_processor = None
            if has_vision(folder):
                image_processor = AutoImageProcessor.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
            if tokenizer.chat_template is None and (folder / "chat_template.json").is_file():
                # Qwen-VL folders keep it there for their processor class, which needs torchvision.
                tokenizer.chat_template = read_json(folder / "chat_template.json")["chat_template"]
        return Processor(tokenizer, image_processor)

    return cached_model("prompt/processor", str(model_files(found)), read)


def configure_single_file(model: PreTrainedModel, processor: Processor) -> None:
    """Set what a model folder's configuration would have set: its end tokens, and Qwen3's thinking off.

    ComfyUI's own tokenizer is that of Qwen2.5: its template has no switch for thinking, and other names for the two
    tokens around it. An empty thought, as Qwen3's template writes one, is appended to it by the tokens' numbers.
    """
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    template = tokenizer.chat_template
    if model.config.model_type != QWEN3 or not isinstance(template, str) or THINKING_SWITCH in template:
        return
    begin, end = (tokenizer.convert_ids_to_tokens(number) for number in THINKING_TOKENS)
    if begin is not None and end is not None:
        thought = f"{{{{- '{begin}\\n\\n{end}\\n\\n' }}}}"
        condition = f"add_generation_prompt and not {THINKING_SWITCH}"
        tokenizer.chat_template = f"{template}{{%- if {condition} %}}{thought}{{%- endif %}}"


def penalty_of(model: PreTrainedModel, chat: Chat) -> float:
    """Return the factor by which tokens that an answer has already become less likely; 1 for none."""
    own = float(model.generation_config.repetition_penalty or 1.0)
    return max(own, REPETITION_PENALTY) if chat.examples else own


def sampling_arguments(request: ExpandRequest) -> dict[str, Any]:
    """Return the arguments that make `generate` sample as a request says."""
    arguments: dict[str, Any] = {"max_new_tokens": request.max_new_tokens}
    if request.temperature == 0:
        return arguments | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return arguments | {"do_sample": True, "temperature": request.temperature, "top_p": TOP_P, "top_k": TOP_K}


def require_positions(model: PreTrainedModel, length: int, max_new_tokens: int) -> None:
    """Accept a chat of so many tokens where a model has positions for it and for the longest answer.

    Raises:
        PiyingError: it has not; the numbers are named.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and length + max_new_tokens > limit:
        raise PiyingError(
            f"The prompt takes {length} tokens and max_new_tokens is {max_new_tokens}; the prompt model has room for "
            f"{limit} together. Shorten the prompt, or set max_new_tokens lower."
        )


def generate(
    model: PreTrainedModel,
    processor: Processor,
    chat: Chat,
    *,
    picture: Picture | None,
    request: ExpandRequest,
    host: Host,
    step: CompiledStep | None = None,
    seconds: float = 0.0,
    tokens: int = 0,
) -> Answer:
    """Return a model's answer; the same as transformers' `generate` gives for the same seed.

    Args:
        model: on the device it computes on.
        processor: of the same model.
        chat: the messages.
        picture: shown to models with vision.
        request: length, temperature and seed.
        host: shows the answer while it grows, and stops the run where it is cancelled.
        step: generates with compiled code.
        seconds: what the answer is estimated to take.
        tokens: how long it is asked to be, about, which progress counts to; 0 for as long as it may be.

    Raises:
        PiyingError: the chat is too long for the model, or the model fails.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    generating: Any = model
    total = min(tokens or request.max_new_tokens, request.max_new_tokens)
    progress = host.progress("Expanding prompt", total, seconds=seconds)
    device = host.device()

    def told(said: torch.Tensor) -> str:
        # Special tokens stay until thinking is removed: some models mark it with them.
        return chat.opening + str(processor.tokenizer.decode(said, skip_special_tokens=False))

    try:
        encoded = encode(processor.tokenizer, processor.image_processor, chat, picture)
        require_positions(model, encoded.length, request.max_new_tokens)
        criterion = progress_criterion(progress, encoded.length, total, lambda said: clean_answer(told(said)))
        # The model's penalty is for its answer: over the whole chat it would be one for the words of the line.
        arguments = encoded.on(device, model.dtype) | sampling_arguments(request) | {"repetition_penalty": 1.0}
        penalty = _answer_penalty(penalty_of(model, chat), encoded.length)
        # Compiled code has a cache of its own, and a picture's tokens are no text.
        has_prefix = step is None and processor.image_processor is None
        prefix = chat_prefix(model, processor.tokenizer, chat, encoded, device=device) if has_prefix else None

        def run(**further: Any) -> torch.Tensor:
            # generate() draws from torch's global generator: fork it, so that other nodes' draws stay the same.
            with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
                torch.manual_seed(request.seed)
                criteria = StoppingCriteriaList([criterion])
                processors = LogitsProcessorList([_check_logits, penalty])
                return generating.generate(  # type: ignore[no-any-return]
                    **arguments, stopping_criteria=criteria, logits_processor=processors, **further
                )

        if step is not None:
            output = step.generate(run, encoded.length, request.max_new_tokens)
        else:
            output = run() if prefix is None else run(**{cache_argument(model): prefix})
        answer = output[0, encoded.length :].cpu()
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise PiyingError(
            f"The prompt model failed ({type(error).__name__}: {reason}). Choose another one."
        ) from error
    ends = model.generation_config.eos_token_id
    finished = int(answer[-1]) in (ends if isinstance(ends, list) else [ends])
    text = told(answer[:-1] if finished else answer)
    progress.step(total)
    progress.text(clean_answer(text))
    return Answer(text, finished)


def _check_logits(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Accept the scores of the next token; of NaN the most likely one would be any, to the end of the answer.

    Raises:
        PiyingError: one is NaN or infinite; -inf is that of a token that was ruled out.
    """
    if logits.isnan().any() or logits.isposinf().any():
        raise PiyingError(
            f"Expanding the prompt: the prompt model gave scores that are no numbers (NaN or infinity) after "
            f"{tokens.shape[1]} tokens. Likely cause: its number type is too narrow for its weights, or its files are "
            "damaged. Try precision fp32, fetch the model again, or choose another one."
        )
    return logits


def _answer_penalty(penalty: float, start: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a logits processor that makes tokens of the answer less likely to come again, by a factor."""

    def penalise(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        said = tokens[:, start:]
        if penalty == 1.0 or said.shape[1] == 0:
            return logits
        scores = logits.gather(1, said)
        return logits.scatter(1, said, scores.where(scores < 0, scores / penalty).where(scores > 0, scores * penalty))

    return penalise


def progress_criterion(
    progress: Progress, start: int, total: int, decode: Callable[[torch.Tensor], str]
) -> StoppingCriteria:
    """Return a stopping criterion that reports each token, and stops `generate` only where the answer loops.

    Args:
        progress: called for every token; cancels the run by raising from `step`.
        start: length of the chat in tokens; the answer begins behind it.
        total: tokens that are counted to; an answer that goes on behind them is not over.
        decode: tokens of the answer so far → its text.
    """
    import torch
    from transformers import StoppingCriteria

    class ProgressCriterion(StoppingCriteria):  # type: ignore[misc]
        shown = 0.0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            answer = input_ids[0, start:]
            done = len(answer)
            progress.step(min(done, max(1, total - 1)))
            now = time.monotonic()
            if now - self.shown >= SECONDS_BETWEEN_TEXTS:
                self.shown = now
                progress.text(decode(answer))
            due = done % TOKENS_BETWEEN_LOOP_CHECKS == 0 and done >= MIN_LOOP_TOKENS
            stop = due and ends_in_loop(answer.tolist())
            return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)

    return ProgressCriterion()
