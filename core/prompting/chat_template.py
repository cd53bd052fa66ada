"""Chat templates: a chat as a model's tokens, with thinking off and without control tokens from the user."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..checkpoints.tokenizers import SETTINGS, tokenized
from ..errors import PiyingError, clipped, explain_os_errors
from ..files.file_state import cached_by_state
from ..files.json_file import read_json
from ..files.open import read_header
from ..main_memory import is_memory_short
from .messages import Chat, Picture

if TYPE_CHECKING:
    import torch
    from jinja2.nodes import Template
    from transformers import PreTrainedTokenizerBase


NO_TEMPLATE = (
    "The prompt model has no chat template: it was not taught to answer. Choose an instruct model, such as Qwen3-0.6B."
)
TEMPLATE_FILE, TEMPLATE_KEY = "chat_template.jinja", "chat_template"
TEMPLATE_TABLE = "chat_template.json"  # of Qwen-VL folders: for their processor class, which needs torchvision
TEMPLATE_CODE = "<template>"  # what Jinja calls the file of the code it makes
LARGEST = 1e6  # number in a template
MOST_REPEATS = 1000  # of a text in one
TEMPLATE_BYTES = 1 << 20  # the longest published have 20 KB
MAX_SECONDS = 10.0  # of a template; published ones take milliseconds
IMAGE_TOKEN = "<|image_pad|>"  # of Qwen2-VL, Qwen2.5-VL and Qwen3-VL; one for each merged patch
CONTROL_MARKS = "<[◁|"  # control tokens contain one of these; words added to a vocabulary do not


@dataclass(frozen=True)
class ChatTokens:
    """The inputs of `generate`, on the CPU; `length` counts the tokens of the chat."""

    inputs: dict[str, torch.Tensor]
    length: int

    def on(self, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the inputs on a device, pixels in the model's number type."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in moved.items()}


def encode(
    tokenizer: PreTrainedTokenizerBase, image_processor: Any, chat: Chat, picture: Picture | None
) -> ChatTokens:
    """Return a chat as tokens.

    Args:
        tokenizer: with the model's chat template.
        image_processor: the model's; None for a model without vision.
        chat: the messages.
        picture: goes before the user's message; ignored by a model without vision.

    Raises:
        PiyingError: the model has no chat template, or a broken one.
    """
    if image_processor is None or picture is None:
        text, pixels = render(tokenizer, chat), {}
    else:
        pixels = dict(image_processor(images=[picture.image], return_tensors="pt"))
        patches = int(pixels["image_grid_thw"][0].prod()) // image_processor.merge_size**2
        text = render(tokenizer, chat, picture=True).replace(IMAGE_TOKEN, IMAGE_TOKEN * patches)
    # The template has written the tokens that begin a text already.
    encoded = tokenized(tokenizer, text, add_special_tokens=False, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")} | pixels
    if pixels:
        # Marks the picture's tokens, whose positions have two dimensions.
        image_token: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        inputs["mm_token_type_ids"] = inputs["input_ids"].eq(image_token).int()
    return ChatTokens(inputs, inputs["input_ids"].shape[1])


def render(tokenizer: PreTrainedTokenizerBase, chat: Chat, picture: bool = False) -> str:
    """Return the text a model is given, up to where its answer begins.

    Raises:
        PiyingError: the model has no chat template, or a broken one.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise PiyingError(NO_TEMPLATE)
    if reason := _why_not_compiled(tokenizer.get_chat_template()):
        raise PiyingError(reason)
    system, user, opening = (without_control_tokens(t, tokenizer) for t in (chat.system, chat.user, chat.opening))
    turns = [message for line, answer in chat.examples for message in _turn(line, answer, tokenizer)]
    # Templates raise where they know no system prompt, as Gemma's does: then it goes into the first user message.
    with contextlib.suppress(TemplateError):
        messages = [{"role": "system", "content": system}, *turns, _user_message(user, picture)]
        return _apply(tokenizer, messages) + opening
    try:
        if turns:
            turns[0] = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
        else:
            user = f"{system}\n\n{user}"
        return _apply(tokenizer, [*turns, _user_message(user, picture)]) + opening
    except TemplateError as error:
        raise _broken(error) from error


def why_no_template(place: Path) -> str:
    """Return why no chat can be rendered with the template of a model's folder, or inside its GGUF file; else "".

    Whether it compiles is looked at, not what it makes of a chat.
    """
    try:
        template = folder_template(place) if place.is_dir() else _template_inside(place)
    except (PiyingError, OSError) as error:
        return str(error)
    if isinstance(template, list):  # of several for several uses; the tokenizer takes that of this name
        named = [each.get("template") for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0] if named else None
    if not template:
        return f"{place}: {NO_TEMPLATE}"
    reason = _why_not_compiled(template) if isinstance(template, str) else _is_broken("it is no text")
    return f"{place}: {reason}" if reason else ""


def folder_template(folder: Path) -> Any:
    """Return the chat template of a model's folder, from the first place that has one; None where none has.

    Raises:
        PiyingError: the file that holds it cannot be read.
    """
    if (folder / TEMPLATE_FILE).is_file():
        with explain_os_errors(f"Cannot read {folder / TEMPLATE_FILE}"), (folder / TEMPLATE_FILE).open("rb") as file:
            return file.read(TEMPLATE_BYTES).decode("utf-8", "replace")
    for name in (SETTINGS, TEMPLATE_TABLE):
        table = read_json(folder / name) if (folder / name).is_file() else {}
        if table.get(TEMPLATE_KEY) is not None:
            return table[TEMPLATE_KEY]
    return None


@cached_by_state
def _template_inside(file: Path) -> Any:
    return read_header(file).metadata.get(f"tokenizer.{TEMPLATE_KEY}")


@lru_cache(maxsize=64)
def _why_not_compiled(template: str) -> str:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around an answer, which transformers adds to Jinja's."""

        tags = {"generation"}

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            found: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return found

    environment = ImmutableSandboxedEnvironment(extensions=[Generation, loopcontrols])
    try:
        # Before it is compiled: Jinja computes what is constant then, in Python's C code, which nothing stops.
        if _is_costly(environment.parse(template)):
            return _is_broken("it computes with numbers that no chat needs")
        environment.from_string(template)
    # Python compiles what Jinja makes of it, and refuses what is nested too deep.
    except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
        return _is_broken(error)
    return ""


def _is_costly(template: Template) -> bool:
    """Return whether a template has a power, a large number, or text that is repeated a large number of times."""
    from jinja2 import nodes

    if template.find(nodes.Pow) is not None:
        return True
    if any(isinstance(one.value, (int, float)) and abs(one.value) > LARGEST for one in template.find_all(nodes.Const)):
        return True
    for product in template.find_all(nodes.Mul):
        parts = [product.left, product.right, *product.find_all((nodes.Const, nodes.List, nodes.Mul))]
        repeats = any(isinstance(p, nodes.List) or isinstance(getattr(p, "value", 0), str) for p in parts)
        factors = [p.value for p in parts if isinstance(p, nodes.Const) and isinstance(p.value, int)]
        if repeats and (product.find(nodes.Mul) is not None or max(factors, default=0) > MOST_REPEATS):
            return True
    return False


def _turn(line: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    said = {"user": line, "assistant": answer}
    return [{"role": role, "content": without_control_tokens(text, tokenizer)} for role, text in said.items()]


def _broken(error: BaseException) -> PiyingError:
    return PiyingError(_is_broken(error))


def _is_broken(error: BaseException | str) -> str:
    reason = clipped(" ".join(str(error).split()), 200) or type(error).__name__
    return f"The prompt model's chat template is broken ({reason}). Fetch it again."


def without_control_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text that cannot end its own turn of the chat: the tokenizer's control tokens become spaces."""
    # Longest first: a token may contain another.
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        if any(mark in token for mark in CONTROL_MARKS):
            text = text.replace(token, " ")
    return text


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> str:
    try:
        with _time_limit(MAX_SECONDS):
            # Templates ignore enable_thinking where their model has no thinking.
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        SyntaxError,
        TimeoutError,
        TypeError,
        ValueError,
    ) as error:
        raise _broken(error) from error
    except MemoryError as error:
        if is_memory_short(error):
            raise
        # Without its cause: another plan would leave it no more memory.
        raise _broken(error) from None
    if not str(text).strip():
        raise _broken(ValueError("it writes nothing"))
    return str(text)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stop Python code inside the block that takes longer: a template may count to 10¹⁵.

    The sandbox of transformers keeps a template from files and from other objects, and lets it loop. Signals reach
    the main thread alone, and ComfyUI runs nodes in another one: each line is timed instead.

    Raises:
        TimeoutError: it took longer.
    """
    end, before = time.monotonic() + seconds, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        if time.monotonic() > end:
            raise TimeoutError(f"it takes longer than {seconds:g} seconds")
        return trace if frame.f_code.co_filename == TEMPLATE_CODE else None

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _user_message(text: str, picture: bool) -> dict[str, Any]:
    # A list of parts only where there is a picture: templates of text models take strings alone.
    content = [{"type": "image"}, {"type": "text", "text": text}] if picture else text
    return {"role": "user", "content": content}
