"""A language model in one file, with words from elsewhere: what its folder would have said."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .local_model import Reader

QWEN3 = "qwen3"
THINKING = (151667, 151668)  # <think> and </think> in tokenizer_config.json of Qwen/Qwen3-*
SWITCH = "enable_thinking"


def finish_alone(model: PreTrainedModel, reader: Reader) -> None:
    """Tell a model which token ends an answer, and a Qwen3 not to think first.

    ComfyUI's own tokenizer is that of Qwen2.5: its template knows no thinking, and it has other names for the two
    tokens around it. An empty thought, as Qwen3's template writes one, is put behind the template by their numbers.
    """
    words = reader.tokenizer
    model.generation_config.eos_token_id = [words.eos_token_id]
    model.generation_config.pad_token_id = words.pad_token_id
    template = words.chat_template
    if model.config.model_type != QWEN3 or not isinstance(template, str) or SWITCH in template:
        return
    begin, end = (words.convert_ids_to_tokens(number) for number in THINKING)
    if begin is not None and end is not None:
        thought = f"{{{{- '{begin}\\n\\n{end}\\n\\n' }}}}"
        words.chat_template = f"{template}{{%- if add_generation_prompt and not {SWITCH} %}}{thought}{{%- endif %}}"
