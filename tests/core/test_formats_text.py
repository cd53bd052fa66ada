"""Text encoders and language models in every form that people have them in."""

from __future__ import annotations

import io

import pytest
import torch
from piying.core.checkpoints import load_component
from piying.core.checkpoints.tokenizers import tokenizer_in
from piying.core.errors import PiyingError
from piying.core.quantization.fp8_linear import Fp8Linear

from .formats import models, names, writers

TOKENS = torch.tensor([[5, 9, 33, 1, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0]])


def run(model):
    with torch.no_grad():
        return model(TOKENS, attention_mask=MASK)[0]


@pytest.fixture(scope="module")
def model():
    return models.umt5()


def saved(model):
    """Return what transformers writes: the embeddings once, under `shared`."""
    return {name: tensor for name, tensor in models.tensors(model).items() if "embed_tokens" not in name}


def assert_same(loaded, expected):
    found, wanted = loaded.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert torch.equal(run(loaded), run(expected))


def test_names_of_the_original_code(model):
    shapes = {name: tuple(tensor.shape) for name, tensor in names.umt5(models.tensors(model)).items()}
    assert shapes["token_embedding.weight"] == (99, 48)
    assert shapes["blocks.2.attn.q.weight"] == (128, 48)
    assert shapes["blocks.1.pos_embedding.embedding.weight"] == (32, 2)
    assert shapes["blocks.0.ffn.gate.0.weight"] == shapes["blocks.0.ffn.fc1.weight"] == (80, 48)
    assert shapes["blocks.0.ffn.fc2.weight"] == (48, 80)
    assert shapes["blocks.0.norm1.weight"] == shapes["blocks.0.norm2.weight"] == shapes["norm.weight"] == (48,)
    assert len(shapes) == 3 * 10 + 2


def test_umt5_as_published(model, tmp_path):
    original = names.umt5(models.tensors(model))
    torch.save(original, tmp_path / "models_t5_umt5-xxl-enc.pth")
    assert_same(load_component("text_encoder", tmp_path / "models_t5_umt5-xxl-enc.pth"), model)
    assert_same(load_component("text_encoder", writers.save(original, tmp_path / "umt5.safetensors")), model)


@pytest.mark.parametrize("embedding", ["shared.weight", "encoder.embed_tokens.weight", "both"])
def test_umt5_in_one_file(model, tmp_path, embedding):
    tensors = saved(model)
    if embedding != "shared.weight":
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    if embedding == "encoder.embed_tokens.weight":
        del tensors["shared.weight"]
    loaded = load_component("text_encoder", writers.save(tensors, tmp_path / "umt5.safetensors"))
    assert_same(loaded, model)
    assert loaded.shared.weight is loaded.encoder.embed_tokens.weight, "held once"


def layer_weights(tensors):
    return {name: tensor for name, tensor in tensors.items() if "relative_attention" not in name}


@pytest.mark.parametrize("form", [writers.comfy_old, writers.comfy_new, writers.plain_fp8])
def test_umt5_in_fp8(model, tmp_path, form):
    tensors = form(layer_weights(saved(model))) | {n: t for n, t in saved(model).items() if "relative" in n}
    path = writers.save(tensors, tmp_path / "umt5.safetensors")
    expected = models.umt5()
    plain = {n: t.float() for n, t in writers.plain_fp8(layer_weights(saved(model))).items()}
    restored = plain if form is writers.plain_fp8 else writers.dequantised(layer_weights(saved(model)), 0)
    expected.load_state_dict(restored, strict=False)
    loaded = load_component("text_encoder", path, dtype=torch.float32)
    assert isinstance(loaded.encoder.block[0].layer[1].DenseReluDense.wo, Fp8Linear)
    assert torch.equal(run(loaded), run(expected))


@pytest.fixture(scope="module")
def pieces():
    """A SentencePiece model with T5's marks: padding 0, end 1."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    text = ["a red cat sits on the blue sea", "the small boat goes over the sea", "cats and boats"] * 5
    options = {"vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False}
    SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=written, minloglevel=2, **options)
    return written.getvalue()


def test_the_tokenizer_inside_the_file(model, tmp_path, pieces):
    from sentencepiece import SentencePieceProcessor

    tensors = saved(model) | {"spiece_model": torch.frombuffer(bytearray(pieces), dtype=torch.uint8)}
    path = writers.save(tensors, tmp_path / "umt5.safetensors")
    assert_same(load_component("text_encoder", path), model)
    tokenizer = tokenizer_in(path)
    encoded = tokenizer(["the sea", "a cat"], padding="max_length", max_length=12, return_tensors="pt")
    expected = SentencePieceProcessor(model_proto=pieces).encode("the sea")
    assert encoded.input_ids.shape == encoded.attention_mask.shape == (2, 12)
    assert encoded.input_ids[0].tolist() == [*expected, 1] + [0] * (11 - len(expected))
    assert encoded.attention_mask[0].sum() == len(expected) + 1
    assert tokenizer("the sea " * 30, max_length=9).input_ids[0, -1] == 1
    assert tokenizer.decode(encoded.input_ids[0]) == "the sea"


def test_the_pipeline_takes_that_tokenizer(pieces):
    from diffusers import WanVACEPipeline
    from piying.core.checkpoints.sentencepiece_tokenizer import SentencePieceTokenizer

    pipeline = WanVACEPipeline(SentencePieceTokenizer(pieces), models.umt5(vocab_size=99), None, None)
    embeds, negative = pipeline.encode_prompt("the sea", "", max_sequence_length=16, device="cpu")
    assert embeds.shape == negative.shape == (1, 16, 48)


def test_files_without_a_tokenizer_or_with_a_broken_one(model, tmp_path):
    assert tokenizer_in(writers.save(saved(model), tmp_path / "none.safetensors")) is None
    broken = saved(model) | {"spiece_model": torch.arange(99, dtype=torch.uint8)}
    with pytest.raises(PiyingError, match="the tokenizer in it cannot be read"):
        tokenizer_in(writers.save(broken, tmp_path / "broken.safetensors"))


@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_in_one_file(tmp_path, tied):
    model = models.qwen3(tie_word_embeddings=tied)
    tensors = {n: t for n, t in models.tensors(model).items() if not (tied and n == "lm_head.weight")}
    loaded = load_component("prompt_model", writers.save(tensors, tmp_path / "qwen.safetensors"))
    assert_same(loaded, model)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_qwen3_in_fp8_squares(tmp_path):
    model = models.qwen3()
    kept = {n: t for n, t in models.tensors(model).items() if n != "lm_head.weight"}
    tensors, restored = writers.deepseek(kept)
    path = writers.save(tensors, tmp_path / "model.safetensors")
    model.config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model.config.save_pretrained(tmp_path)
    model.load_state_dict(restored, strict=False)
    for place in (path, tmp_path):
        loaded = load_component("prompt_model", place, dtype=torch.float32)
        assert isinstance(loaded.model.layers[1].mlp.down_proj, Fp8Linear)
        assert torch.equal(run(loaded), run(model))


def test_a_scale_that_fits_no_weight(tmp_path):
    kept = {n: t for n, t in models.tensors(models.qwen3()).items() if n != "lm_head.weight"}
    tensors, _ = writers.deepseek(kept)
    tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = torch.ones(2, 3)
    with pytest.raises(PiyingError, match=r"a scale of shape \[2, 3\] fits no weight"):
        load_component("prompt_model", writers.save(tensors, tmp_path / "x.safetensors"), dtype=torch.float32)


def other_language_models():
    import transformers

    common = {"vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    common |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
    for name in ("Qwen2", "Ernie4_5", "Glm", "Glm4"):
        config = getattr(transformers, f"{name}Config")(**common)
        yield name, models.randomised(getattr(transformers, f"{name}ForCausalLM")(config))


@pytest.mark.parametrize("name", ["Qwen2", "Ernie4_5", "Glm", "Glm4"])
def test_folders_of_other_language_models(tmp_path, name):
    model = dict(other_language_models())[name]
    model.save_pretrained(tmp_path)
    assert_same(load_component("prompt_model", tmp_path, dtype=torch.float32), model)
