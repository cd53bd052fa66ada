"""Fetching in the background, from a hub that stands in for Hugging Face: progress, stopping, going on."""

from __future__ import annotations

import json
import time

import pytest
from piying.core.download import manifest as manifest_module
from piying.core.download.downloadable import downloadable_models
from piying.core.download.hubs import HuggingFace
from piying.core.download.jobs import Downloader
from piying.core.errors import PiyingError
from piying.core.http import RetryPolicy
from piying.tests.install.hub import running_hub

CHAT = b"x" * 300_000
CONFIG = b'{"architectures": ["Qwen3ForCausalLM"]}'
REPO = "/Qwen/Qwen3-0.6B/resolve"


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("piying.core.download.hub_session.hugging_face", HuggingFace)
        for revision in ("main", "c0ffee"):
            hub.put(f"{REPO}/{revision}/config.json", CONFIG)
            hub.put(f"{REPO}/{revision}/vocab.txt", CHAT)
        yield hub


def wait(job, seconds=20):
    job.wait(seconds)
    assert job.state != "fetching"
    return job.to_json()


def test_a_model_arrives(hub, tmp_path):
    job = Downloader(RetryPolicy(timeout=5)).start("qwen3-0.6b", tmp_path)
    assert wait(job)["state"] == "done"
    assert job.to_json()["done"] == len(CONFIG) + len(CHAT)
    assert (tmp_path / "LLM/Qwen3-0.6B/vocab.txt").read_bytes() == CHAT
    (found,) = [offer for offer in downloadable_models("prompt", tmp_path) if offer.id == "qwen3-0.6b"]
    assert found.here == "yes"


def test_it_can_be_stopped_and_goes_on_from_there(hub, tmp_path):
    for revision in ("main", "c0ffee"):
        hub.files[f"{REPO}/{revision}/vocab.txt"].stalls = [100_000]
    fetcher = Downloader(RetryPolicy(timeout=30))
    job = fetcher.start("qwen3-0.6b", tmp_path)
    deadline = time.monotonic() + 10
    while job.to_json()["done"] < 100_000 and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(PiyingError, match="is being downloaded"):
        fetcher.start("qwen3-1.7b", tmp_path)
    assert fetcher.start("qwen3-0.6b", tmp_path) is job
    fetcher.cancel()
    hub.released.set()
    assert wait(job)["state"] in ("cancelled",)
    assert not (tmp_path / "LLM/Qwen3-0.6B/vocab.txt").exists()
    assert {offer.id: offer.here for offer in downloadable_models("prompt", tmp_path)}["qwen3-0.6b"] == "part"
    again = fetcher.start("qwen3-0.6b", tmp_path)
    assert wait(again)["state"] == "done"
    ranges = [asked.headers.get("range") for asked in hub.asked if asked.path.endswith("vocab.txt")]
    assert ranges[0] is None
    assert ranges[-1].startswith("bytes=")


def test_a_hub_that_has_nothing_is_told_in_a_sentence(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    hub.files.clear()
    said = wait(Downloader(RetryPolicy(timeout=2)).start("qwen3-0.6b", tmp_path))
    assert said["state"] == "failed"
    assert said["message"]


def test_only_models_of_the_manifest_are_fetched(tmp_path):
    with pytest.raises(PiyingError, match="no model '../x' to fetch"):
        Downloader().start("../x", tmp_path)


def test_offers_say_how_large_and_from_where(tmp_path):
    found = {offer.id: offer for offer in downloadable_models("wan_vace", tmp_path)}
    entry = next(m for m in json.loads(manifest_module.MANIFEST.read_text())["models"] if m["id"] == "wan2.1-vace-14b")
    fp16, folder = found["wan2.1-vace-14b-fp16"], found["wan2.1-vace-14b"]
    assert fp16.exact and fp16.bytes == 34675323640 + 11366399385 + 253815318
    assert not folder.exact and 40e9 < folder.bytes < 60e9
    assert folder.sources[0] == f"https://huggingface.co/{entry['files'][0]['sources']['huggingface']['repo']}"
    assert {offer.here for offer in found.values()} == {"no"}
    assert "wan2.1-vae" not in found
