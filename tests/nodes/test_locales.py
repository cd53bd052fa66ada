"""Chinese and English of everything a person reads on our nodes, and a help page for each of them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import piying
import pytest
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost

ROOT = Path(__file__).resolve().parents[2]
LOCALES, HELP = ROOT / "locales", ROOT / "web" / "docs"
LANGUAGES = ("en", "zh")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
UPDATE = os.environ.get("PIYING_UPDATE_LOCALES")  # set to write the English texts anew from the nodes


@pytest.fixture(autouse=True)
def host(tmp_path):
    set_host(HeadlessHost(input=tmp_path, output=tmp_path, temp=tmp_path))
    yield
    set_host(None)


def read(language, file="nodeDefs"):
    return json.loads((LOCALES / language / f"{file}.json").read_text(encoding="utf-8"))


def inputs_of(node):
    declared = node.INPUT_TYPES()
    return {**declared.get("required", {}), **declared.get("optional", {})}


def english(name, node, shown_as):
    outputs = zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)
    return {
        "display_name": shown_as,
        "description": node.DESCRIPTION,
        "inputs": {key: {"name": key, "tooltip": spec[1]["tooltip"]} for key, spec in inputs_of(node).items()},
        "outputs": {str(index): {"name": key, "tooltip": text} for index, (key, text) in enumerate(outputs)},
    }


def texts(entry):
    yield from (entry["display_name"], entry["description"])
    for slot in (*entry["inputs"].values(), *entry["outputs"].values()):
        yield from (slot["name"], slot["tooltip"])


def test_english_is_what_the_nodes_say():
    """Titles may have a word more than the node's own, for those who search by it."""
    committed = read("en")
    titles = {name: committed.get(name, {}).get("display_name", title) for name, title in title_of().items()}
    said = {name: english(name, node, titles[name]) for name, node in piying.NODE_CLASS_MAPPINGS.items()}
    if UPDATE:
        path = LOCALES / "en" / "nodeDefs.json"
        path.write_text(json.dumps(said, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        committed = said
    assert committed == said, "run this test with PIYING_UPDATE_LOCALES=1, then bring locales/zh up to date"


def title_of():
    return piying.NODE_DISPLAY_NAME_MAPPINGS


@pytest.mark.parametrize("name", piying.NODE_CLASS_MAPPINGS)
def test_english_titles_have_the_words_of_the_nodes_own(name):
    """What people type may come first: a search lists titles that begin with it before all others."""
    words = re.findall(r"[\w-]+", read("en")[name]["display_name"])
    assert set(re.findall(r"[\w-]+", title_of()[name])) <= set(words)


@pytest.mark.parametrize("name", piying.NODE_CLASS_MAPPINGS)
def test_chinese_has_every_text(name):
    said, translated = read("en")[name], read("zh")[name]
    assert list(translated["inputs"]) == list(said["inputs"])
    assert list(translated["outputs"]) == list(said["outputs"])
    plain = [text for text in texts(translated) if not CHINESE.search(text)]
    assert set(plain) <= {"Wan VACE", "CFG"}, "these are not in Chinese"
    assert CHINESE.search(translated["display_name"])


def test_chinese_has_nothing_left_over():
    assert list(read("zh")) == list(read("en")) == list(piying.NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_means_something_else_to_the_frontend(language):
    """Its translations take braces for places to fill, a bar for plurals, an at sign for links."""
    wrong = [text for entry in read(language).values() for text in texts(entry) if re.search(r"[{}|@]", text)]
    assert wrong == []


@pytest.mark.parametrize("file", ["main", "settings"])
def test_other_texts_are_there_in_both_languages(file):
    def paths(value, at=()):
        return {p for k, v in value.items() for p in paths(v, (*at, k))} if isinstance(value, dict) else {at}

    english, chinese = (read(language, file) for language in LANGUAGES)
    chinese.get("piying", {}).pop("messages", None)  # in English they are in the code: see tests/web/test_messages.py
    assert paths(english) == paths(chinese)


def test_every_part_of_a_category_has_a_translation():
    parts = {part for node in piying.NODE_CLASS_MAPPINGS.values() for part in node.CATEGORY.split("/")}
    assert parts - {"Piying", "VACE"} == set(read("zh", "main")["nodeCategories"])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", piying.NODE_CLASS_MAPPINGS)
def test_every_node_has_a_help_page(name, language):
    """NODE.md, and NODE/LANGUAGE.md where it is not English: what the frontend asks for."""
    page = (HELP / f"{name}.md" if language == "en" else HELP / name / f"{language}.md").read_text(encoding="utf-8")
    node = piying.NODE_CLASS_MAPPINGS[name]
    title = page.splitlines()[0].removeprefix("# ")
    assert title == read(language)[name]["display_name"]
    sections = {"en": ("Inputs", "Outputs", "Example"), "zh": ("输入", "输出", "示例")}[language]
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(sections)
    named = re.findall(r"^- \*\*(\w+)\*\*", page, re.MULTILINE)
    assert named == [*inputs_of(node), *node.RETURN_NAMES]
    tail = page.split(f"## {sections[2]}")[1].strip()
    assert len(tail) > 10
    assert language == "en" or CHINESE.search(tail)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", piying.NODE_CLASS_MAPPINGS)
def test_help_says_what_the_tooltips_say(name, language):
    page = (HELP / f"{name}.md" if language == "en" else HELP / name / f"{language}.md").read_text(encoding="utf-8")
    entry = read(language)[name]
    said = [entry["description"], *(slot["tooltip"] for slot in entry["inputs"].values())]
    assert [text for text in said if text not in page] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_loader_says_where_the_vaes_number_type_is_chosen(language):
    said = read(language)["PiyingLoadWanVACE"]["inputs"]["precision"]["tooltip"]
    assert "vae_precision" in said and "vae_precision" in inputs_of(piying.NODE_CLASS_MAPPINGS["PiyingVACESample"])
    assert not re.search("VAE always|VAE 始终", said), "it computes in fp16 where speed is not reference"


# PiyingFrameRate changes no picture; of Z-Image no model ships with the pack to draw one with.
UNSEEN = ("PiyingFrameRate", "PiyingZImage")


@pytest.mark.parametrize("name", piying.NODE_CLASS_MAPPINGS)
def test_help_has_pictures_of_what_can_be_seen(name):
    outputs = set(piying.NODE_CLASS_MAPPINGS[name].RETURN_TYPES)
    seen = bool(outputs & {"IMAGE", "MASK", "VACE_TASK"}) and name not in UNSEEN
    for page in (HELP / f"{name}.md", HELP / name / "zh.md"):
        pictures = re.findall(r"!\[.*?\]\((.+?)\)", page.read_text(encoding="utf-8"))
        assert len(pictures) == seen
        assert all(0 < (HELP / picture).stat().st_size < 60_000 for picture in pictures)


@pytest.mark.parametrize("workflow", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_templates_have_thumbnails(workflow):
    """NAME.jpg beside NAME.json: the only name the template browser asks for."""
    data = workflow.with_suffix(".jpg").read_bytes()
    assert data[:3] == b"\xff\xd8\xff"
    assert len(data) < 60_000


@pytest.mark.parametrize("language", LANGUAGES)
def test_templates_have_titles(language):
    titles = read(language, "main")["piying"]["templates"]
    assert set(titles) == {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert len(set(titles.values())) == len(titles)
    assert not [title for title in titles.values() if re.search(r"[/\\?#%.]", title)], "they are part of an address"
    assert language == "en" or all(CHINESE.search(title) for title in titles.values())


@pytest.mark.parametrize("name", piying.NODE_CLASS_MAPPINGS)
def test_every_node_has_words_to_be_found_by(name):
    words = piying.NODE_CLASS_MAPPINGS[name].SEARCH_ALIASES
    assert len(words) == len(set(words)) > 0
    assert any(CHINESE.search(word) for word in words)


def test_what_people_type_is_in_the_titles():
    """The search of frontend 1.27 knows titles alone."""
    english_titles = [entry["display_name"].lower() for entry in read("en").values()]
    chinese_titles = [entry["display_name"].lower() for entry in read("zh").values()]
    for word in ("vace", "wan", "hunyuan", "inpaint", "video", "text to video", "text to image", "depth", "prompt"):
        assert any(word in title for title in english_titles), word
    for word in (
        "vace",
        "wan",
        "混元",
        "文生视频",
        "文生图",
        "局部重绘",
        "深度",
        "提示词",
        "inpaint",
        "万相",
        "长视频",
    ):
        assert any(word in title for title in chinese_titles), word


def test_the_extension_is_small_and_stays_at_home():
    """Under 60 kB but for comments, and nothing is fetched from elsewhere: addresses are those the server names.

    Of that 7 kB are the look at a node's frames: before and after, scrubbing, all at once, and masks over the video,
    which no node of ComfyUI 0.3 shows (its Image Compare came later, and takes single pictures).
    """
    files = [path for path in (ROOT / "web").rglob("*") if path.suffix in (".js", ".css")]
    comments = re.compile(r"^\s*(//[^\n]*|/\*\*.*?\*/)\n", re.MULTILINE | re.DOTALL)
    assert sum(len(comments.sub("", path.read_text(encoding="utf-8")).encode()) for path in files) < 60_000
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!\W)\w", text), path
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), path
        assert "XMLHttpRequest" not in text and not re.search(r"(?<!\w)fetch\(", text), path
