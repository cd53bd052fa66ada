"""A writer of GGUF files that needs no package: metadata, tensors plain or in Q8_0, names of llama.cpp."""

from __future__ import annotations

import struct

import torch

ALIGNMENT = 32
UINT32, INT32, FLOAT, BOOL, STRING, ARRAY, UINT8 = 4, 5, 6, 7, 8, 9, 0
F32, F16, Q8_0 = 0, 1, 8


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value_of(value):
    """Return kind and bytes of a value of the metadata."""
    if isinstance(value, str):
        return STRING, text(value)
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return (UINT32, struct.pack("<I", value)) if value >= 0 else (INT32, struct.pack("<i", value))
    if isinstance(value, float):
        return FLOAT, struct.pack("<f", value)
    if isinstance(value, bytes):
        return ARRAY, struct.pack("<IQ", UINT8, len(value)) + value
    kind = value_of(value[0])[0] if value else UINT32
    return ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(value_of(one)[1] for one in value)


def q8_0(tensor):
    """Return 32 weights in 34 bytes: an fp16 scale, and what is nearest in 8 bits."""
    blocks = tensor.float().reshape(-1, 32)
    scale = (blocks.abs().amax(dim=1, keepdim=True) / 127).half()
    values = (blocks / scale.float().clamp(min=1e-8)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], dim=1).numpy().tobytes()


def packed(tensor, kind):
    is_packed = kind == Q8_0 and tensor.ndim == 2 and tensor.shape[1] % 32 == 0
    return (Q8_0, q8_0(tensor)) if is_packed else (F32, tensor.float().contiguous().numpy().tobytes())


def save(tensors, path, metadata, kind=F32):
    """Write a file; with Q8_0 matrices are packed and the rest is fp32."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for name, value in metadata.items():
        number, raw = value_of(value)
        head += text(name) + struct.pack("<I", number) + raw
    body = b""
    for name, tensor in tensors.items():
        number, raw = packed(tensor, kind)
        head += text(name) + struct.pack("<I", tensor.ndim) + struct.pack(f"<{tensor.ndim}Q", *tensor.shape[::-1])
        head += struct.pack("<IQ", number, len(body))
        body += raw + b"\0" * (-len(raw) % ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + b"\0" * (-len(head) % ALIGNMENT) + body)
    return path


T5_NAMES = {
    "layer.0.layer_norm": "attn_norm",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.SelfAttention.": "attn_",
    "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
    "encoder.final_layer_norm": "enc.output_norm",
    "encoder.block.": "enc.blk.",
    "shared": "token_embd",
}
QWEN_NAMES = {
    "model.layers.": "blk.",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLM_NAMES = {
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_up_proj": "ffn_up",
}


def renamed(state, table):
    """Return a transformers state under llama.cpp's names, without embeddings that repeat others."""
    found = {}
    for name, tensor in state.items():
        new = name
        for theirs, ours in table.items():
            new = new.replace(theirs, ours)
        if name != "encoder.embed_tokens.weight":
            found[new] = tensor
    return found


def proto_fields(raw):
    """Yield number and value of the fields of a message of protocol buffers; bytes, or None for what is no message."""
    at = 0

    def variable():
        nonlocal at
        value = shift = 0
        while True:
            value |= (raw[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if raw[at - 1] < 128:
                return value

    while at < len(raw):
        number, kind = divmod(variable(), 8)
        if kind == 2:
            length = variable()
            yield number, raw[at : at + length]
            at += length
        elif kind == 5:
            at += 4
        else:
            variable()


def characters_map(model):
    """Return the normalisation of a SentencePiece model: normalizer_spec.precompiled_charsmap."""
    normalizer = next(value for number, value in proto_fields(model) if number == 3)
    return next(value for number, value in proto_fields(normalizer) if number == 2)


def piece_metadata(words):
    """Return what llama.cpp's converter writes of the pieces of every SentencePiece model."""
    numbers = range(words.vocab_size())
    kinds = [
        2 if words.is_unknown(number) else 3 if words.is_control(number) else 6 if words.is_byte(number) else 1
        for number in numbers
    ]
    return {
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [words.id_to_piece(number) for number in numbers],
        "tokenizer.ggml.scores": [float(words.get_score(number)) for number in numbers],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": words.unk_id(),
        "tokenizer.ggml.eos_token_id": words.eos_id(),
    }


def sentencepiece_metadata(model):
    """Return what llama.cpp's converter writes of a SentencePiece model of unigrams."""
    from sentencepiece import SentencePieceProcessor

    words = SentencePieceProcessor(model_proto=model)
    return {
        "tokenizer.ggml.model": "t5",
        **piece_metadata(words),
        "tokenizer.ggml.padding_token_id": words.pad_id(),
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.precompiled_charsmap": characters_map(model),
    }


def bpe_metadata(table, template, end):
    """Return what llama.cpp's converter writes of a tokenizer.json with byte-level BPE."""
    vocabulary = dict(table["model"]["vocab"])
    added = {one["content"]: one for one in table["added_tokens"]}
    vocabulary |= {content: one["id"] for content, one in added.items()}
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [1 if token not in added else 3 if added[token]["special"] else 4 for token in tokens]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in table["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": vocabulary[end],
        "tokenizer.chat_template": template,
    }
