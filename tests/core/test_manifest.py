"""The manifest names models that the pack can find once their files are where it says."""

from __future__ import annotations

import shutil

import pytest
from piying.core.checkpoints.found import BUILT_IN_ROOT, find_models
from piying.core.checkpoints.manifest import first_of, listed_models
from piying.core.host import MODEL_CATEGORIES, HeadlessHost


def test_ids_and_folders_are_one_to_a_model():
    models = listed_models()
    assert len({model.id for model in models}) == len({model.folder for model in models}) == len(models)


@pytest.mark.parametrize("model", listed_models(), ids=lambda model: model.id)
def test_a_model_in_its_folder_is_found(model, tmp_path):
    shutil.copytree(BUILT_IN_ROOT / model.family, tmp_path / model.folder)
    (found,) = find_models(model.family, HeadlessHost(models=[tmp_path]))
    assert found.name == model.folder
    assert model.folder.split("/")[0] in MODEL_CATEGORIES
    assert model.sources["huggingface"]["repo"].count("/") == 1


def test_newcomers_are_sent_to_the_smallest():
    assert [first_of(family).id for family in ("wan_vace", "prompt")] == ["wan2.1-vace-1.3b", "qwen3-0.6b"]
