"""A family of models is named in its own folder, in the registries, and nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from piying.core.download.manifest import listed_models
from piying.core.families.registry import FAMILIES, planned_families

ROOT = Path(__file__).resolve().parents[2]
# Where a family lives: its package, and the files of its nodes.
HOMES = {
    "wan_vace": {
        *("core/wan", "nodes/wan_inputs.py", "nodes/wan_vace.py", "nodes/vace_tasks.py", "nodes/vace_conversion.py"),
        *("nodes/long_video.py", "nodes/guidance.py", "nodes/timing.py", "nodes/context.py"),
    },
    "wan_video": {"core/wan", "core/wan_video", "nodes/wan_inputs.py", "nodes/wan_video.py", "nodes/context.py"},
    "hunyuan_dit": {"core/hunyuan_dit", "nodes/hunyuan_dit.py"},
    "z_image": {"core/z_image", "nodes/z_image.py"},
    "prompt": {"core/prompting", "nodes/prompt.py"},
    "depth": {"core/controls", "nodes/controls.py"},
    "segmentation": {"core/controls", "nodes/controls.py"},
    "pose": {"core/controls", "nodes/controls.py"},
    "detector": {"core/controls", "nodes/controls.py"},
}
REGISTRIES = {"core/families/registry.py", "nodes/__init__.py"}
SOURCES = [path for part in ("core", "nodes", "runner", "serve") for path in sorted((ROOT / part).rglob("*.py"))]


def words(family) -> set[str]:
    """Return what only this family is called: no words of the language, such as "depth"."""
    transformers = {name for spec in family.components if spec.name != "vae" for name in spec.classes}
    names = {family.key, family.title, family.socket, *family.index_classes, *family.lora_widths.values()}
    # Two families may share an engine.
    others = {home for key, homes in HOMES.items() if key != family.key for home in homes}
    names |= {home.replace("/", ".") for home in HOMES[family.key] - others if home.startswith("core/")}
    shared = {
        "T5EncoderModel",
        "UMT5EncoderModel",
        "BertModel",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3Model",
        "CLIPVisionModel",
        "PROMPT_MODEL",
    }  # of libraries, and of ComfyUI's wires
    return {name for name in names | transformers if re.search(r"[A-Z_.-]", name)} - shared


def texts(tree: ast.Module) -> set[str]:
    """Return every text and every name of a file, those of what it imports included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Name | ast.Attribute | ast.alias):
            found.add(getattr(node, "id", None) or getattr(node, "attr", None) or node.name)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def is_home(path: Path, family) -> bool:
    relative = path.relative_to(ROOT).as_posix()
    return any(relative == home or relative.startswith(f"{home}/") for home in HOMES[family.key])


def test_every_family_has_a_home():
    assert {family.key for family in FAMILIES} == set(HOMES)


def test_every_planned_family_has_a_model_to_download():
    """`auto` without a model, and the page, advise the first one of the manifest."""
    assert {family.key for family in planned_families()} <= {model.family for model in listed_models()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_other_file_names_a_family(path):
    if path.relative_to(ROOT).as_posix() in REGISTRIES:
        return
    said = " \n ".join(texts(ast.parse(path.read_text(encoding="utf-8"))))
    strangers = [family for family in FAMILIES if not is_home(path, family)]
    named = {
        word for family in strangers for word in words(family) if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said)
    }
    assert not named
