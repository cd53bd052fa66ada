"""A language model on this machine, through transformers: its folder, its chat template, `generate`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.discovery import installed_models
from ..catalog.installed_model import AUTO, InstalledModel
from ..catalog.selection import ModelHandle, choose_model
from ..checkpoints.pretrained import reading
from ..errors import PiyingError
from ..executor.model_cache import cached_model
from ..executor.placement import placed, resident
from ..families.diffusion_model import ModelParts
from ..files.json_file import read_json, read_json_or_empty
from ..host.base import Host
from ..planner.machine import resolve_dtype
from .chat_template import ChatTokens, encode
from .clean import clean_answer
from .compile import CompiledStep, compiled_step, left_out, why_not
from .family import PROMPT
from .messages import Chat
from .one_file import finish_alone
from .picture import Picture
from .request import ExpandRequest
from .watching import watch
from .writer import Answer, Write

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..executor.execute_plan import Meter
    from ..planner.plan_types import PhasePlan, Plan

log = logging.getLogger("piying")


# Sampling advised for Qwen3 and Qwen2.5 without thinking, in their model cards.
TOP_P, TOP_K = 0.8, 20
# What decides how a folder answers, besides its weights.
WORDS = "tokenizer"  # the part of a model in one file that lies beside it
READ_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
BROKEN = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, ImportError, OSError)


@dataclass(frozen=True)
class Reader:
    """What turns words and pictures into what the model reads; `images` is None for a model without eyes."""

    tokenizer: PreTrainedTokenizerBase
    images: Any


class LocalModel:
    """A writer: the model a handle stands for."""

    def __init__(self, handle: ModelHandle, host: Host, picture: bool = False) -> None:
        """Choose the model; with a picture to look at, `auto` prefers one that can.

        Raises:
            PiyingError: the handle names a model that is not installed.
        """
        self._host, self._handle = host, handle
        self.found = choose_model(_seeing(handle, host) if picture else handle, host)
        self.name, self.plain = self.found.name, self.found.is_built_in
        self.sees = can_see(self.found.path)
        self._ran: dict[str, Any] = {}

    def identity(self) -> dict[str, Any]:
        """Return the model's files with their sizes and times, and how the user wants it to compute."""
        wishes = {"precision": self._handle.precision, "memory": self._handle.memory, "device": self._host.device()}
        compiled = {"compile_step": True} if self._handle.compile_step else {}
        return {"name": self.name, "files": _places(self.found), **wishes, **compiled}

    def record(self) -> dict[str, Any]:
        """Return the model's name and device; once it has run, how."""
        return {"model": self.name, "device": self._host.device(), **self._ran}

    def hold(self, use: Callable[[Write], str], max_new_tokens: int) -> str:
        """Hold the model where the plan wants it, as long as `use` asks it."""
        return self._held(use) if self.sees else self._planned(use, max_new_tokens)

    def _planned(self, use: Callable[[Write], str], max_new_tokens: int) -> str:
        from ..executor.execute_plan import Meter, execute_plan
        from .phases import PromptWork, phases

        components = ModelParts(PROMPT, self.found, self._host).components()
        device, wanted, notes = self._host.device(), self._handle.compile_step, dict[str, Any]()
        text, ran = execute_plan(
            phases(components, PromptWork(max_new_tokens=max_new_tokens, fixed_cache=wanted)),
            self._handle,
            self._host,
            PromptRun(self.found, use, self._host, device, Meter(device), wanted, notes),
            what_fits=lambda machine: "Choose a smaller model.",
        )
        self._ran = {**ran, **notes}
        return text

    def _held(self, use: Callable[[Write], str]) -> str:
        """Hold a model with eyes, whose layout the plans do not know, whole on the device."""
        import torch

        host = self._host
        dtype = resolve_dtype(self._handle.precision, host.device())
        self._ran = {"dtype": str(dtype)}
        if self._handle.compile_step:
            self._ran |= left_out("models that see are not compiled")
        model = load(self.found, dtype, host)
        reader = load_reader(self.found)
        with resident([model], host.device(), host), torch.no_grad():
            return use(lambda chat, picture, request: generate(model, reader, chat, picture, request, host))


def _seeing(handle: ModelHandle, host: Host) -> ModelHandle:
    """Return a handle of a model with eyes in place of `auto`, where one is installed that fits."""
    from ..planner.machine import memory_bytes

    limit = memory_bytes(host.device())
    fitting = [f for f in installed_models(handle.family, host) if f.size <= limit and can_see(f.path)]
    if handle.model != AUTO or not fitting:
        return handle
    return replace(handle, model=max(fitting, key=lambda found: found.size).name)


def can_see(folder: Path) -> bool:
    """Return whether a model folder holds one that reads pictures."""
    return "vision_config" in read_json_or_empty(folder / "config.json")


def _places(found: InstalledModel) -> list[list[Any]]:
    """Return the files of a model in a folder, or of its parts."""
    places = [place for part in found.parts.values() for place in part] or [found.path]
    return [file for place in places for file in _files(place)]


def _files(folder: Path) -> list[list[Any]]:
    found = sorted({path for pattern in READ_FILES for path in folder.glob(pattern)}) or [folder]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found]


def load(found: InstalledModel, dtype: torch.dtype, host: Host) -> PreTrainedModel:
    """Return a model in host memory, read by transformers and kept between runs.

    Raises:
        PiyingError: the folder is incomplete, damaged, or another model's.
    """
    host.check_cancelled()
    return cached_model("prompt", (found.path, dtype), lambda: _read_model(found, dtype), host, size=found.size)


def load_reader(found: InstalledModel) -> Reader:
    """Return what reads for a model, kept between runs.

    Raises:
        PiyingError: the folder is incomplete or damaged.
    """
    folder = found.place(WORDS)[0] if found.parts else found.path
    return cached_model("prompt/reader", str(_places(found)), lambda: _read_reader(folder))


def _read_model(found: InstalledModel, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    log.info("Loading prompt model: %s", found.name)
    auto: Any = AutoModelForImageTextToText if can_see(found.path) else AutoModelForCausalLM
    with reading(found.path, "prompt"):
        model, info = auto.from_pretrained(
            found.path, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"]:  # transformers fills them with random numbers
            first, count = min(info["missing_keys"]), len(info["missing_keys"])
            raise ValueError(f"{count} tensors are not in its files, {first} first")
    return model.eval()  # type: ignore[no-any-return]


def _read_reader(folder: Path) -> Reader:
    from transformers import AutoImageProcessor, AutoTokenizer

    with reading(folder, "prompt"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        images = AutoImageProcessor.from_pretrained(folder, local_files_only=True) if can_see(folder) else None
        if tokenizer.chat_template is None and (folder / "chat_template.json").is_file():
            # Where the Qwen-VL folders keep it, for the processor that we do without.
            stored = read_json(folder / "chat_template.json")
            tokenizer.chat_template = stored["chat_template"]
    return Reader(tokenizer, images)


def generate(
    model: PreTrainedModel,
    reader: Reader,
    chat: Chat,
    picture: Picture | None,
    request: ExpandRequest,
    host: Host,
    step: CompiledStep | None = None,
) -> Answer:
    """Return what the model answers; the same as `generate` gives for the same seed.

    Args:
        model: on the device it computes on.
        reader: of the same model.
        chat: what it is told.
        picture: what it looks at; for models with eyes.
        request: how it writes.
        host: shown the answer while it grows.
        step: has its code compiled.

    Raises:
        PiyingError: the text is too long for the model, or the model fails.
    """
    progress = host.progress("Expanding prompt", request.max_new_tokens)
    try:
        encoded = encode(reader.tokenizer, reader.images, chat, picture)
        _check_room(model, encoded, request)
        criterion = watch(progress, encoded.length, lambda tokens: clean_answer(_decode(reader, tokens)))
        tokens = _run(model, encoded, request, criterion, host.device(), step)
    except BROKEN as error:
        reason = " ".join(str(error).split())[:300]
        raise PiyingError(
            f"The prompt model failed ({type(error).__name__}: {reason}). Choose another one."
        ) from error
    finished = int(tokens[-1]) in _ends(model)
    text = _decode(reader, tokens[:-1] if finished else tokens)
    progress.text(clean_answer(text))
    return Answer(text, finished)


def _run(
    model: PreTrainedModel,
    encoded: ChatTokens,
    request: ExpandRequest,
    criterion: Any,
    device: str,
    step: CompiledStep | None,
) -> torch.Tensor:
    """Return the tokens of the answer [n], on the CPU."""
    import torch
    from transformers import StoppingCriteriaList

    arguments = encoded.on(device, model.dtype) | sampling_arguments(request)

    def write(**further: Any) -> torch.Tensor:
        # generate() draws from torch's global generator: fork it, so that nobody else's draws change.
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
            torch.manual_seed(request.seed)
            watching = StoppingCriteriaList([criterion])
            generating: Any = model
            return generating.generate(**arguments, stopping_criteria=watching, **further)  # type: ignore[no-any-return]

    tokens = write() if step is None else step.use(write, encoded.length, request.max_new_tokens)
    return tokens[0, encoded.length :].cpu()


def _decode(reader: Reader, tokens: torch.Tensor) -> str:
    # Special tokens stay until the thinking is out: some models' marks of it are among them.
    return str(reader.tokenizer.decode(tokens, skip_special_tokens=False))


def _ends(model: PreTrainedModel) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _check_room(model: PreTrainedModel, encoded: ChatTokens, request: ExpandRequest) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and encoded.length + request.max_new_tokens > limit:
        raise PiyingError(
            f"The prompt takes {encoded.length} tokens and max_new_tokens is {request.max_new_tokens}; "
            f"the prompt model has room for {limit} together. Shorten the prompt, or set max_new_tokens lower."
        )


def sampling_arguments(request: ExpandRequest) -> dict[str, Any]:
    """Return the arguments `generate` is called with."""
    arguments: dict[str, Any] = {"max_new_tokens": request.max_new_tokens}
    if request.temperature == 0:
        return arguments | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return arguments | {"do_sample": True, "temperature": request.temperature, "top_p": TOP_P, "top_k": TOP_K}


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

    found: InstalledModel
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
                placed(model, choice, self.device, self.host, blocks=list(model.model.layers)),
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
        parts = ModelParts(PROMPT, found, self.host)
        model = parts.load(PART, choice)
        if (self.found.path / GENERATION).is_file():  # which tokens end an answer, beside the model's own
            model.generation_config = GenerationConfig.from_pretrained(self.found.path)
        elif self.found.parts:
            finish_alone(model, reader)
        return model
