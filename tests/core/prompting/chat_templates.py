"""Chat templates of every family, written for the tests, and a toy tokenizer that has them.

They do for one system prompt and one message what the published ones do, which `test_chat_templates.py`
checks; the published files are not here.
"""

from __future__ import annotations

from functools import cache

from piying.core.catalog.installed_model import built_in

TURN = "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
QWEN2 = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- endif %}"
    f"{{%- for m in messages %}}{TURN}{{%- endfor %}}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = (
    f"{{%- for m in messages %}}{TURN}{{%- endfor %}}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
ERNIE = (
    "{{- '<|begin_of_sentence|>' }}{%- for m in messages %}{%- if m.role == 'system' %}{{- m.content + '\\n' }}"
    "{%- elif m.role == 'user' %}{{- 'User: ' + m.content + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant: ' }}{%- endif %}"
)
GLM4 = (
    "{{- '[gMASK]<sop>' }}{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
# Of a model that always thinks.
GLM_Z1 = GLM4.replace("'<|assistant|>'", "'<|assistant|>\\n<think>'")
NO_SYSTEM = (
    "{%- for m in messages %}{%- if m.role == 'system' %}{{- raise_exception('System role not supported') }}"
    "{%- endif %}{{- '<start_of_turn>' + m.role + '\\n' + m.content + '<end_of_turn>\\n' }}{%- endfor %}"
    "{{- '<start_of_turn>model\\n' }}"
)
QWEN_VL = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.content is string %}{{- m.content }}"
    "{%- else %}{%- for part in m.content %}{%- if part.type == 'image' %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}{%- else %}{{- part.text }}{%- endif %}{%- endfor %}"
    "{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}{{- '<|im_start|>assistant\\n' }}"
)
CONTROL = [
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_sentence|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


@cache
def tokenizer_with(template):
    """Return the toy tokenizer with the control tokens of all families and one family's template."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built_in("prompt").path)
    tokenizer.add_tokens(CONTROL, special_tokens=True)
    # Like ERNIE's and GLM's, it puts a token in front of plain text; a chat has its own already.
    start = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.backend_tokenizer.post_processor = start
    tokenizer.chat_template = template
    return tokenizer
