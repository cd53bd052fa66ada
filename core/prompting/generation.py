"""Text generation with transformers: a model and its processor from a folder, and `generate` with progress."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.gguf_tokenizer import TURN_END
from ..checkpoints.pretrained import class_name, reading
from ..checkpoints.tokenizers import tokenizer_of
from ..errors import PiyingError, clipped
from ..executor.model_cache import cached_model
from ..files.folder import CONFIG, CONFIG_BYTES
from ..files.json_file import read_json_or_empty
from ..files.scan import find_files
from ..main_memory import is_out_of_memory
from .answers import clean_answer
from .chat_prefix import cache_argument, chat_prefix
from .chat_template import encode, folder_template
from .family import PROMPT, SEEING
from .messages import Answer, Chat, Picture
from .request import ExpandRequest
from .sampling import Processor, Writing, sampling_arguments

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel

    from ..catalog.installed_model import InstalledModel
    from ..host.base import Host
    from .compile import CompiledStep

log = logging.getLogger("piying")


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


def has_vision(folder: Path) -> bool:
    """Return whether the model in a folder accepts pictures."""
    return class_name(read_json_or_empty(folder / CONFIG, CONFIG_BYTES)) in SEEING.values()


def model_files(found: InstalledModel) -> list[list[Any]]:
    """Return name, size and times of all files that determine how a model answers, as its identity in caches."""
    places = [place for part in found.parts.values() for place in part] or [found.path]
    files = []
    for place in places:
        inside = list(find_files(place, 0, FOLDER_FILES)) if place.is_dir() else [place]
        states = [(path.name, path.stat()) for path in inside]
        files += [[name, at.st_size, at.st_mtime_ns, at.st_ctime_ns] for name, at in states]
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
            if tokenizer.chat_template is None:
                tokenizer.chat_template = folder_template(folder)
        return Processor(tokenizer, image_processor)

    return cached_model("prompt/processor", str(model_files(found)), read)


def configure_single_file(model: PreTrainedModel, processor: Processor) -> None:
    """Set what a model folder's configuration would have set: its end tokens, and Qwen3's thinking off.

    ComfyUI's own tokenizer is that of Qwen2.5: its template has no switch for thinking, and other names for the two
    tokens around it. An empty thought, as Qwen3's template writes one, is appended to it by the tokens' numbers.
    """
    tokenizer = processor.tokenizer
    end: Any = tokenizer.eos_token_id
    turn_end: Any = tokenizer.convert_tokens_to_ids(getattr(tokenizer, TURN_END, tokenizer.eos_token))
    model.generation_config.eos_token_id = sorted({end, turn_end})
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    template = tokenizer.chat_template
    if model.config.model_type != QWEN3 or not isinstance(template, str) or THINKING_SWITCH in template:
        return
    begin, end = (tokenizer.convert_ids_to_tokens(number) for number in THINKING_TOKENS)
    if begin is not None and end is not None:
        thought = f"{{{{- '{begin}\\n\\n{end}\\n\\n' }}}}"
        condition = f"add_generation_prompt and not {THINKING_SWITCH}"
        tokenizer.chat_template = f"{template}{{%- if {condition} %}}{thought}{{%- endif %}}"


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

    try:
        encoded = encode(processor.tokenizer, processor.image_processor, chat, picture)
        require_positions(model, encoded.length, request.max_new_tokens)
        writing = Writing.of(model, processor, chat, encoded.length)
        # The model's penalty is one of the rules.
        arguments = encoded.on(device, model.dtype) | sampling_arguments(request) | {"repetition_penalty": 1.0}
        # Compiled code has a cache of its own, and a picture's tokens are no text.
        has_prefix = step is None and processor.image_processor is None
        prefix = chat_prefix(model, processor.tokenizer, chat, encoded, device=device) if has_prefix else None

        def run(**further: Any) -> torch.Tensor:
            # generate() draws from torch's global generator: fork it, so that other nodes' draws stay the same.
            with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
                torch.manual_seed(request.seed)
                criteria = StoppingCriteriaList([writing.criterion(progress, total)])
                processors = LogitsProcessorList(writing.rules())
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
        reason = clipped(" ".join(str(error).split()), 300)
        raise PiyingError(
            f"The prompt model failed ({type(error).__name__}: {reason}). Choose another one."
        ) from error
    finished = int(answer[-1]) in writing.ends
    text = writing.text(answer[:-1] if finished else answer)
    progress.step(total)
    progress.text(clean_answer(text))
    return Answer(text, finished)
