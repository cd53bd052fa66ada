"""Prompts: ComfyUI's weights are done, what is beyond the encoder's room is told, and nothing vanishes unsaid."""

from __future__ import annotations

import logging

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.checkpoints.sentencepiece_tokenizer import END, PAD, SentencePieceTokenizer
from piying.core.errors import PiyingError
from piying.core.families.prompt_tokens import PromptTokenizer, encode_weighted, weighted_segments
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.hunyuan_dit.request import ImageRequest
from piying.core.hunyuan_dit.run import sample as draw
from piying.core.prompting.request import ExpandRequest
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample

# As token_weights of ComfyUI's comfy/sd1_clip.py reads them.
SEGMENTS = {
    "a red circle": [("a red circle", 1)],
    "a (red:1.2) circle": [("a ", 1), ("red", 1.2), (" circle", 1)],
    "(红色:0.8)的圆": [("红色", 0.8), ("的圆", 1)],
    "(red) ((blue))": [("red", 1.1), (" ", 1), ("blue", 1.21)],
    "((a:1.3) b:0.8) c": [("a", 1.3), (" b", 0.8), (" c", 1)],
    "(a (b) c:2)": [("a ", 2), ("b", 2.2), (" c", 2)],
    "(a: -1)(b:.5 )": [("a", -1), ("b", 0.5)],
    "(a:b:0.5) (:1.2)": [("a:b", 0.5), (" ", 1), (":1.2", 1.1)],
    "(a:nan) (b:inf) (c:x)": [("a:nan", 1.1), (" ", 1), ("b:inf", 1.1), (" ", 1), ("c:x", 1.1)],
    r"\(a:1.2\) (b\):1.5)": [("(a:1.2) ", 1), ("b)", 1.5)],
    "(a :) b) c(": [("a :", 1.1), (" b) c(", 1)],
    "": [],
    "()": [],
}


def host(folder):
    return HeadlessHost(chosen_device="cpu", cache=folder)


def video(folder, prompt, negative="", **more):
    request = WanRequest(prompt, negative, 32, 32, 5, steps=1, cfg=2.0 if negative else 1.0, seed=3, **more)
    return sample(ModelHandle(WAN_VACE, "built-in"), request, host(folder))[0]


def image(folder, prompt):
    request = ImageRequest(prompt, "", 64, 64, steps=1, cfg=1.0, seed=3)
    return draw(ModelHandle(HUNYUAN_DIT, "built-in"), request, host(folder))[0]


def lines(caplog, word):
    found = [f"{entry.levelname} {entry.getMessage()}" for entry in caplog.records if word in entry.getMessage()]
    caplog.clear()
    return found


@pytest.fixture(autouse=True)
def said(caplog):
    caplog.set_level(logging.INFO, "piying")


@pytest.mark.parametrize("prompt", SEGMENTS)
def test_weights_are_read_as_comfyui_reads_them(prompt):
    assert [(text, pytest.approx(weight)) for text, weight in weighted_segments(prompt)] == SEGMENTS[prompt]


@pytest.mark.parametrize("prompt", ["at (12:30)", "(red:-11)", "(" * 30 + "red" + ")" * 30])
def test_weights_out_of_range_are_refused(prompt):
    with pytest.raises(PiyingError, match=r"The prompt's weight .* is out of range: -10 to 10.* write \\\( and"):
        weighted_segments(prompt)


def test_a_prompt_of_megabytes_is_refused_before_it_is_split():
    with pytest.raises(PiyingError, match="has 1000000 characters; at most 100000 are read"):
        PromptTokenizer(None, 77, "BERT")("x" * 1_000_000)
    with pytest.raises(PiyingError, match="has 1000000 characters; at most 100000 are read"):
        ExpandRequest("x" * 1_000_000).validate()


@pytest.mark.parametrize("prompt", ["(" * 100_000, ")" * 100_000, "(:" * 50_000, "(a:1)" * 20_000, "\\(" * 50_000])
def test_long_rows_of_brackets_take_no_time(prompt):
    assert len(weighted_segments(prompt)) == 1


@pytest.mark.parametrize(
    ("prompt", "weights"),
    [
        ("a (red:1.5) circle", [1, 1.5, 1]),
        ("(a red:0.5) circle", [0.5, 0.5, 1]),
        ("(a ((red:3)):2) (circle:-1)", [2, 3, -1]),
    ],
)
def test_a_weight_scales_the_way_from_the_empty_prompt(prompt, weights):
    from diffusers import WanVACEPipeline

    pipeline = WanVACEPipeline.from_pretrained(built_in("wan_vace").path, dtype=torch.float32)

    def encode(text):
        states, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=512)
        return {"states": states}

    plain, empty = encode("a red circle")["states"], encode("")["states"]
    assert len(pipeline.tokenizer("a red circle").input_ids) == len(weights) + 1, "a token each, and the end mark"
    pipeline.tokenizer = PromptTokenizer(pipeline.tokenizer, 512, "The text encoder")
    got = encode_weighted(prompt, pipeline.tokenizer, encode)["states"]
    factors = torch.ones(512)
    factors[: len(weights)] = torch.tensor(weights)
    assert torch.allclose(got, empty + (plain - empty) * factors[:, None], atol=1e-6)


def sentence_pieces():
    import io

    from sentencepiece import SentencePieceTrainer

    lines, written = ["a red circle moves", "一个红色圆形 在 蓝色", "the green square… é"] * 30, io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        minloglevel=2,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=PAD,
        eos_id=END,
        unk_id=2,
        bos_id=-1,
    )
    return SentencePieceTokenizer(written.getvalue())


@pytest.mark.parametrize(
    "prompt", ["a  (red:2) circle", "一个(红色:2)圆形 在", "… 🐉🐉 (red:2) ｇreen", "e\u0301 x\u200by (red:2)"]
)
def test_pieces_know_the_characters_they_are_of(prompt):
    """Normal forms, bytes of unknown characters and characters that are left out shift no weight."""
    tokenizer = PromptTokenizer(sentence_pieces(), 64, "The text encoder")
    ids = tokenizer(prompt, padding="max_length").input_ids
    assert ids.shape == (1, 64)
    heavy = [
        token for token, weight in zip(tokenizer.reading.tokens, tokenizer.reading.weights, strict=True) if weight == 2
    ]
    assert tokenizer.decode(heavy).strip() in ("red", "红色")
    plain = "".join(text for text, _ in weighted_segments(prompt))
    assert torch.equal(ids, tokenizer(plain, padding="max_length").input_ids), "a weight changes no token"


def test_a_video_follows_weights_and_brackets_that_are_escaped(tmp_path, caplog):
    plain = video(tmp_path, "a red circle")
    assert torch.equal(video(tmp_path, "a (red:1.0) circle"), plain)
    assert lines(caplog, "weights of the prompt") == []
    assert not torch.equal(video(tmp_path, "a (red:1.6) circle"), plain)
    assert lines(caplog, "weights of the prompt") == ["INFO The text encoder: weights of the prompt: 'red' 1.6."]
    assert not torch.equal(video(tmp_path, r"a \(red\) circle"), plain)
    assert lines(caplog, "weights of the prompt") == []


def test_an_image_follows_weights_in_both_encoders(tmp_path, caplog):
    plain = image(tmp_path, "一个红色圆形")
    assert torch.equal(image(tmp_path, "一个(红色:1.0)圆形"), plain)
    assert not torch.equal(image(tmp_path, "一个(红色:1.8)圆形"), plain)
    assert lines(caplog, "weights of the prompt") == [
        "INFO The first text encoder (BERT): weights of the prompt: '红色' 1.8.",
        "INFO The second text encoder (mT5): weights of the prompt: '红色' 1.8.",
    ]


@pytest.mark.parametrize("weighted", ["", "(red:1.2) "])
def test_what_is_beyond_the_encoder_is_told_in_every_run(tmp_path, caplog, weighted):
    long = weighted + "a red circle moves right on a blue background. " * 60 + "a green square"
    for _ in range(2):  # the second from the cache
        video(tmp_path, long, negative="blue")
        (line,) = lines(caplog, "is left out")
        assert line.startswith("WARNING The text encoder reads 512 tokens. This prompt has ")
        assert line.endswith("Shorten it.")


def test_each_encoder_has_its_room(tmp_path, caplog):
    image(tmp_path, "一个红色圆形在蓝色背景上。" * 10)
    found = lines(caplog, "is left out")
    assert [line.partition(" reads ")[0] for line in found] == ["WARNING The first text encoder (BERT)"]
    assert "reads 77 tokens" in found[0]


def test_a_prompt_that_fits_needs_no_words(tmp_path, caplog):
    video(tmp_path, "a red circle", negative="blue")
    assert lines(caplog, "text encoder") == []


@pytest.mark.parametrize("foreign", ["<lora:style:0.8>", "embedding:bad-hands", "[cat:dog:0.5]"])
def test_what_other_programs_know_is_told(tmp_path, caplog, foreign):
    video(tmp_path, f"a red circle {foreign}")
    (line,) = lines(caplog, "is read as text")
    assert line.startswith(f"WARNING The text encoder: '{foreign}' in the prompt is read as text.")
