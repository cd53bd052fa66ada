"""What the page computes: facts of a run, defaults of widgets, sizes in words, requests that alike samplers share."""

from __future__ import annotations

import pytest
from piying.tests.web.node import Page, node_or_skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(tmp_path_factory.mktemp("page"), node_or_skip())


RECORD = {
    "model": "built-in", "device": "cpu", "width": 96, "height": 64, "num_frames": 17, "steps": 20, "cfg": 3.0,
    "seed": 7, "seconds": {"encode": 1.5, "sample": 60.0}, "peak_vram_gb": 0.0, "negative_prompt": "", "loras": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("language", "first", "length"),
    [("en", ["Model", "Toy model"], "17 frames"), ("zh", ["模型", "玩具模型"], "17 帧")],
)
def test_details_begin_with_what_a_person_asks(page, language, first, length):
    script = """
      await (await lib("i18n")).loadTexts();
      return (await lib("dialogs")).factsOf(given);
    """
    facts = page.run(script, language=language, given=RECORD)
    assert facts[0] == first
    values = [value for _, value in facts]
    assert values[1:6] == ["96×64", length, 20, 3, 7]
    assert values[-1].startswith("62")
    assert len(facts) == 8, "nothing is said of what there was not"


def test_the_default_of_a_widget_is_read_from_its_declaration(page):
    declared = {
        "required": {"steps": ["INT", {"default": 50}], "speed": [["reference", "fast"], {}]},
        "optional": {"size_from": ["COMBO", {"options": ["auto", "task"]}]},
    }
    script = """
      const { defaultOf } = await lib("widgets");
      return ["steps", "speed", "size_from", "none"].map((name) => defaultOf(given, name) ?? null);
    """
    assert page.run(script, given=declared) == [50, "reference", "auto", None]


@pytest.mark.parametrize(
    ("count", "words"), [(999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (16.24e9, "16.2 GB")]
)
def test_bytes_in_words(page, count, words):
    assert page.run('return (await lib("i18n")).bytes(given);', given=count) == words


def test_samplers_that_are_alike_share_a_request_for_a_while(page):
    script = """
      const { planOf } = await lib("plan");
      const [one, same, other] = [planOf("a", {}, 0), planOf("a", {}, 9000), planOf("b", {}, 0)];
      const later = planOf("a", {}, 20001);
      return [one === same, one === other, one === later];
    """
    assert page.run(script) == [True, False, False]
