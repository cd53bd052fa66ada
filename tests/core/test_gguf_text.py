"""GGUF files of text encoders and language models: recognised, read, with the tokenizer inside, offered and run."""

from __future__ import annotations

import json

import pytest
import torch
from piying.core.catalog.discovery import why_no_model
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.checkpoints import load_component
from piying.core.checkpoints.inspect import as_text, inspect
from piying.core.checkpoints.sentencepiece_tokenizer import SentencePieceTokenizer
from piying.core.checkpoints.tokenizers import tokenizer_in
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.host.headless import HeadlessHost
from piying.core.prompting.family import PROMPT
from piying.core.prompting.local_model import LocalModel
from piying.core.prompting.packed_layers import can_pack
from piying.core.wan.family import WAN_VACE
from piying.core.wan.run import sample

from .formats import gguf_writer, models, names, writers
from .test_single_files import NAME, REQUEST, spiece, write_transformer
from .test_single_models import answer

TEXTS = ["the red cat sits", "A small  boat on the blue sea, 3 of them!", "", "红猫 ünïcode ﬁ Ａ"]
TEMPLATE = (BUILT_IN_ROOT / "prompt" / "chat_template.jinja").read_text(encoding="utf-8")


@pytest.fixture
def host(tmp_path):
    yield HeadlessHost(models=[tmp_path], chosen_device="cpu")
    model_cache.evict_models()


def t5_file(path, model, kind=gguf_writer.F32, tokenizer=True):
    metadata = {
        "general.architecture": "t5encoder",
        "t5encoder.attention.head_count": model.config.num_heads,
        "t5encoder.attention.key_length": model.config.d_kv,
        "t5encoder.attention.layer_norm_rms_epsilon": model.config.layer_norm_epsilon,
    }
    metadata |= gguf_writer.sentencepiece_metadata(spiece().numpy().tobytes()) if tokenizer else {}
    tensors = gguf_writer.renamed(models.tensors(model), gguf_writer.T5_NAMES)
    return gguf_writer.save(tensors, path, metadata, kind)


def qwen_file(path, model, architecture="qwen3", kind=gguf_writer.F32, tokenizer=True, **changes):
    config = model.config
    rope = getattr(config, "rope_parameters", {})
    metadata = {
        "general.architecture": architecture,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.embedding_length": config.hidden_size,
        **({f"{architecture}.attention.key_length": config.head_dim} if architecture.startswith("qwen3") else {}),
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": float(rope["rope_theta"]),
        f"{architecture}.context_length": config.max_position_embeddings,
    }
    table = json.loads((BUILT_IN_ROOT / "prompt" / "tokenizer.json").read_text(encoding="utf-8"))
    metadata |= gguf_writer.bpe_metadata(table, TEMPLATE, "<|im_end|>") if tokenizer else {}
    state = {name: tensor for name, tensor in models.tensors(model).items() if name != "lm_head.weight"}
    return gguf_writer.save(gguf_writer.renamed(state, gguf_writer.QWEN_NAMES), path, metadata | changes, kind)


@pytest.mark.parametrize("umt5", [True, False])
def test_a_text_encoder_is_read_as_it_is(tmp_path, umt5):
    model = models.umt5(vocab_size=50) if umt5 else models.mt5()
    path = t5_file(tmp_path / "x.gguf", model)
    found = inspect(path)
    assert found.what == ("a UMT5 text encoder" if umt5 else "a T5 text encoder")
    assert (found.readable, found.needs, found.parts[0].has_tokenizer) == (True, (), True)
    loaded = load_component("text_encoder", path) if umt5 else load_component("text_encoder_2", path)
    tokens = torch.tensor([[5, 9, 30, 1]])
    with torch.no_grad():
        expected, given = model(tokens).last_hidden_state, loaded(tokens).last_hidden_state
    assert torch.equal(expected, given)


def test_its_tokenizer_gives_the_tokens_of_the_original(tmp_path):
    inside = tokenizer_in(t5_file(tmp_path / "x.gguf", models.umt5(vocab_size=50)))
    original = SentencePieceTokenizer(spiece().numpy().tobytes())
    for text in TEXTS:
        given, expected = inside(text, max_length=40), original(text, max_length=40)
        assert torch.equal(given["input_ids"], expected["input_ids"])
        assert torch.equal(given["attention_mask"], expected["attention_mask"])
    ids = original(TEXTS[0], max_length=40)["input_ids"][0]
    assert inside.decode(ids) == original.decode(ids) == TEXTS[0]


def test_without_a_tokenizer_it_says_so(tmp_path):
    path = t5_file(tmp_path / "x.gguf", models.umt5(), tokenizer=False)
    assert "needs    its tokenizer" in as_text(inspect(path))
    assert tokenizer_in(path) is None


def test_a_video_is_made_with_it(tmp_path, host):
    for category in ("diffusion_models", "text_encoders", "vae"):
        (tmp_path / category).mkdir()
    write_transformer(tmp_path / NAME)
    torch.save(names.wan_vae(models.tensors(models.wan_vae())), tmp_path / "vae" / "y.pth")
    encoder = models.umt5(d_ff=96, d_model=48)
    path = t5_file(tmp_path / "text_encoders" / "umt5-xxl.gguf", encoder, gguf_writer.Q8_0)
    assert choose_model(ModelHandle(WAN_VACE), host).place("tokenizer") == (path,)
    frames, record = sample(ModelHandle(WAN_VACE), REQUEST, host)
    assert record["model"] == NAME
    path.unlink()
    plain = {n: t for n, t in models.tensors(encoder).items() if "embed_tokens" not in n}
    writers.save(plain | {"spiece_model": spiece()}, tmp_path / "text_encoders" / "x.safetensors")
    model_cache.evict_models()
    expected, _ = sample(ModelHandle(WAN_VACE), REQUEST, host)
    assert 0 < (frames - expected).abs().max() <= 0.05  # 8 bits in place of 32


def qwen(architecture):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if architecture.startswith("qwen3"):
        return models.qwen3(vocab_size=1101, eos_token_id=2, max_position_embeddings=4096)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 4096}
    return models.randomised(Qwen2ForCausalLM(Qwen2Config(vocab_size=1101, eos_token_id=2, **sizes)))


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3vl", "qwen2", "qwen2vl"])
def test_a_language_model_answers_as_its_folder_does(tmp_path, host, architecture):
    model = qwen(architecture)
    folder = tmp_path / "LLM" / "folder"
    model.save_pretrained(folder)
    for file in (BUILT_IN_ROOT / "prompt").iterdir():
        if "tokenizer" in file.name or file.suffix == ".jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    path = qwen_file(tmp_path / "LLM" / "model-Q8.gguf", model, architecture)
    assert inspect(path).what == "a language model"
    assert model_choices(PROMPT, host) == ["auto", "LLM/folder", "LLM/model-Q8.gguf", "built-in"]
    assert answer("LLM/model-Q8.gguf", host) == answer("LLM/folder", host)


def other(architecture):
    """Return a toy of another architecture, and its state as llama.cpp's converter writes it."""
    import transformers

    sizes = {"vocab_size": 1101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "eos_token_id": 2}
    name = {"llama": "Llama", "ernie4_5": "Ernie4_5", "glm4": "Glm4"}[architecture]
    config = getattr(transformers, f"{name}Config")(**sizes, bos_token_id=1, pad_token_id=0, tie_word_embeddings=False)
    model = models.randomised(getattr(transformers, f"{name}ForCausalLM")(config))
    state = dict(models.tensors(model))
    for key, tensor in state.items():
        if architecture == "llama" and ("q_proj" in key or "k_proj" in key):
            # LlamaModel.permute: the halves of a head's rows become neighbours.
            heads = tensor.shape[0] // config.head_dim
            halves = tensor.reshape(heads, 2, config.head_dim // 2, *tensor.shape[1:])
            state[key] = halves.transpose(1, 2).reshape(tensor.shape)
    return model, gguf_writer.renamed(state, gguf_writer.QWEN_NAMES | gguf_writer.GLM_NAMES)


@pytest.mark.parametrize("architecture", ["llama", "ernie4_5", "glm4"])
def test_other_architectures_are_computed_as_transformers_does(tmp_path, host, architecture):
    model, state = other(architecture)
    table = json.loads((BUILT_IN_ROOT / "prompt" / "tokenizer.json").read_text(encoding="utf-8"))
    metadata = {
        "general.architecture": architecture,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        f"{architecture}.attention.key_length": 32,
        f"{architecture}.embedding_length": 64,
        f"{architecture}.attention.layer_norm_rms_epsilon": model.config.rms_norm_eps,
        f"{architecture}.rope.freq_base": float(model.config.rope_parameters["rope_theta"]),
        f"{architecture}.rope.dimension_count": 16 if architecture == "glm4" else 32,
        f"{architecture}.context_length": 4096,
        **gguf_writer.bpe_metadata(table, TEMPLATE, "<|im_end|>"),
        "tokenizer.ggml.pre": "glm4" if architecture == "glm4" else "llama-bpe",
    }
    path = gguf_writer.save(state, tmp_path / "LLM" / "model.gguf", metadata)
    assert inspect(path).what == "a language model"
    assert model_choices(PROMPT, host) == ["auto", "LLM/model.gguf", "built-in"]
    tokens = torch.arange(3, 43).view(1, 40)
    with torch.no_grad():
        expected, given = model(tokens).logits, load_component("prompt_model", path)(tokens).logits
    assert (given - expected).norm() <= 1e-5 * expected.norm()
    assert answer("LLM/model.gguf", host).text


def test_llama_3_stretches_its_positions(tmp_path):
    _, state = other("llama")
    metadata = {
        "general.architecture": "llama",
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.embedding_length": 64,
        "llama.rope.freq_base": 500_000.0,
        "llama.context_length": 131_072,
    }
    path = gguf_writer.save(state, tmp_path / "model.gguf", metadata)
    rope = load_component("prompt_model", path).config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", 8.0, 8192)


def loaded(name, host, precision="auto"):
    """Return the module that a run of a model computes with."""
    LocalModel(ModelHandle(PROMPT, name, precision), host).run(lambda generate: "", 4)
    return model_cache._models["prompt/prompt_model"][1]


@pytest.mark.skipif(not can_pack(), reason="needs FBGEMM, which is for x86")
def test_packed_weights_stay_packed_on_a_cpu(tmp_path, host, caplog):
    caplog.set_level("INFO", "piying")
    path = qwen_file(tmp_path / "LLM" / "model.gguf", qwen("qwen2"), "qwen2", gguf_writer.Q8_0)
    name, tokens = f"LLM/{path.name}", torch.arange(40).view(1, 40)
    packed = loaded(name, host)
    kinds = {type(layer).__name__ for layer in packed.modules()}
    assert {"PackedLinear", "PackedEmbedding"} <= kinds
    assert not kinds & {"Linear", "Embedding"}
    assert {own for own, layer in packed.named_modules() if getattr(layer, "is_wide", False)} == {
        f"model.layers.{number}.mlp.down_proj" for number in range(2)
    }
    assert "computed in 8 bits, its down_proj in 16" in caplog.text
    with torch.no_grad():
        given = packed(tokens).logits
        assert answer(name, host).text == answer(name, host).text
        whole = loaded(name, host, "fp32")
        assert not any(type(layer).__name__ == "PackedLinear" for layer in whole.modules())
        expected = whole(tokens).logits
    assert 0 < (given - expected).norm() <= 0.03 * expected.norm()


def test_weights_that_are_not_packed_in_their_file_are_computed_as_they_are(tmp_path, host):
    path = qwen_file(tmp_path / "LLM" / "model.gguf", qwen("qwen2"), "qwen2", gguf_writer.F32)
    assert not any(type(layer).__name__ == "PackedLinear" for layer in loaded(f"LLM/{path.name}", host).modules())


def test_its_tokenizer_is_that_of_the_folder(tmp_path):
    from transformers import AutoTokenizer

    inside = tokenizer_in(qwen_file(tmp_path / "x.gguf", qwen("qwen3")))
    original = AutoTokenizer.from_pretrained(BUILT_IN_ROOT / "prompt")
    for text in ["a red ball", "<|im_start|>user\na red ball<|im_end|>\n", "红色的球 rolls"]:
        assert inside(text)["input_ids"] == original(text)["input_ids"]
        assert inside.decode(inside(text)["input_ids"]) == text
    assert (inside.eos_token, inside.chat_template) == ("<|im_end|>", TEMPLATE)


def test_words_and_merges_that_do_not_go_together_are_told(tmp_path):
    path = qwen_file(tmp_path / "x.gguf", qwen("qwen3"), **{"tokenizer.ggml.merges": ["surely none"]})
    with pytest.raises(PiyingError, match="its merge 'surely none' needs 'surely', which is none of its tokens"):
        tokenizer_in(path)


def test_numbers_are_split_as_the_file_says(tmp_path):
    for way, words in (("qwen2", ["in", "Ġ", "2", "0", "2", "5"]), ("llama-bpe", ["in", "Ġ", "202", "5"])):
        path = qwen_file(tmp_path / f"{way}.gguf", qwen("qwen3"), **{"tokenizer.ggml.pre": way})
        splits = tokenizer_in(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 2025")
        assert [word for word, _ in splits] == words
    unknown = qwen_file(tmp_path / "x.gguf", qwen("qwen3"), **{"tokenizer.ggml.pre": "other"})
    assert tokenizer_in(unknown) is None
    assert inspect(unknown).needs == ("its tokenizer",)


def test_sentencepiece_bpe_gives_the_tokens_of_the_original(tmp_path):
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 9), "utf-8")
    SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "words"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    original = SentencePieceProcessor(model_file=str(tmp_path / "words.model"))
    metadata = {
        "tokenizer.ggml.model": "llama",
        **gguf_writer.piece_metadata(original),
        "tokenizer.ggml.bos_token_id": original.bos_id(),
    }
    inside = tokenizer_in(qwen_file(tmp_path / "x.gguf", qwen("qwen3"), tokenizer=False, **metadata))
    for text in ["the red cat sits", "A small  boat, 3 of them!", "红猫 ünïcode 🦊", "the cat\nsits"]:
        tokens = inside(text, add_special_tokens=False)["input_ids"]
        assert tokens == original.encode(text)
        assert inside.decode(tokens) == f" {text}"
    assert (inside.bos_token, inside.eos_token) == ("<s>", "</s>")


def test_another_architecture_is_refused_in_the_same_words_everywhere(tmp_path, host):
    path = qwen_file(tmp_path / "LLM" / "other.gguf", qwen("qwen3"), "gemma3")
    reason = inspect(path).reason
    assert "a language model of the architecture 'gemma3'" in reason
    assert model_choices(PROMPT, host) == ["auto", "built-in"]
    for refused in (
        lambda: check_model(PROMPT, "LLM/other.gguf", host),
        lambda: choose_model(ModelHandle(PROMPT, "LLM/other.gguf"), host),
        lambda: load_component("prompt_model", path),
    ):
        with pytest.raises(PiyingError) as caught:
            refused()
        assert reason in str(caught.value)


LIES = {
    "no merges": ("tokenizer.ggml.merges", [], "there are no merges in it"),
    "a merge of other words": (
        "tokenizer.ggml.merges",
        ["i n", "surely none"],
        "its merge 'surely none' needs 'surely'",
    ),
    "merges of numbers": ("tokenizer.ggml.merges", [1, 2], "its merges are no texts"),
    "a list for an end": ("tokenizer.ggml.bos_token_id", [1], "its bos token is a list"),
    "few tokens": ("tokenizer.ggml.tokens", ["a", "b"], "it has 2 tokens, and 1101 entries"),
    "no tokens": ("tokenizer.ggml.tokens", [], "there are no tokens in it"),
    "an end that is none": ("tokenizer.ggml.eos_token_id", 99_999, "its eos token is number 99999 of 1101"),
    "a text for an end": ("tokenizer.ggml.eos_token_id", "2", "its eos token is number 2 of 1101"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tokenizer_that_lies_is_refused_in_the_same_words_everywhere(tmp_path, host, lie):
    name, value, reason = LIES[lie]
    path = qwen_file(tmp_path / "LLM" / "x.gguf", qwen("qwen3"), **{name: value})
    found = inspect(path, contents=True)
    assert not found.readable and reason in found.reason
    for refused in (
        lambda: check_model(PROMPT, "LLM/x.gguf", host),
        lambda: tokenizer_in(path),
    ):
        with pytest.raises(PiyingError) as caught:
            refused()
        assert found.reason.removesuffix(" Fetch the file again.").removesuffix(".") in str(caught.value)


def test_a_template_that_does_not_compile_is_told_of_the_file_as_of_the_model(tmp_path, host):
    path = qwen_file(tmp_path / "LLM" / "x.gguf", qwen("qwen3"), **{"tokenizer.chat_template": "{% if %}"})
    found = inspect(path, contents=True)
    assert found.readable  # a text encoder needs no template
    reason = why_no_model(path, found)
    assert "chat template is broken (Expected an expression" in reason
    with pytest.raises(PiyingError) as caught:
        check_model(PROMPT, "LLM/x.gguf", host)
    assert reason.removesuffix(".") in str(caught.value)


@pytest.mark.parametrize(("way", "more"), [("linear", {}), ("yarn", {"original_context_length": 64})])
def test_positions_are_stretched_as_the_file_says(tmp_path, way, more):
    said = {"type": way, "factor": 4.0, **more}
    metadata = {f"qwen3.rope.scaling.{name}": value for name, value in said.items()}
    model = qwen("qwen3")
    rope = {"rope_type": way, "factor": 4.0, "rope_theta": model.config.rope_parameters["rope_theta"]}
    rope |= {"original_max_position_embeddings": 64} if more else {}
    expected = type(model)(type(model.config)(**(model.config.to_dict() | {"rope_parameters": rope}))).eval()
    expected.load_state_dict(model.state_dict())
    loaded = load_component("prompt_model", qwen_file(tmp_path / "x.gguf", model, **metadata))
    tokens = torch.arange(40)[None] + 5
    with torch.no_grad():
        found, plain, wanted = (one(tokens).logits for one in (loaded, model, expected))
    assert torch.equal(found, wanted) and not torch.allclose(found, plain)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rope.scaling.type", "longrope", "rope.scaling.type is 'longrope', with factor None; linear and yarn"),
        ("rope.freq_base", -5.0, "qwen3.rope.freq_base is -5.0"),
        ("rope.freq_base", "x", "qwen3.rope.freq_base is x"),
        ("attention.layer_norm_rms_epsilon", 0.0, "layer_norm_rms_epsilon is 0.0"),
    ],
)
def test_numbers_that_are_none_are_not_replaced(tmp_path, name, value, said):
    assert said in inspect(qwen_file(tmp_path / "x.gguf", qwen("qwen3"), **{f"qwen3.{name}": value})).reason


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    model = qwen("qwen3")
    model.resize_token_embeddings(1000)
    assert (
        "has 1101 tokens, and the model's embeddings have 1000 rows"
        in inspect(qwen_file(tmp_path / "x.gguf", model)).reason
    )


def test_the_lists_of_a_text_encoder_s_tokenizer_are_counted(tmp_path):
    path = t5_file(tmp_path / "y.gguf", models.umt5())
    path.write_bytes(path.read_bytes().replace(b"token_type", b"tokem_type"))
    with pytest.raises(PiyingError, match="it has 23 tokens, and 0 entries in tokenizer.ggml.token_type"):
        tokenizer_in(path)
    assert "0 entries in tokenizer.ggml.token_type" in inspect(path).reason


def test_a_file_that_llama_cpp_has_split_says_how_to_join_it(tmp_path, host, caplog):
    for number in (1, 2):
        path = qwen_file(tmp_path / "LLM" / f"q-{number:05}-of-00002.gguf", qwen("qwen3"))
    reason = inspect(path).reason
    assert reason.startswith("it is file 2 of 2 of a split GGUF") and "--merge q-00001-of-00002.gguf q.gguf" in reason
    assert model_choices(PROMPT, host) == ["auto", "built-in"]
    assert caplog.text.count("of a split GGUF") == 2
    with pytest.raises(PiyingError, match="LLM: it is file 1 of 2 of a split GGUF"):
        inspect(tmp_path / "LLM")


@pytest.mark.parametrize(
    ("version", "said"),
    [(b"\1\0\0\0", "version 1;"), (b"\4\0\0\0", "version 4;"), (b"\0\0\0\3", "version 3 in big-endian order;")],
)
def test_other_versions_are_no_damage(tmp_path, version, said):
    path = qwen_file(tmp_path / "x.gguf", qwen("qwen3"))
    raw = path.read_bytes()
    path.write_bytes(raw[:4] + version + raw[8:])
    with pytest.raises(PiyingError, match=f"is a GGUF file of {said}"):
        inspect(path)
