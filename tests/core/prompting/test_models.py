"""Local models of every family, at toy size: what they are told, what they see, and how they run."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from piying.core.catalog.installed_model import built_in as built_in_model
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.prompting.chat_template import encode, render
from piying.core.prompting.expand import ExpandRequest, expand
from piying.core.prompting.family import PROMPT
from piying.core.prompting.generation import generate, load_model, load_processor
from piying.core.prompting.local_model import LocalModel
from piying.core.prompting.messages import Chat, first_picture
from safetensors.torch import load_file, save_file

from .chat_templates import ERNIE, GLM4, QWEN2, QWEN3, QWEN_VL, tokenizer_with

CHAT = Chat("Rewrite.", "a red ball")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
}
TEXT_MODELS = {
    "Qwen2.5": ("Qwen2Config", "Qwen2ForCausalLM", QWEN2),
    "ERNIE-4.5": ("Ernie4_5Config", "Ernie4_5ForCausalLM", ERNIE),
    "GLM-4": ("GlmConfig", "GlmForCausalLM", GLM4),
    "GLM-4-0414": ("Glm4Config", "Glm4ForCausalLM", GLM4),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", QWEN3),
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
VISION |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
VISION_MODELS = {
    "Qwen2.5-VL": (
        "Qwen2_5_VL",
        {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}},
        {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
    ),
    "Qwen3-VL": (
        "Qwen3VL",
        {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True}},
        {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    ),
}


# As in the published folders; the second name is of a class that needs torchvision, which not everybody has.
IMAGE_PROCESSORS = {"Qwen2.5-VL": "Qwen2VLImageProcessor", "Qwen3-VL": "Qwen2VLImageProcessorFast"}


def save_text_model(folder, family):
    import transformers

    config, model, template = TEXT_MODELS[family]
    tokenizer = tokenizer_with(template)
    torch.manual_seed(0)
    config = getattr(transformers, config)(**SMALL, vocab_size=len(tokenizer))
    getattr(transformers, model)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_vision_model(folder, family):
    import transformers

    name, text, vision = VISION_MODELS[family]
    tokenizer = tokenizer_with(QWEN_VL)
    ids = {
        f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for key, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        text_config={**SMALL, **text, "vocab_size": len(tokenizer)}, vision_config={**VISION, **vision}, **ids
    )
    getattr(transformers, f"{name}ForConditionalGeneration")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"image_processor_type": IMAGE_PROCESSORS[family], "patch_size": vision["patch_size"], "merge_size": 2}
    settings |= {"temporal_patch_size": 2, "size": {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def asked(model, chat, picture, request):
    """Return what a model answers to one chat."""
    answers = []

    def use(write):
        answers.append(write(chat, picture, request))
        return ""

    model.run(use, request.max_new_tokens)
    return answers[-1]


def folder_of(tmp_path, family):
    save = save_vision_model if family in VISION_MODELS else save_text_model
    save(tmp_path / "LLM" / family, family)
    return HeadlessHost(models=[tmp_path], chosen_device="cpu", cache=tmp_path / "cache")


@pytest.mark.parametrize("family", TEXT_MODELS)
def test_every_family_is_found_loaded_and_run(family, tmp_path):
    """The weights are random: what comes out is nothing, and the prompt comes back, having asked twice."""
    host = folder_of(tmp_path, family)
    model = LocalModel(ModelHandle(PROMPT), host)
    assert model.name == f"LLM/{family}"
    assert not model.has_vision
    text, record = expand(ModelHandle(PROMPT), ExpandRequest("a red ball", max_new_tokens=8), host)
    assert text == "a red ball"
    assert f"The prompt model LLM/{family} gave nothing to use" in record["problem"]


@pytest.mark.parametrize("family", TEXT_MODELS)
def test_answers_equal_plain_generate(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    host = folder_of(tmp_path, family)
    request = ExpandRequest("a red ball", max_new_tokens=12, seed=11)
    answer = asked(LocalModel(ModelHandle(PROMPT), host), CHAT, None, request)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "LLM" / family)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "LLM" / family, dtype=torch.float32)
    messages = [{"role": "system", "content": CHAT.system}, {"role": "user", "content": CHAT.user}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(11)
    drawing = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_new_tokens": 12}
    tokens = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **drawing)
    expected = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    finished = expected[-1] == 2
    assert answer.text == tokenizer.decode(expected[:-1] if finished else expected)
    assert answer.finished == finished


def picture(colour):
    return torch.tensor(colour).expand(2, 80, 120, 3)


@pytest.mark.parametrize("family", VISION_MODELS)
def test_a_model_with_eyes_looks_at_the_first_frame(family, tmp_path):
    host = folder_of(tmp_path, family)
    model = LocalModel(ModelHandle(PROMPT), host, needs_vision=True)
    assert model.has_vision
    request = ExpandRequest("it rolls", max_new_tokens=10, temperature=0.0)
    colours = ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    red, red_again, blue = (asked(model, CHAT, first_picture(picture(colour)), request).text for colour in colours)
    without = asked(model, CHAT, None, request).text
    assert red == red_again
    assert len({red, blue, without}) == 3


@pytest.mark.parametrize("family", VISION_MODELS)
def test_a_picture_is_one_token_for_four_patches(family, tmp_path):
    host = folder_of(tmp_path, family)
    found = LocalModel(ModelHandle(PROMPT), host).found
    model, processor = load_model(found, torch.float32, host), load_processor(found)
    encoded = encode(processor.tokenizer, processor.image_processor, CHAT, first_picture(picture([1.0, 0.0, 0.0])))
    frames, rows, columns = encoded.inputs["image_grid_thw"][0].tolist()
    kinds = encoded.inputs["mm_token_type_ids"][0]
    assert frames == 1
    assert int(kinds.sum()) == rows * columns // 4
    assert int((encoded.inputs["input_ids"] == model.config.image_token_id).sum()) == int(kinds.sum())
    text = render(processor.tokenizer, CHAT, picture=True)
    assert text == (
        "<|im_start|>system\nRewrite.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "a red ball<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_template_may_lie_with_the_processor(tmp_path):
    host = folder_of(tmp_path, "Qwen2.5-VL")
    folder = tmp_path / "LLM" / "Qwen2.5-VL"
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    found = LocalModel(ModelHandle(PROMPT), host).found
    assert render(load_processor(found).tokenizer, CHAT).endswith("<|im_start|>assistant\n")


def test_with_a_picture_auto_takes_the_model_that_sees(tmp_path):
    save_text_model(tmp_path / "LLM" / "large", "Qwen3")
    (tmp_path / "LLM" / "large" / "more.safetensors").write_bytes(b"\0" * 1_000_000)
    host = folder_of(tmp_path, "Qwen3-VL")
    assert LocalModel(ModelHandle(PROMPT), host).name == "LLM/large"
    assert LocalModel(ModelHandle(PROMPT), host, needs_vision=True).name == "LLM/Qwen3-VL"


def test_a_model_without_eyes_goes_by_the_text_and_says_so(host, built_in, caplog):
    request = ExpandRequest("a red circle on blue", seed=1)
    text, record = expand(built_in, request, host, picture([1.0, 0.0, 0.0]))
    assert text == expand(built_in, request, host)[0]
    assert record["saw_image"] is False
    assert "cannot look at the image" in caplog.text
    with pytest.raises(PiyingError, match="cannot look at the image"):
        expand(built_in, ExpandRequest("a red circle", strict=True), host, picture([1.0, 0.0, 0.0]))


def test_what_is_no_picture_is_refused(host, built_in):
    with pytest.raises(PiyingError, match=r"image has the shape \[0, 8, 8, 3\]"):
        expand(built_in, ExpandRequest("x"), host, torch.zeros(0, 8, 8, 3))


def test_a_folder_without_some_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    host = folder_of(tmp_path, "Qwen2.5-VL")
    path = tmp_path / "LLM" / "Qwen2.5-VL" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if "visual.blocks.0" not in name}, path, {"format": "pt"})
    with pytest.raises(
        PiyingError, match="cannot be read as a prompt model.*tensors are not in its files, model.visual"
    ):
        expand(ModelHandle(PROMPT), ExpandRequest("x", strict=True), host)


UNKNOWN = {"model_type": "mine"}
# Auto class → files of a folder that name Python code for it.
UNTRUSTED = {
    "AutoModelForImageTextToText": {
        "config.json": UNKNOWN | {"auto_map": {"AutoConfig": "mine.A", "AutoModelForImageTextToText": "mine.A"}}
    },
    "AutoTokenizer": {
        "config.json": UNKNOWN,
        "tokenizer_config.json": {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.A", "mine.A"]}},
    },
    "AutoImageProcessor": {
        "preprocessor_config.json": {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.A"}}
    },
}


@pytest.mark.parametrize("auto", UNTRUSTED)
def test_python_code_in_a_folder_is_never_run(auto, tmp_path, monkeypatch):
    """Without a word on it, transformers asks at the terminal; here it would be told yes."""
    import transformers

    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    host, ran = folder_of(tmp_path, "Qwen2.5-VL"), tmp_path / "ran"
    folder = tmp_path / "LLM" / "Qwen2.5-VL"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass A: pass\n")
    for name, settings in UNTRUSTED[auto].items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | settings))
    text, record = expand(ModelHandle(PROMPT, "LLM/Qwen2.5-VL"), ExpandRequest("a red ball", max_new_tokens=4), host)
    assert text == "a red ball"
    names_another = "config.json" in UNTRUSTED[auto]
    refusal = "its configuration says model_type is 'mine'" if names_another else "cannot be read as a prompt model"
    assert refusal in record["problem"]
    with contextlib.suppress(PiyingError):
        load_processor(LocalModel(ModelHandle(PROMPT, "LLM/Qwen2.5-VL"), host).found)
    assert not ran.exists()
    with contextlib.suppress(Exception):
        getattr(transformers, auto).from_pretrained(folder)
    assert ran.exists()  # what the folder would have done


class Counting:
    """Progress that stops the run at a step, as a host does when its user cancels."""

    def __init__(self, stop_at=None):
        self.steps, self.texts, self.stop_at = [], [], stop_at

    def step(self, done, preview=None):
        self.steps.append(done)
        if done == self.stop_at:
            raise KeyboardInterrupt

    def text(self, text):
        self.texts.append(text)


def test_a_cancel_is_seen_within_a_token(tmp_path, built_in):
    counting = Counting(stop_at=3)
    host = HeadlessHost(chosen_device="cpu", cache=tmp_path, on_progress=lambda phase, total: counting)
    with pytest.raises(KeyboardInterrupt):
        expand(built_in, ExpandRequest("a red circle"), host)
    assert counting.steps == [1, 2, 3]


def test_the_text_is_shown_while_it_grows(tmp_path, built_in, monkeypatch):
    monkeypatch.setattr("piying.core.prompting.sampling.SECONDS_BETWEEN_TEXTS", 0.0)
    counting = Counting()
    host = HeadlessHost(chosen_device="cpu", cache=tmp_path, on_progress=lambda phase, total: counting)
    text, _ = expand(built_in, ExpandRequest("a red circle", seed=1), host)
    assert counting.texts[-1] == text
    assert len(counting.texts) > 8
    assert all(text.startswith(shown) for shown in counting.texts[:-2])


def test_going_in_circles_ends_early(tmp_path, built_in):
    """A model made to say one thing over and over stops long before its limit."""
    counting = Counting()
    host = HeadlessHost(chosen_device="cpu", cache=tmp_path, on_progress=lambda phase, total: counting)
    found = built_in_model("prompt")
    model, processor = load_model(found, torch.float32, host), load_processor(found)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[500] = 1.0
    kept, model.lm_head = model.lm_head, head
    try:
        request = ExpandRequest("x", temperature=0.0, max_new_tokens=900)
        answer = generate(model, processor, CHAT, picture=None, request=request, host=host)
    finally:
        model.lm_head = kept
    assert counting.steps[-2:] == [32, 900]  # and the end of the phase
    assert not answer.finished


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_scores_that_are_no_numbers_are_said(tmp_path, temperature):
    host = folder_of(tmp_path, "Qwen3")
    (path,) = (tmp_path / "LLM" / "Qwen3").glob("*.safetensors")
    weights = load_file(path)
    weights["model.norm.weight"].fill_(3e38)
    save_file(weights, path, {"format": "pt"})
    request = ExpandRequest("a red ball", max_new_tokens=8, temperature=temperature)
    with pytest.raises(PiyingError, match=r"the prompt model gave scores that are no numbers \(NaN or infinity\)"):
        asked(LocalModel(ModelHandle(PROMPT), host), CHAT, None, request)


def test_too_long_a_prompt_is_said_before_it_is_run(host, built_in):
    request = ExpandRequest("红 " * 3000, strict=True, max_new_tokens=4000)
    with pytest.raises(PiyingError, match="the prompt model has room for 4096 together. Shorten the prompt"):
        expand(built_in, request, host)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.rand(1, 1, 3000, 3), "image is 3000×1; models that see take pictures up to 200 times"),
        (torch.full((1, 32, 32, 3), float("nan")), "image holds values that are no numbers"),
        (torch.rand(1, 32, 32, 1), "at least one frame and three channels"),
    ],
)
def test_pictures_that_no_model_sees_are_refused(image, said):
    with pytest.raises(PiyingError, match=said):
        first_picture(image)
