"""A chat as a model's tokens: its own template, thinking off, no control tokens from the user."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from .messages import Chat
from .picture import Picture

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


IMAGE_TOKEN = "<|image_pad|>"  # of Qwen2-VL, Qwen2.5-VL and Qwen3-VL; one for each merged patch
MARKERS = "<[◁|"  # control tokens have one of these; words that were added to a vocabulary do not


@dataclass(frozen=True)
class ChatTokens:
    """What `generate` takes, on the CPU; `length` counts the tokens of the chat."""

    inputs: dict[str, torch.Tensor]
    length: int

    def on(self, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the inputs on a device, pixels in the model's number type."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in moved.items()}


def encode(tokenizer: PreTrainedTokenizerBase, images: Any, chat: Chat, picture: Picture | None) -> ChatTokens:
    """Return a chat as tokens.

    Args:
        tokenizer: with the model's chat template.
        images: the model's image processor, None for a model without eyes.
        chat: what to say.
        picture: what to look at; left out where the model has no eyes.

    Raises:
        PiyingError: the model has no chat template.
    """
    if images is None or picture is None:
        return _encode_text(tokenizer, render(tokenizer, chat))
    seen = images(images=[picture.image], return_tensors="pt")
    patches = int(seen["image_grid_thw"][0].prod()) // images.merge_size**2
    text = render(tokenizer, chat, picture=True).replace(IMAGE_TOKEN, IMAGE_TOKEN * patches)
    encoded = _encode_text(tokenizer, text)
    # Which tokens stand for the picture: their positions are places in it.
    image_token: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    kinds = encoded.inputs["input_ids"].eq(image_token).int()
    return ChatTokens({**encoded.inputs, **seen, "mm_token_type_ids": kinds}, encoded.length)


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> ChatTokens:
    # The template has written the tokens that begin a text already.
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    named = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return ChatTokens(named, named["input_ids"].shape[1])


def render(tokenizer: PreTrainedTokenizerBase, chat: Chat, picture: bool = False) -> str:
    """Return the text a model is given, up to where its answer begins.

    Raises:
        PiyingError: the model has no chat template, or a broken one.
    """
    if not tokenizer.chat_template:
        raise PiyingError(
            "The prompt model has no chat template: it was not taught to answer. "
            "Choose an instruct model, such as Qwen3-0.6B."
        )
    system, user = (without_control_tokens(text, tokenizer) for text in (chat.system, chat.user))
    return _applied(tokenizer, system, user, picture)


def _applied(tokenizer: PreTrainedTokenizerBase, system: str, user: str, picture: bool) -> str:
    from jinja2 import TemplateError

    apart = [_message("system", system), _message("user", user, picture)]
    together = [_message("user", f"{system}\n\n{user}", picture)]
    # Templates raise where they know no system prompt.
    with contextlib.suppress(TemplateError):
        return _apply(tokenizer, apart)
    try:
        return _apply(tokenizer, together)
    except TemplateError as error:
        reason = " ".join(str(error).split())[:200]
        raise PiyingError(f"The prompt model's chat template is broken ({reason}). Fetch it again.") from error


def without_control_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text that cannot end its own turn of the chat: the tokenizer's control tokens become blanks."""
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        if any(mark in token for mark in MARKERS):
            text = text.replace(token, " ")
    return text


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> str:
    # Every template takes enable_thinking; those without thinking do not look at it.
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return str(text)


def _message(role: str, text: str, picture: bool = False) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": text}] if picture else text
    return {"role": role, "content": content}
