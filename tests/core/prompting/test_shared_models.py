"""Models that Ollama and LM Studio keep: offered by name, run where they lie, and left as they are."""

from __future__ import annotations

import hashlib
import json

import pytest
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.errors import PiyingError
from piying.core.executor.model_cache import evict_models
from piying.core.host.headless import HeadlessHost
from piying.core.prompting.family import PROMPT
from piying.core.prompting.shared_models import shared_models

from ..test_gguf_text import qwen, qwen_file
from ..test_single_models import answer


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    yield tmp_path / "home"
    evict_models()


def write_ollama(root, place, weights, kind="application/vnd.ollama.image.model"):
    blob = root / "blobs" / f"sha256-{hashlib.sha256(weights).hexdigest()}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(weights)
    manifest = root / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    digest = blob.name.replace("-", ":")
    layers = [{"mediaType": "application/vnd.ollama.image.license", "digest": digest}]
    manifest.write_text(json.dumps({"layers": [*layers, {"mediaType": kind, "digest": digest}]}))
    return manifest, blob


def test_models_of_other_programs_are_offered_and_run(tmp_path, home):
    weights = qwen_file(tmp_path / "x.gguf", qwen("qwen2"), "qwen2").read_bytes()
    root = home / ".ollama" / "models"
    write_ollama(root, "registry.ollama.ai/library/qwen2.5/0.5b", weights)
    write_ollama(root, "hf.co/someone/Qwen-GGUF/Q4", weights)
    studio = home / ".lmstudio" / "models" / "qwen" / "Qwen2.5-GGUF" / "q8.gguf"
    studio.parent.mkdir(parents=True)
    studio.write_bytes(weights)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    host = HeadlessHost(models=[tmp_path / "models"], chosen_device="cpu", cache=tmp_path / "cache")
    names = ["LM Studio/qwen/Qwen2.5-GGUF/q8.gguf", "Ollama/hf.co/someone/Qwen-GGUF:Q4", "Ollama/qwen2.5:0.5b"]
    assert set(names) <= set(model_choices(PROMPT, host))
    given = [answer(name, host) for name in names]
    assert given[0] == given[1] == given[2]
    assert given[0].text
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_the_environment_says_where_ollama_keeps_its_models(tmp_path, home, monkeypatch):
    weights = qwen_file(tmp_path / "x.gguf", qwen("qwen2"), "qwen2").read_bytes()
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    _, blob = write_ollama(tmp_path / "elsewhere", "registry.ollama.ai/library/qwen2.5/0.5b", weights)
    found = choose_model(ModelHandle(PROMPT, "Ollama/qwen2.5:0.5b"), HeadlessHost(models=[tmp_path / "models"]))
    assert found.path == blob


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"layers": 3}', '{"layers": [3]}', '{"layers": [{"mediaType": [], "digest": {}}]}']
    + [
        json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": digest}]})
        for digest in ("sha256:" + "0" * 64, "sha256:../../secret", 3)
    ],
)
def test_manifests_that_lead_nowhere_are_passed_over(home, text):
    manifest, _ = write_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/x/latest", b"GGUF")
    manifest.write_text(text)
    assert list(shared_models()) == []


@pytest.mark.parametrize("name", ["q-00001-of-00002.gguf", "cut.gguf"])
def test_files_that_cannot_be_used_say_why_as_those_of_the_models_folder(tmp_path, home, name):
    path = qwen_file(home / ".lmstudio" / "models" / "a" / name, qwen("qwen3"))
    if name == "cut.gguf":
        path.write_bytes(path.read_bytes()[:5000])
    own = tmp_path / "models" / "LLM" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(path.read_bytes())
    host = HeadlessHost(models=[tmp_path / "models"], chosen_device="cpu")
    reasons = []
    for known, place in ((f"LM Studio/a/{name}", path), (f"LLM/{name}", own)):
        with pytest.raises(PiyingError) as caught:
            check_model(PROMPT, known, host)
        reasons.append(
            str(caught.value).partition("cannot be used: ")[2].partition(" Here are")[0].replace(str(place), "")
        )
    assert reasons[0] == reasons[1] != ""
