"""What people type finds our nodes, and help pages open beside them, in English and Chinese."""

from __future__ import annotations

import pytest
from piying.tests.browser.page import evaluate, opened, picture

pytestmark = pytest.mark.browser

ENGLISH = {
    "vace": "VACE Sample",
    "wan": "Wan VACE",
    "inpaint video": "VACE: Inpaint Video",
    "hunyuan": "Hunyuan-DiT",
    "text to video": "VACE Sample",
    "image to video": "VACE: Extend",
    "first frame": "VACE: Extend",
    "lora": "Add LoRA",
    "qwen": "Load Prompt Model",
}
CHINESE = {
    "vace": "VACE Sample",
    "wan": "Wan VACE",
    "混元": "Hunyuan-DiT 文生图",
    "文生视频": "VACE Sample",
    "局部重绘": "VACE: Inpaint",
    "提示词": "提示词扩写",
    "首帧": "VACE: Extend",
    "首尾帧": "VACE: Extend",
    "图生视频": "VACE: Extend",
    "抠图": "Segment by Name",
    "lora": "Add LoRA",
    "qwen": "加载提示词模型",
}
# Hits that are on the screen before anyone scrolls. Frontend 1.58 lists twenty nodes of ComfyUI before any for "wan".
FIRST = 6
LATER = {"wan", "提示词", "vace"}
TEMPLATES = """(async () => {
  const { api } = window.app;
  const folder = window.LiteGraph.registered_node_types.PiyingVACESample.nodeData.python_module.split(".")[1];
  const [module, titles] = Object.entries(await api.getWorkflowTemplates()).find(([name]) => name.startsWith(folder));
  const served = (title, ending) => fetch(api.apiURL(`/workflow_templates/${module}/${title}.${ending}`));
  const answers = await Promise.all(titles.flatMap((title) => [served(title, "json"), served(title, "jpg")]));
  return { titles, failed: answers.filter((answer) => !answer.ok).length };
})()"""
# Every help page and every picture in it, asked for where the frontend asks.
PAGES = """(async () => {
  const types = window.LiteGraph.registered_node_types, found = {};
  const folder = types.PiyingVACESample.nodeData.python_module.split(".")[1];
  for (const name of Object.keys(types).filter((type) => /^Piying/.test(type))) {
    const texts = await Promise.all([`${name}.md`, `${name}/zh.md`].map(async (page) => {
      const answer = await fetch(`/extensions/${folder}/docs/${page}`);
      return answer.ok ? await answer.text() : "";
    }));
    const names = texts.flatMap((text) => [...text.matchAll(/!\\[[^\\]]*\\]\\(([^)]+)\\)/g)].map((match) => match[1]));
    const answers = await Promise.all(names.map((image) => fetch(`/extensions/${folder}/docs/${image}`)));
    found[name] = { texts, missing: names.filter((_, index) => !answers[index].ok) };
  }
  return found;
})()"""


def looked_at(words, shown):
    """Search, then open a help page."""
    actions = {
        "found": {"do": "search_nodes", "words": list(words)},
        "templates": evaluate(TEMPLATES),
        "graph": opened("inpaint"),
        "help": {"do": "open_help", "node": "PiyingVACEInpaint"},
        "picture": picture(shown),
    }
    return {"do": "attempt", "actions": list(actions.values())}, list(actions)


@pytest.fixture(scope="module")
def looks(drive, screenshots):
    """One page, first in English, then in Chinese; the language is the server's, so it is put back."""
    english, names = looked_at(ENGLISH, screenshots / "help_en.png")
    chinese, _ = looked_at(CHINESE, screenshots / "help_zh.png")
    change = [{"do": "locale", "language": language} for language in ("zh", "en")]
    first, pages, _, second, _ = drive([english, evaluate(PAGES), change[0], chinese, change[1]]).results
    assert [first["error"], second["error"]] == [None, None]
    of = {
        language: dict(zip(names, look["results"], strict=True)) for language, look in (("en", first), ("zh", second))
    }
    return {**of, "pages": pages}


@pytest.mark.parametrize(("word", "wanted"), ENGLISH.items())
def test_what_people_type_finds_nodes(looks, word, wanted):
    assert any(wanted in text and "Piying" in text for text in looks["en"]["found"][word])


@pytest.mark.parametrize(("word", "wanted"), CHINESE.items())
def test_what_people_type_finds_nodes_in_chinese(looks, word, wanted):
    assert any(wanted in text and "Piying" in text for text in looks["zh"]["found"][word])


@pytest.mark.parametrize(("language", "words"), [("en", ENGLISH), ("zh", CHINESE)])
def test_ours_are_among_the_first_hits(looks, language, words):
    found = looks[language]["found"]
    late = [
        word
        for word, wanted in words.items()
        if word not in LATER and not any(wanted in text and "Piying" in text for text in found[word][:FIRST])
    ]
    assert late == []


@pytest.mark.parametrize(("language", "first"), [("en", "Text to image"), ("zh", "文生图")])
def test_templates_have_titles_and_open(looks, language, first):
    templates = looks[language]["templates"]
    assert templates["titles"][0] == first
    assert len(templates["titles"]) == 11
    assert templates["failed"] == 0


def test_the_first_hit_for_a_task_is_ours(looks):
    assert "VACE: Inpaint Video" in looks["en"]["found"]["inpaint video"][0]
    assert "文生视频" in looks["zh"]["found"]["文生视频"][0]


def test_the_help_button_opens_our_page(looks):
    english, chinese = looks["en"]["help"], looks["zh"]["help"]
    assert "Example" in english["text"]
    assert "示例" in chinese["text"]
    assert english["pictures"] == chinese["pictures"] == 1


def test_every_node_has_help_in_both_languages(looks):
    pages = looks["pages"]
    assert len(pages) > 20
    lacking = [
        name for name, page in pages.items() if "## In" not in page["texts"][0] or "## 输" not in page["texts"][1]
    ]
    assert lacking == []
    assert {name: page["missing"] for name, page in pages.items() if page["missing"]} == {}
