"""What a node refuses or fails with is shown in the page's language: messages of the pack and their translations."""

from __future__ import annotations

import ast
import json
import re

import piying
import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.parallel.second_card import second_card
from piying.nodes import routes
from piying.tests.web.node import ROOT, Page, node_or_skip

TEXTS = json.loads((ROOT / "locales/zh/main.json").read_text(encoding="utf-8"))["piying"]
MESSAGES = TEXTS["messages"]
TRANSLATE = """
  const texts = await lib("i18n");
  await texts.loadTexts();
  return given.map(texts.inPageLanguage);
"""
ENGLISH = re.compile(r"\b(the|is|are|has|have|choose|set|give|connect|or|of|to)\b", re.IGNORECASE)
# Where a creator's values are judged. Rooms that read files, hubs and servers quote what these say.
JUDGES = [
    "nodes",
    "core/catalog/selection.py",
    "core/controls",
    "core/errors.py",
    "core/hunyuan_dit/request.py",
    "core/image_sizes.py",
    "core/media/frames.py",
    "core/postprocessing",
    "core/prompting/request.py",
    "core/wan/context.py",
    "core/wan/fast_decoder.py",
    "core/wan/guidance.py",
    "core/wan/long/request.py",
    "core/wan/long/timeline.py",
    "core/wan/request.py",
    "core/wan/schedule.py",
    "core/wan/start_latents.py",
    "core/wan/taehv.py",
    "core/wan/task",
    "core/wan_video/frame_inputs.py",
    "core/wan_video/request.py",
    "core/z_image",
]
RAISED = ("PiyingError", "RefusedError")
# Said to programs: the page never sends such a request, and converts no workflow.
TO_PROGRAMS = (
    "class_type is",
    "inputs is no",
    "wired is no",
    "More than ",
    "model is no id",
    "client is a text",
    "That node loads",
)
TO_PROGRAMS += ("The workflow cannot be converted",)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(tmp_path_factory.mktemp("page"), node_or_skip())


@pytest.fixture(autouse=True)
def host(tmp_path):
    set_host(HeadlessHost(input=tmp_path, output=tmp_path, temp=tmp_path))
    yield
    set_host(None)


def pieces(node):
    """What a text says between its values; None where it is no text, or says nothing."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        found = [""]
        for part in node.values:
            if isinstance(part, ast.Constant):
                found[-1] += part.value
            else:
                found.append("")
        return found if any(re.search(r"[a-z]", piece) for piece in found) else None
    return None


def parsed(*places):
    for place in places:
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield from ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def errors_of(*places):
    for node in parsed(*places):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in RAISED and node.args:
            found = pieces(node.args[0])
            if found and not found[0].startswith(TO_PROGRAMS):
                yield tuple(found)


def key_pieces(key):
    return tuple(re.split(r"\{\w+\}", key))


def test_every_message_that_is_translated_is_still_said():
    said = {tuple(found) for node in parsed("core", "nodes") if (found := pieces(node))}
    assert [key for key in MESSAGES if key_pieces(key) not in said] == []


def test_every_refusal_of_a_node_has_a_translation():
    known = {key_pieces(key) for key in MESSAGES}
    assert [message for message in errors_of(*JUDGES) if message not in known] == []


@pytest.mark.parametrize("english", MESSAGES)
def test_a_translation_has_the_values_of_its_message(english):
    def names(text):
        return set(re.findall(r"\{(\w+)\}", text))

    assert names(MESSAGES[english]) <= names(english)
    assert names(english) - names(MESSAGES[english]) <= {"again"}, "a value is told twice in English at most"


def refusals():
    """Sentences as nodes give them, of values that are wrong in each kind of way."""
    nodes = piying.NODE_CLASS_MAPPINGS
    sampler = nodes["PiyingVACESample"]
    yield sampler.VALIDATE_INPUTS(width=100, height=480, num_frames=10)
    yield sampler.VALIDATE_INPUTS(width=832, height=4000, num_frames=999)
    yield nodes["PiyingHunyuanDiT"].VALIDATE_INPUTS(width=1000, height=1000)
    yield nodes["PiyingLoadWanVACE"].VALIDATE_INPUTS(model="none such")
    yield nodes["PiyingLoadWanVACE"].VALIDATE_INPUTS(model="wan2.1-vace-14b")
    yield nodes["PiyingExpandPrompt"].VALIDATE_INPUTS(prompt="", frozen_prompt="")
    yield nodes["PiyingVACERepaint"].VALIDATE_INPUTS(start_percent=0.5, end_percent=0.5)
    frames = torch.zeros(6, 64, 64, 3)
    black = torch.zeros(1, 64, 64)
    yield failure(nodes["PiyingVACEInpaint"], video=frames, mask=black)
    yield failure(nodes["PiyingVACEInpaint"], video=frames, mask=torch.zeros(3, 64, 64))
    yield failure(nodes["PiyingVACEInpaint"], video=frames, mask=torch.zeros(1, 32, 64))
    yield failure(nodes["PiyingVACERepaint"], control=frames)
    yield failure(nodes["PiyingVACERepaint"], control=torch.zeros(5, 60, 64, 3))
    yield failure(nodes["PiyingVACEExtend"])
    yield failure(nodes["PiyingVACEOutpaint"], video=frames, left=0, top=0, right=0, bottom=0)
    yield failure(nodes["PiyingSegment"], frames=frames, names="dragon")
    yield failure(nodes["PiyingControlFlow"], frames=frames[:1])


def failure(node, **given):
    """What a node fails with when the other widgets stand as declared."""
    declared = node.INPUT_TYPES()["required"]
    widgets = {
        name: spec[1]["default"] if "default" in spec[1] else spec[0][0]
        for name, spec in declared.items()
        if "default" in spec[1] or isinstance(spec[0], list)
    }
    with pytest.raises(PiyingError) as caught:
        getattr(node(), node.FUNCTION)(**{**widgets, **given})
    return str(caught.value)


def test_refusals_are_sentences_in_chinese(page):
    said = list(refusals())
    assert all(isinstance(sentence, str) for sentence in said)
    shown = page.run(TRANSLATE, language="zh", given=said)
    unwrapped = [re.sub(r"`[^`]*`", "", sentence) for sentence in shown]
    assert [sentence for sentence in unwrapped if ENGLISH.search(sentence)] == []
    assert page.run(TRANSLATE, given=said) == said


def test_values_stay_in_the_translation(page):
    said = "width is 100. Wan VACE takes multiples of 16 from 16 to 2048: use 96 or 112. num_frames is 10. "
    said += "Wan VACE takes 4n+1 frames from 1 to 241 (5, 9, … 81): use 9 or 13."
    (shown,) = page.run(TRANSLATE, language="zh-CN", given=[said])
    assert shown == (
        "width 是 100。Wan VACE 的宽高须为 16 的倍数，范围 16 到 2048：请用 96 或 112。"
        "num_frames 是 10。Wan VACE 的帧数须为 4n+1，范围 1 到 241（5、9、… 81）：请用 9 或 13。"
    )


def test_what_is_not_known_stays_as_it_is(page):
    said = ["An error of torch. width: 3", "", "C:\\models\\x.safetensors: cannot be opened (No such file)."]
    assert page.run(TRANSLATE, language="zh", given=said) == said


PLANNED = """
  const texts = await lib("i18n");
  const { planLine } = await lib("dialogs");
  await texts.loadTexts();
  return given.map(planLine);
"""
# Of ways to run a phase, which are put together from them.
WORDS = re.compile(r"\b(stored as|resident|streamed|cpu|whole|tiled|batched|matmul)\b")


def inputs_of_a_video(width):
    """A sampler as the page describes it."""
    loader = {"class_type": "PiyingLoadWanVACE", "inputs": {"model": "built-in", "precision": "auto"}}
    size = {"width": width, "height": 480, "num_frames": 81}
    return {"class_type": "PiyingVACESample", "inputs": {"model": loader, **size}}


def plans():
    """Lines of plans."""
    for vram, ram, second in ((4, 16, None), (8, 32, None), (24, 64, None), (None, 32, None), (6, 64, 8)):
        host = HeadlessHost(
            chosen_device="cpu",
            vram=vram and vram * 2**30,
            second_vram=second and second * 2**30,
            ram=ram * 2**30,
            imagined=True,
            models=[ROOT / "tests"],
        )
        set_host(host)
        for sampler, loader, model in (
            ("PiyingVACESample", "PiyingLoadWanVACE", "wan2.1-vace-14b"),
            ("PiyingVACESample", "PiyingLoadWanVACE", "built-in"),
            ("PiyingHunyuanDiT", "PiyingLoadHunyuanDiT", "hunyuan-dit-v1.2"),
            ("PiyingZImage", "PiyingLoadZImage", "z-image-turbo"),
        ):
            for memory in ("auto", "streamed", "fp8"):
                loaded = {"model": model, "precision": "auto", "memory": memory}
                size = {"width": 1024, "height": 1024, "steps": 20, "cfg": 5.0, "num_frames": 81, "speed": "fast"}
                inputs = {"model": {"class_type": loader, "inputs": loaded}, **size}
                yield from routes.plan({"class_type": sampler, "inputs": inputs})["text"].splitlines()
            for scale in (2.0, 8.0):
                size = {"frames": inputs_of_a_video(1920 if vram == 4 else 832), "scale": scale, "tile": 0}
                given = {"model": "none", "method": "lanczos", "width": 0, "height": 0, **size}
                yield from routes.plan({"class_type": "PiyingUpscaleVideo", "inputs": given})["text"].splitlines()
    yield "- encode: on the CPU, because on the second card bf16, streamed, whole ran out of memory before."
    yield "- upscale: 1 frame of 1664×960 are made from 1 frame of 832×480."
    yield "- upscale: tiles of 512×512."
    yield "- upscale: done in pieces, because fp32, resident, whole needs 9.1 GB of the card, 3.5 GB can be used."
    yield "- upscale: done in pieces, because fp32, cpu, whole takes 40 s a frame, in which a run cannot be cancelled."
    yield "- upscale: done in pieces, because fp32, cpu, whole takes more than half of the main memory that is free."
    yield "- interpolate: how long it takes is not known, since its operations cannot be counted."
    yield "- Memory and time are unknown until it runs: frames will only be known in the run."
    # Of a model of two experts, which the manifest does not list.
    yield "- sample: The high-noise expert takes step 1 of 4."
    yield "- sample_2: The low-noise expert takes steps 2 to 4 of 4."
    yield "- sample_2: It takes the place of the other one once: they are not on the card together."
    yield "- sample: TAEHV makes the previews."
    yield "- decode: TAEHV decodes in place of the VAE: a twentieth of the work for less detail."


def test_a_second_card_that_is_not_taken_is_said_in_chinese(page):
    notes = [second_card(device, HeadlessHost(chosen_device="cpu")).note for device in ("cuda:1", "cpu")]
    missing, processor = page.run(TRANSLATE, language="zh", given=notes)
    assert missing == "second_device cuda:1：本机没有这张显卡（cpu）；这次运行只用一张显卡。"
    assert not ENGLISH.search(processor)


def test_plans_are_in_chinese(page):
    """Ways of running a phase too, but for number types."""
    said = sorted({line for line in plans() if "  " not in line and " " in line})
    assert len(said) > 60
    shown = page.run(PLANNED, language="zh", given=said)
    english = [line for line in shown if ENGLISH.search(line) or WORDS.search(line)]
    assert "\n".join(english) == ""
    assert page.run(PLANNED, given=said) == said


def test_what_would_fit_keeps_each_size_with_its_length(page):
    said = ["What would fit: num_frames 25 at 1024×1024, or 608×608 with num_frames 81."]
    assert page.run(PLANNED, language="zh", given=said) == [
        "放得下的是：1024×1024、num_frames 25，或 608×608、num_frames 81。"
    ]
