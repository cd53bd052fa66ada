"""What the page computes: facts of a run, defaults of widgets, sizes, requests that are shared, places on a sheet."""

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


ROLES = [
    ("PiyingVACESample", [("model", "WAN_VACE")], ["IMAGE"], "sampler"),
    ("PiyingUpscaleVideo", [("frames", "IMAGE")], ["IMAGE"], "frames"),
    ("PiyingInterpolateFrames", [("frames", "IMAGE")], ["IMAGE", "FLOAT", "INT"], "frames"),
    ("PiyingControlDepth", [("frames", "IMAGE")], ["IMAGE"], None),
    ("ImageScale", [("image", "IMAGE")], ["IMAGE"], None),
]


def test_nodes_with_a_plan_are_told_from_the_others(page):
    script = """
      const { isPlanned, roleOf } = await lib("graph");
      return given.map(([comfyClass, inputs, outputs]) => {
        const slots = inputs.map(([name, type]) => ({ name, type }));
        const role = roleOf({ comfyClass, inputs: slots, outputs: outputs.map((type) => ({ type })) });
        return [role, isPlanned(role)];
      });
    """
    assert page.run(script, given=ROLES) == [[role, role is not None] for *_, role in ROLES]


SHEET = {"columns": 5, "width": 96, "height": 64, "frames": list(range(17)), "total": 17}


def test_a_frame_is_found_where_it_is_on_its_sheet(page):
    script = """
      const { frameAt, placeOf } = await lib("viewer");
      return given.frames.map((index) => frameAt(given, ...placeOf(given, index).map((side) => side + 1)));
    """
    assert page.run(script, given=SHEET) == SHEET["frames"]


@pytest.mark.parametrize("point", [(-1, 5), (5 * 96, 5), (2 * 96, 3 * 64), (200, -1)])
def test_beside_the_frames_of_a_sheet_is_none(page, point):
    x, y = point
    script = f'return (await lib("viewer")).frameAt(given, {x}, {y});'
    assert page.run(script, given=SHEET) is None


@pytest.mark.parametrize(
    ("box", "point", "shares"),
    [
        ((0, 0, 192, 64), (96, 32), [0.5, 0.5]),  # a wide box, with a margin left and right
        ((0, 0, 192, 64), (48, 0), [0, 0]),
        ((10, 20, 96, 128), (10, 52), [0, 0]),  # a high one, with a margin above and below
        ((10, 20, 96, 128), (106, 116), [1, 1]),
    ],
)
def test_a_point_of_the_page_is_found_on_a_picture_that_keeps_its_shape(page, box, point, shares):
    left, top, width, height = box
    given = {"left": left, "top": top, "width": width, "height": height}
    x, y = point
    script = f"""
      const {{ shareAt }} = await lib("viewer");
      return shareAt({{ width: 96, height: 64 }}, given, {{ clientX: {x}, clientY: {y} }});
    """
    assert page.run(script, given=given) == shares
