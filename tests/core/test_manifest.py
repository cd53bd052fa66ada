"""The manifest names models that the pack can find once their files are where it says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path, PurePosixPath

import pytest
from piying.core.catalog.component_sizes import listed_components
from piying.core.catalog.discovery import installed_models
from piying.core.catalog.installed_model import BUILT_IN_ROOT, has_built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.download.cli import model_size
from piying.core.download.manifest import (
    MANIFEST,
    files_of,
    find_listed,
    first_of,
    listed_models,
    read_manifest,
    safe_path,
)
from piying.core.errors import PiyingError
from piying.core.families.registry import family_named
from piying.core.host.base import MODEL_CATEGORIES
from piying.core.host.headless import HeadlessHost
from piying.core.planner.machine import synthetic
from piying.core.planner.plan import plan

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
# The folders of ComfyUI's models folder that such files belong into, and the two for folders of several files.
PLACES = {
    "clip_vision",
    "diffusion_models",
    "text_encoders",
    "vae",
    "loras",
    "checkpoints",
    "diffusers",
    "LLM",
    "annotators",
    "tokenizers",
}
MODELS = listed_models()
FILES = [file for model in MODELS for file in model.files]
REPOSITORIES = [model for model in MODELS if model.files[0].is_repository]
# tests/core/test_z_image.py has a folder of Z-Image, of which no toy ships.
FOLDERS = [model for model in REPOSITORIES if model.kind == "model" and has_built_in(model.family)]


def ids(item):
    return getattr(item, "id", getattr(item, "path", None))


def test_every_family_is_there_in_the_sizes_that_matter():
    assert {model.id for model in MODELS} >= {
        "wan2.1-vace-1.3b",
        "wan2.1-vace-1.3b-fp16",
        "wan2.1-vace-14b",
        "wan2.1-vace-14b-fp16",
        "wan2.1-vace-14b-fp8",
        "umt5-xxl-fp16",
        "umt5-xxl-fp8-scaled",
        "wan2.1-vae",
        "hunyuan-dit-v1.1",
        "hunyuan-dit-v1.2",
        "hunyuan-dit-v1.2-distilled",
        "qwen3-0.6b",
        "qwen3-1.7b",
        "qwen3-4b",
    }


def test_ids_and_paths_are_one_to_a_model():
    assert len({model.id for model in MODELS}) == len(MODELS)
    assert len({file.path for file in FILES}) == len(FILES), "what models share is a part of its own"


@pytest.mark.parametrize("model", MODELS, ids=ids)
def test_a_model_says_what_people_ask(model):
    assert model.title and model.licence and model.files
    assert model.kind in ("model", "part", "lora")
    assert (model.min_vram_gb is not None) == (model.kind == "model")
    assert (set(model.settings) == {"steps", "cfg", "shift", "strength"}) == (model.kind == "lora")
    assert {part.kind for part in find_listed(model.needs)} <= {"part"}


CARDS = (4, 6, 8, 12, 16, 24)  # GB
PLANNED = [model for model in MODELS if model.kind == "model" and listed_components(model.id)]


def planned_work(model):
    """Return what docs/models.md says the smallest card is for."""
    family = family_named(model.family)
    work = family.work(family.trained_on(model.id).settings, ModelHandle(family, model.id))
    return family.phases(listed_components(model.id), work)


@pytest.mark.parametrize("model", PLANNED, ids=ids)
def test_the_smallest_card_is_the_first_that_has_a_plan(model):
    cards = (card for card in CARDS if plan(planned_work(model), synthetic(card, 16)).fits)
    assert model.min_vram_gb == next(cards)


def test_nearly_every_model_has_a_planned_card():
    rest = {model.id for model in MODELS if model.kind == "model"} - {model.id for model in PLANNED}
    assert rest == {"hunyuan-dit-v1.1", "hunyuan-dit-v1.2-checkpoint", "qwen3-vl-2b", "ernie-4.5-0.3b"}


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_file_has_a_place_and_sources(file):
    assert PurePosixPath(file.path).parts[0] in PLACES
    assert safe_path(file.path) == file.path.rstrip("/")
    assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert file.bytes is None or file.bytes > 1_000_000
    assert "huggingface" in file.sources and set(file.sources) <= {"huggingface", "modelscope"}
    for source in file.sources.values():
        assert source.repo.count("/") == 1
        assert (source.file is None) == file.is_repository
    if not file.is_repository:
        assert {PurePosixPath(source.file or "").name for source in file.sources.values()} == {
            PurePosixPath(file.path).name
        }


@pytest.mark.parametrize("model", REPOSITORIES, ids=ids)
def test_of_a_repository_nothing_that_runs_code_is_fetched(model):
    patterns = model.files[0].only
    assert patterns
    for name in ("pytorch_model.bin", "x.pt", "x.pth", "x.ckpt", "modeling_x.py", "x/y.pkl", "x.onnx", "README.md"):
        assert not any(PurePosixPath(name).match(pattern) for pattern in patterns), name


@pytest.mark.parametrize("model", FOLDERS, ids=ids)
def test_a_model_in_its_folder_is_found(model, tmp_path):
    shutil.copytree(BUILT_IN_ROOT / model.family, tmp_path / model.folder)
    (found,) = installed_models(family_named(model.family), HeadlessHost(models=[tmp_path]))
    assert found.name == model.folder
    assert model.folder.split("/")[0] in MODEL_CATEGORIES


@pytest.mark.parametrize("model", FOLDERS, ids=ids)
def test_the_patterns_of_a_repository_take_all_that_a_model_reads(model, tmp_path):
    """With the toy model of the family as the repository."""
    from fnmatch import fnmatchcase

    def is_wanted(path):
        return any(fnmatchcase(path.as_posix(), pattern) for pattern in model.files[0].only)

    source = BUILT_IN_ROOT / model.family
    names = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    left = [name.as_posix() for name in names if not is_wanted(name) and name.suffix not in (".md", ".png", ".mp4")]
    assert left == []
    assert any(is_wanted(name) for name in names)


def test_newcomers_are_sent_to_the_smallest():
    families = ("wan_vace", "hunyuan_dit", "z_image", "prompt")
    smallest = ["wan2.1-vace-1.3b", "hunyuan-dit-v1.2", "z-image-turbo-bf16", "qwen3-0.6b"]
    assert [first_of(family).id for family in families] == smallest


def test_a_model_comes_with_its_parts_and_each_file_once():
    models = find_listed(["wan2.1-vace-14b-fp8", "wan2.1-vace-1.3b-fp16", "wan2.1-vae"])
    paths = [file.path for file in files_of(models)]
    assert len(paths) == len(set(paths)) == 5
    assert paths[-1].startswith("diffusion_models/wan2.1_vace_1.3B")


def test_an_unknown_id_lists_the_known():
    with pytest.raises(PiyingError, match=r"no model 'wan9' to fetch. There are: wan2.1-vace-1.3b, .*qwen3-4b"):
        find_listed(["qwen3-4b", "wan9"])


FILE = """{"schema": 2, "models": [{"id": "x", "family": "wan_vace", "kind": "model", "title": "X", "licence": "MIT",
"min_vram_gb": 1, "files": [{"path": "vae/x.safetensors", "bytes": %s, "sha256": %s, "sources": {}}]}]}"""


@pytest.mark.parametrize(
    "content",
    [
        *(FILE % pair for pair in (('"12"', "null"), ("true", "null"), ("1.5", "null"), ("1", '"0f"'), ("1", "3"))),
        "{",
        "[]",
        '{"schema": 1, "models": []}',
        '{"schema": 2}',
        '{"schema": 2, "models": [{"id": "x"}]}',
    ],
)
def test_another_kind_of_list_is_said(tmp_path, content):
    path = tmp_path / "models_manifest.json"
    path.write_text(content)
    with pytest.raises(PiyingError, match="cannot be read as a list of models of schema 2"):
        read_manifest(path)


def test_other_keys_are_other_peoples_business(tmp_path):
    content = json.loads(MANIFEST.read_text(encoding="utf-8"))
    content["models"] = [{**content["models"][0], "something": "new"}]
    path = tmp_path / "models_manifest.json"
    path.write_text(json.dumps(content))
    assert read_manifest(path) == MODELS[:1]


@pytest.mark.parametrize("path", ["../../escaped.bin", "/etc/passwd", "a/../../b", "C:/x"])
def test_a_path_that_leaves_the_models_folder_is_refused(tmp_path, path):
    content = json.loads(MANIFEST.read_text(encoding="utf-8"))
    content["models"][0]["files"][0]["path"] = path
    (tmp_path / "models_manifest.json").write_text(json.dumps(content))
    with pytest.raises(PiyingError, match="leaves its folder"):
        read_manifest(tmp_path / "models_manifest.json")


# docs/models.md


def rows_of(heading):
    text = DOCS.read_text(encoding="utf-8").partition(heading)[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_the_documentation_lists_every_model_as_it_is():
    expected = [
        [
            f"`{model.id}`",
            model.title,
            model_size(model),
            model.licence,
            f"{model.min_vram_gb} GB" if model.min_vram_gb else "-",
        ]
        for model in MODELS
    ]
    assert rows_of("| id | model | size | licence | smallest card |") == expected


def test_the_documentation_has_the_settings_of_the_loras():
    expected = [
        [f"`{model.id}`", *(f"{model.settings[name]:g}" for name in ("steps", "cfg", "shift", "strength"))]
        for model in MODELS
        if model.settings
    ]
    assert rows_of("| id | steps | cfg | shift | strength |") == expected
