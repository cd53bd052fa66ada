"""Hunyuan-DiT and language models in single files: offered, told apart, lent what they lack, and run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from piying.core.catalog.discovery import installed_models
from piying.core.catalog.installed_model import BUILT_IN_ROOT, InstalledModel
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.checkpoints.layouts.language_model import LANGUAGE_MODEL
from piying.core.checkpoints.sentencepiece_tokenizer import SentencePieceTokenizer
from piying.core.checkpoints.tokenizers import tokenizer_of
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.families.registry import family_named
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit import request as hunyuan_request
from piying.core.hunyuan_dit import run as drawing
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.hunyuan_dit.request import TOY_SIZES, ImageRequest
from piying.core.hunyuan_dit.run import scheduler_of
from piying.core.prompting.chat_template import render
from piying.core.prompting.family import PROMPT
from piying.core.prompting.generation import Processor, configure_single_file
from piying.core.prompting.local_model import LocalModel
from piying.core.prompting.messages import Chat
from piying.core.prompting.request import ExpandRequest

from .formats import models, names, writers
from .test_single_files import spiece

REQUEST = ImageRequest("the red cat", width=64, height=64, steps=2, cfg=3.0, seed=4)
CHECKPOINT = "checkpoints/a name that says nothing.safetensors"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "cat", "sits"]


@pytest.fixture
def host(tmp_path):
    yield HeadlessHost(models=[tmp_path], chosen_device="cpu")
    model_cache.evict_models()


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    """Only the built-in model may draw them else; the files here are as small."""
    monkeypatch.setattr(hunyuan_request, "SIZES", TOY_SIZES)


# Hunyuan-DiT


def hunyuan(bert_words=20, **changes):
    """Return modules that go together: transformer, VAE, BERT, mT5."""
    from diffusers import AutoencoderKL
    from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

    sizes = {"cross_attention_dim": 128, "text_len": 77, "text_len_t5": 256}
    words = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}
    pieces = {"d_model": 40, "d_kv": 64, "num_heads": 2, "d_ff": 80, "num_layers": 2}
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return {
        "transformer": models.hunyuan_transformer(**sizes | changes),
        "vae": models.randomised(
            AutoencoderKL(**levels, block_out_channels=(32,) * 4, latent_channels=4, scaling_factor=0.13025)
        ),
        "text_encoder": models.randomised(
            BertModel(BertConfig(vocab_size=bert_words, max_position_embeddings=80, **words), add_pooling_layer=False)
        ),
        "text_encoder_2": models.randomised(
            T5EncoderModel(T5Config(vocab_size=60, **pieces, feed_forward_proj="gated-gelu"))
        ),
    }


def all_in_one(parts, path):
    """ComfyUI's checkpoint: everything in it but the words of BERT."""
    mt5 = {n: t for n, t in models.tensors(parts["text_encoder_2"]).items() if "embed_tokens" not in n}
    everything = {
        "model.diffusion_model.": names.hunyuan_transformer(models.tensors(parts["transformer"])),
        "vae.": names.kl_vae(models.tensors(parts["vae"]), levels=4),
        "text_encoders.hydit_clip.transformer.bert.": models.tensors(parts["text_encoder"]),
        "text_encoders.mt5xl.transformer.": mt5,
        "text_encoders.mt5xl.": {"spiece_model": spiece()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    return writers.save({prefix + name: t for prefix, part in everything.items() for name, t in part.items()}, path)


def bert_words(folder):
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def drawn_by_diffusers(parts, words):
    from diffusers import HunyuanDiTPipeline
    from transformers import AutoTokenizer

    pipeline = HunyuanDiTPipeline(
        **parts,
        tokenizer=AutoTokenizer.from_pretrained(words),
        tokenizer_2=SentencePieceTokenizer(spiece().numpy().tobytes()),
        scheduler=scheduler_of(parts["transformer"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipeline(
            REQUEST.prompt,
            negative_prompt="",
            width=64,
            height=64,
            num_inference_steps=REQUEST.steps,
            guidance_scale=REQUEST.cfg,
            generator=torch.Generator("cpu").manual_seed(REQUEST.seed),
            use_resolution_binning=False,
            output_type="pt",
        ).images.permute(0, 2, 3, 1)


def test_the_all_in_one_checkpoint_draws_what_diffusers_draws(tmp_path, host):
    parts = hunyuan()
    all_in_one(parts, tmp_path / CHECKPOINT)
    words = bert_words(tmp_path / "tokenizers" / "hydit_clip_tokenizer")
    assert model_choices(HUNYUAN_DIT, host) == ["auto", CHECKPOINT, "built-in"]
    (found,) = installed_models(family_named("hunyuan_dit"), host)
    assert found.details.startswith("checkpoint of Hunyuan-DiT transformer, BERT text encoder, T5 text encoder")
    assert choose_model(ModelHandle(HUNYUAN_DIT), host) == found
    image, record = drawing.sample(ModelHandle(HUNYUAN_DIT, CHECKPOINT), REQUEST, host)
    assert record["model"] == CHECKPOINT
    expected = drawn_by_diffusers(parts, words)
    assert expected.std() > 0.01
    assert (image - expected).abs().max() < 2e-5


def test_without_the_words_of_its_bert_it_says_where_they_are(tmp_path, host):
    all_in_one(hunyuan(), tmp_path / CHECKPOINT)
    with pytest.raises(PiyingError, match="not here: the tokenizer of its BERT, in models/tokenizers. Fetch it with"):
        choose_model(ModelHandle(HUNYUAN_DIT, CHECKPOINT), host)
    assert choose_model(ModelHandle(HUNYUAN_DIT), host).is_built_in, "auto takes what can run"


def tencent(parts, folder):
    """t2i/ as Tencent publishes it: PyTorch's own files."""
    for name in ("model", "clip_text_encoder", "mt5", "sdxl-vae-fp16-fix"):
        (folder / name).mkdir(parents=True)
    original = names.hunyuan_transformer(models.tensors(parts["transformer"]))
    torch.save({"ema": original}, folder / "model" / "pytorch_model_ema.pt")
    for part, name in (("text_encoder", "clip_text_encoder"), ("text_encoder_2", "mt5")):
        parts[part].config.save_pretrained(folder / name)
        torch.save(models.tensors(parts[part]), folder / name / "pytorch_model.bin")
    (folder / "mt5" / "spiece.model").write_bytes(spiece().numpy().tobytes())
    parts["vae"].save_pretrained(folder / "sdxl-vae-fp16-fix")
    return bert_words(folder / "tokenizer")


def test_tencents_own_files_draw_the_same(tmp_path, host):
    parts = hunyuan()
    from transformers import BertModel

    parts["text_encoder"] = models.randomised(BertModel(parts["text_encoder"].config))
    words = tencent(parts, tmp_path / "checkpoints" / "HunyuanDiT-v1.2" / "t2i")
    name = "checkpoints/HunyuanDiT-v1.2/t2i/model/pytorch_model_ema.pt"
    assert model_choices(HUNYUAN_DIT, host) == ["auto", name, "built-in"]
    image, _ = drawing.sample(ModelHandle(HUNYUAN_DIT, name), REQUEST, host)
    assert (image - drawn_by_diffusers(parts, words)).abs().max() < 2e-5


def test_a_folder_lends_its_parts_to_a_transformer_alone(tmp_path, host):
    (tmp_path / "diffusion_models").mkdir()
    original = names.hunyuan_transformer(models.tensors(hunyuan()["transformer"]))
    writers.save(original, tmp_path / "diffusion_models" / "x.safetensors")
    name = "diffusion_models/x.safetensors"
    with pytest.raises(PiyingError, match="not here: its BERT text encoder, its mT5 text encoder, .*XL VAE"):
        choose_model(ModelHandle(HUNYUAN_DIT, name), host)
    shutil.copytree(BUILT_IN_ROOT / "hunyuan_dit", tmp_path / "diffusers" / "other")
    found = choose_model(ModelHandle(HUNYUAN_DIT, name), host)
    assert found.place("text_encoder_2") == (tmp_path / "diffusers" / "other" / "text_encoder_2",)
    assert found.place("transformer") == (tmp_path / name,)


@pytest.mark.parametrize(("old", "end"), [(False, 0.018), (True, 0.03)])
def test_the_noise_schedule_is_told_from_the_shapes(old, end):
    transformer = models.hunyuan_transformer(use_style_cond_and_image_meta_size=old)
    assert scheduler_of(transformer).config.beta_end == end


def test_a_file_of_another_family_says_what_it_is(tmp_path, host):
    (tmp_path / "checkpoints").mkdir()
    tensors = names.wan_transformer(models.tensors(models.wan_transformer()))
    writers.save(tensors, tmp_path / CHECKPOINT)
    with pytest.raises(PiyingError, match="cannot be used: this is a Wan2.1-VACE transformer"):
        check_model(HUNYUAN_DIT, CHECKPOINT, host)


# Language models

FILE = "text_encoders/qwen renamed.safetensors"


@pytest.fixture
def qwen(tmp_path):
    """A Qwen3 in a folder with its words, and the same weights in one file as ComfyUI has them."""
    model = models.qwen3(vocab_size=1101, eos_token_id=2)
    folder = tmp_path / "LLM" / "Qwen3-toy"
    model.save_pretrained(folder)
    for file in (BUILT_IN_ROOT / "prompt").iterdir():
        if "tokenizer" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    (tmp_path / "text_encoders").mkdir()
    writers.save(weights(model), tmp_path / FILE)
    return model


def weights(model):
    return {name: tensor for name, tensor in models.tensors(model).items() if name != "lm_head.weight"}


def answer(name, host):
    request = ExpandRequest("a red ball", max_new_tokens=12, temperature=0.0)
    answers = []

    def use(write):
        answers.append(write(Chat("Be brief.", "a red ball"), None, request))
        return ""

    LocalModel(ModelHandle(PROMPT, name), host).run(use, request.max_new_tokens)
    return answers[0]


def test_a_language_model_in_one_file_answers_as_its_folder_does(tmp_path, host, qwen):
    assert model_choices(PROMPT, host) == ["auto", "LLM/Qwen3-toy", FILE, "built-in"]
    found = next(one for one in installed_models(family_named("prompt"), host) if one.parts)
    assert found.details == "language model, 0.0B, fp32, 0.0 GB"
    assert answer(FILE, host) == answer("LLM/Qwen3-toy", host)


def test_its_scaled_fp8_form_answers(tmp_path, host, qwen):
    tensors = weights(qwen)
    layers = {name: tensor for name, tensor in tensors.items() if "_proj.weight" in name}
    small = writers.comfy_new({f"block.{name}": tensor for name, tensor in layers.items()})
    writers.save(tensors | {n.removeprefix("block."): t for n, t in small.items()}, tmp_path / FILE)
    found = next(one for one in installed_models(family_named("prompt"), host) if one.parts)
    assert "fp8 scaled" in found.details
    assert answer(FILE, host).text


def test_words_of_another_model_are_not_lent(tmp_path, host, qwen):
    writers.save(weights(models.qwen3(vocab_size=1200)), tmp_path / FILE)
    with pytest.raises(PiyingError, match="not here: the tokenizer of a Qwen model, in models/tokenizers or in a"):
        choose_model(ModelHandle(PROMPT, FILE), host)


def test_other_language_models_are_not_offered(tmp_path, host, qwen):
    tensors = {n: t for n, t in weights(qwen).items() if "_norm.weight" not in n or "layernorm" in n}
    writers.save(tensors, tmp_path / FILE)
    assert FILE not in model_choices(PROMPT, host)
    with pytest.raises(PiyingError, match="cannot be used: this is a language model that its shapes do not name"):
        check_model(PROMPT, FILE, host)


def test_one_without_its_output_layer_is_not_offered():
    """Large Qwen models do not share it with the embeddings, and files for text encoding leave it out."""
    model = "model.layers.0.self_attn"
    shapes = {"model.embed_tokens.weight": (151_936, 4096), f"{model}.q_norm.weight": (128,)}
    shapes |= {f"{model}.o_proj.weight": (4096, 4096)}
    with pytest.raises(PiyingError, match="its output layer is not in it"):
        LANGUAGE_MODEL.config(shapes)


def test_comfyuis_own_words_serve_qwen3():
    """They are Qwen2.5's: two tokens have other names there, and the empty thought is put in by their numbers."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    from piying.core.checkpoints.tokenizers import TokenizerKind, find_tokenizer
    from transformers import AutoTokenizer

    class Comfy(HeadlessHost):
        def model_folders(self):
            return [("tokenizers", Path(os.environ["COMFYUI_PATH"]) / "comfy" / "text_encoders")]

    folder = find_tokenizer(TokenizerKind.BPE, 151_936, Comfy())
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = models.qwen3()
    for _ in range(2):  # it is kept between runs
        configure_single_file(model, Processor(words, None))
    text = render(words, Chat("Be brief.", "a red ball"))
    assert text.endswith("<|im_start|>assistant\n<|meta|>\n\n<|endofmeta|>\n\n")
    assert text.count("<|meta|>") == 1
    assert words(text)["input_ids"][-4:-3] == [151_667]
    assert model.generation_config.eos_token_id == [151_645]


def test_python_code_beside_a_tokenizer_is_never_run(tmp_path, monkeypatch):
    """Without a word on it, transformers asks at the terminal; here it would be told yes."""
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "tokenizer", tmp_path / "ran"
    folder.mkdir()
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass A: pass\n")
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.A", "mine.A"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(PiyingError, match="cannot be read as a tokenizer model"):
        tokenizer_of(InstalledModel("mine", tmp_path, 0))
    assert not ran.exists()
