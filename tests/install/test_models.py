"""`python install.py --models ID` and its relatives, against servers that stand in for the two hubs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from piying.tests.install.hub import Hub, running_hub

ROOT = Path(__file__).resolve().parents[2]
WINDOWS = os.name == "nt"


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def safetensors(seed: int, size: int) -> bytes:
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + noise(seed, size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


WEIGHTS, VAE, CHAT = safetensors(1, 200_000), safetensors(2, 50_000), safetensors(3, 100_000)
CHAT_FILES = {"config.json": b'{"architectures": ["Qwen3ForCausalLM"]}', "model.safetensors": CHAT, "LICENSE": b"yes"}
UNWANTED = {"README.md": b"read me", "pytorch_model.bin": b"a pickle", "onnx/model.onnx": b"another form"}


def sources(repo: str, file: str | None = None) -> dict[str, object]:
    rest = {"file": file} if file else {}
    return {
        "huggingface": {"repo": repo, "revision": "main", **rest},
        "modelscope": {"repo": repo, "revision": "master", **rest},
    }


def entry(name: str, files: list[dict[str, object]], **more: object) -> dict[str, object]:
    titles = {"family": "wan_vace", "kind": "model", "title": f"The {name}", "licence": "MIT", "min_vram_gb": 6}
    return {"id": name, **titles, **more, "files": files}


MANIFEST = {
    "schema": 2,
    "models": [
        entry(
            "video",
            [
                {
                    "path": "diffusion_models/video.safetensors",
                    "bytes": len(WEIGHTS),
                    "sha256": sha256(WEIGHTS),
                    "sources": sources("Org/Video", "split files/video.safetensors"),
                }
            ],
            needs=["vae"],
        ),
        entry(
            "vae",
            [
                {
                    "path": "vae/vae.safetensors",
                    "bytes": None,
                    "sha256": None,
                    "sources": sources("Org/Parts", "vae.safetensors"),
                }
            ],
            min_vram_gb=None,
        ),
        entry(
            "chat",
            [
                {
                    "path": "LLM/Chat/",
                    "only": ["*.json", "*.safetensors", "LICENSE*"],
                    "bytes": None,
                    "sha256": None,
                    "sources": sources("Org/Chat"),
                }
            ],
        ),
    ],
}


def fill(hub: Hub, prefix: str, revision: str) -> None:
    hub.put(f"{prefix}/Org/Video/resolve/{revision}/split files/video.safetensors", WEIGHTS)
    hub.put(f"{prefix}/Org/Parts/resolve/{revision}/vae.safetensors", VAE)
    for name, data in {**CHAT_FILES, **UNWANTED}.items():
        weights = name.endswith(("safetensors", "bin", "onnx"))
        hub.put(f"{prefix}/Org/Chat/resolve/{revision}/{name}", data, sha256="" if weights else None)


@dataclass
class Pack:
    """A copy of what install.py needs, in ComfyUI's custom_nodes, and the hubs it may ask."""

    root: Path
    hugging_face: Hub
    model_scope: Hub

    @property
    def models(self) -> Path:
        return self.root.parents[1] / "models"

    def environment(self, **more: str) -> dict[str, str]:
        own = {"HOME": str(self.root.parents[1]), "PYTHONIOENCODING": "utf-8", "no_proxy": "127.0.0.1"}
        hubs = {"HF_ENDPOINT": self.hugging_face.url, "MODELSCOPE_ENDPOINT": self.model_scope.url}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "XDG_"))}
        return {**kept, **own, **hubs, **more}

    def command(self, *options: object) -> list[object]:
        # Without site-packages: the standard library has to be enough.
        return [sys.executable, "-S", self.root / "install.py", "--no-dependencies", *options]

    def run(self, *options: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options),
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    def here(self) -> dict[str, bytes]:
        files = (path for path in self.models.rglob("*") if path.is_file())
        return {
            path.relative_to(self.models).as_posix(): path.read_bytes() for path in files if path.suffix != ".lock"
        }

    def ledger(self) -> dict[str, dict[str, object]]:
        return json.loads((self.models / "piying-models.lock.json").read_text(encoding="utf-8"))


def copy_pack(root: Path) -> None:
    for file in ("install.py", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / file, root)
    shutil.copytree(ROOT / "core", root / "core", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (root / "models_manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")


@pytest.fixture
def pack(tmp_path):
    root = tmp_path / "ComfyUI" / "custom_nodes" / "Piying 皮影"
    root.mkdir(parents=True)
    copy_pack(root)
    with running_hub() as hugging_face, running_hub() as model_scope:
        fill(hugging_face, "", "main")
        fill(model_scope, "/models", "master")
        yield Pack(root, hugging_face, model_scope)


def test_a_model_and_its_parts_come_and_stay(pack):
    done = pack.run("--models", "video")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    here = pack.here()
    assert here.pop("piying-models.lock.json")
    assert here == {"diffusion_models/video.safetensors": WEIGHTS, "vae/vae.safetensors": VAE}
    assert "The video, licence: MIT" in done.stdout
    assert "2 files are in" in done.stdout
    assert pack.model_scope.asked == []

    pack.hugging_face.asked.clear()
    again = pack.run("--models", "video")
    assert again.returncode == 0
    assert "0 of them new" in again.stdout
    assert [asked.path for asked in pack.hugging_face.asked if asked.path != "/"] == []


def test_a_repository_comes_as_its_patterns_say(pack):
    done = pack.run("--models", "chat")
    assert done.returncode == 0, done.stdout + done.stderr
    here = pack.here()
    assert here.pop("piying-models.lock.json")
    assert here == {f"LLM/Chat/{name}": data for name, data in CHAT_FILES.items()}
    entry = pack.ledger()["files"]["LLM/Chat/config.json"]
    assert len(entry.pop("check")) == 16
    assert entry == {
        "bytes": len(CHAT_FILES["config.json"]),
        "sha256": sha256(CHAT_FILES["config.json"]),
        "source": "huggingface:Org/Chat",
    }
    pack.hugging_face.asked.clear()
    assert pack.run("--models", "chat").returncode == 0
    assert pack.hugging_face.asked == [], "what is whole and known asks nobody"
    (pack.models / "LLM/Chat/LICENSE").unlink()
    assert pack.run("--models", "chat").returncode == 0
    assert pack.here()["LLM/Chat/LICENSE"] == b"yes"


def test_several_models_at_once_into_a_folder_of_choice(pack, tmp_path):
    done = pack.run("--models", "vae", "--models", "chat", "vae", "--to", tmp_path / "elsewhere")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "elsewhere/vae/vae.safetensors").read_bytes() == VAE
    assert (tmp_path / "elsewhere/LLM/Chat/model.safetensors").read_bytes() == CHAT
    assert not pack.models.exists()


def test_outside_of_comfyui_the_folder_is_beside(pack, tmp_path):
    shutil.copytree(pack.root, tmp_path / "alone")
    pack.root = tmp_path / "alone"
    assert f"in {tmp_path / 'alone' / 'models'}." in pack.run("--list").stdout


def test_the_list_shows_what_is_here(pack):
    def here():
        return {line.split()[0]: line.split()[-1] for line in pack.run("--list").stdout.splitlines()[1:4]}

    assert here() == {"video": "no", "vae": "no", "chat": "no"}
    pack.run("--models", "video", "chat")
    assert here() == {"video": "yes", "vae": "yes", "chat": "yes"}
    (pack.models / "LLM/Chat/LICENSE").unlink()
    (pack.models / "diffusion_models/video.safetensors").write_bytes(WEIGHTS[:-1])
    (pack.models / "vae/vae.safetensors").rename(pack.models / "vae/vae.safetensors.part")
    assert here() == {"video": "no", "vae": "part", "chat": "part"}


def test_the_list_needs_no_network(pack):
    done = pack.run("--list", HF_ENDPOINT="https://nowhere.invalid", MODELSCOPE_ENDPOINT="https://nowhere.invalid")
    assert done.returncode == 0
    heading, video, vae, chat, last = done.stdout.splitlines()
    assert heading.split() == ["id", "model", "size", "licence", "smallest", "card", "here"]
    assert video.split() == ["video", "The", "video", "200.1", "kB", "and", "more", "MIT", "6", "GB", "no"]
    assert vae.split() == ["vae", "The", "vae", "?", "MIT", "-", "no"]
    assert chat.split()[0] == "chat"
    assert str(pack.models) in last


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_one_hub_by_choice(pack, source):
    assert pack.run("--models", "video", "chat", "--source", source).returncode == 0
    asked = {"huggingface": pack.hugging_face, "modelscope": pack.model_scope}
    assert asked.pop(source).asked
    (other,) = asked.values()
    assert other.asked == []
    assert pack.ledger()["files"]["vae/vae.safetensors"]["source"] == f"{source}:Org/Parts"


def test_the_hub_that_answers_is_taken(pack):
    with running_hub() as gone:
        pass
    done = pack.run("--models", "video", "chat", HF_ENDPOINT=gone.url)
    assert done.returncode == 0, done.stdout
    assert pack.here()["LLM/Chat/model.safetensors"] == CHAT
    assert pack.ledger()["files"]["diffusion_models/video.safetensors"]["source"] == "modelscope:Org/Video"


def test_no_hub_answers(pack):
    with running_hub() as gone:
        pass
    done = pack.run("--models", "video", HF_ENDPOINT=gone.url, MODELSCOPE_ENDPOINT=gone.url)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"Neither {gone.url} nor {gone.url} answers. Check the network")
    assert "--print-files" in last


def test_what_one_hub_lacks_the_other_gives(pack):
    del pack.hugging_face.files["/Org/Video/resolve/main/split files/video.safetensors"]
    done = pack.run("--models", "video")
    assert done.returncode == 0, done.stdout
    origins = {path: seen["source"] for path, seen in pack.ledger()["files"].items()}
    assert origins == {
        "diffusion_models/video.safetensors": "modelscope:Org/Video",
        "vae/vae.safetensors": "huggingface:Org/Parts",
    }


def test_a_wrong_file_from_both_hubs_is_refused_and_the_old_one_kept(pack):
    for hub in (pack.hugging_face, pack.model_scope):
        for path, served in hub.files.items():
            if path.endswith("video.safetensors"):
                served.data = safetensors(9, 200_000)
    old = pack.models / "diffusion_models/video.safetensors"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"from another day")
    done = pack.run("--models", "video")
    assert done.returncode == 1
    assert done.stdout.count("is not the right file") == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert old.read_bytes() == b"from another day"


def test_a_closed_model_says_how_to_log_in(pack):
    for path, served in pack.hugging_face.files.items():
        if "/Org/Video/" in path:
            served.token = "hf_secret"
    done = pack.run("--models", "video", "--source", "huggingface")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert f"Open {pack.hugging_face.url}/Org/Video, accept its licence" in last
    assert "`hf auth login`" in last
    assert pack.run("--models", "video", "--source", "huggingface", HF_TOKEN="hf_secret").returncode == 0


def test_the_token_of_an_earlier_login_is_found(pack):
    for path, served in pack.hugging_face.files.items():
        if "/Org/Video/" in path:
            served.token = "hf_stored"
    token = pack.root.parents[1] / ".cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_stored\n")
    assert pack.run("--models", "video", "--source", "huggingface").returncode == 0
    assert not any("authorization" in asked.headers for asked in pack.model_scope.asked)


@pytest.mark.skipif(WINDOWS, reason="Windows has no SIGINT for one process")
def test_control_c_leaves_what_the_next_run_goes_on_with(pack):
    path = "/Org/Video/resolve/main/split files/video.safetensors"
    pack.hugging_face.files[path].stalls = [100_000]
    process = subprocess.Popen(
        pack.command("--models", "video"), env=pack.environment(), stdout=subprocess.PIPE, encoding="utf-8"
    )
    part = pack.models / "diffusion_models/video.safetensors.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "Stopped. Run the same command again to go on."
    size = part.stat().st_size
    assert 0 < size <= 100_000
    pack.hugging_face.released.set()
    assert pack.run("--models", "video").returncode == 0
    assert pack.hugging_face.asked_for(path)[-1].headers["range"] == f"bytes={size}-"
    assert pack.here()["diffusion_models/video.safetensors"] == WEIGHTS


def test_verify_finds_what_is_damaged(pack):
    pack.run("--models", "video", "chat")
    good = pack.run("--verify")
    assert good.returncode == 0, good.stdout
    assert good.stdout.count(": right") == 5
    damaged = pack.models / "LLM/Chat/model.safetensors"
    damaged.write_bytes(CHAT[:-1] + bytes([CHAT[-1] ^ 1]))
    (pack.models / "vae/vae.safetensors").write_bytes(VAE[:1000])
    (pack.models / "LLM/Chat/LICENSE").unlink()
    bad = pack.run("--verify", HF_ENDPOINT="https://nowhere.invalid", MODELSCOPE_ENDPOINT="https://nowhere.invalid")
    assert bad.returncode == 1
    assert f"LLM/Chat/model.safetensors: wrong: its sha256 is {sha256(damaged.read_bytes())}" in bad.stdout
    assert f"vae/vae.safetensors: wrong: 1000 bytes, not {len(VAE)}" in bad.stdout
    assert "LLM/Chat/LICENSE: missing" in bad.stdout
    last = bad.stdout.splitlines()[-1]
    assert last.startswith("3 of 5 files are not right. Remove the wrong ones, then run: python install.py --models ")
    (pack.models / "LLM/Chat/model.safetensors").unlink()
    assert pack.run("--models", *last.partition("--models ")[2].split()).returncode == 0
    assert pack.run("--verify").returncode == 0


def test_verify_of_one_model_that_is_not_here(pack):
    done = pack.run("--models", "vae", "--verify")
    assert done.returncode == 1
    assert "vae/vae.safetensors: missing" in done.stdout
    assert "None of the listed models" in pack.run("--verify").stdout


def test_a_machine_without_network_gets_a_list_to_carry(pack, tmp_path):
    printed = pack.run("--models", "video", "chat", "--print-files")
    assert printed.returncode == 0, printed.stdout
    lines = [line.split("\t") for line in printed.stdout.splitlines()]
    assert [line[1] for line in lines] == [
        "diffusion_models/video.safetensors",
        "vae/vae.safetensors",
        *(f"LLM/Chat/{name}" for name in CHAT_FILES),
    ]
    assert lines[0] == [
        f"{pack.hugging_face.url}/Org/Video/resolve/main/split%20files/video.safetensors",
        "diffusion_models/video.safetensors",
        str(len(WEIGHTS)),
        sha256(WEIGHTS),
    ]
    assert not pack.models.exists()

    carried = tmp_path / "list.txt"
    carried.write_text(printed.stdout, encoding="utf-8")
    contents = {"diffusion_models/video.safetensors": WEIGHTS, "vae/vae.safetensors": VAE}
    contents.update({f"LLM/Chat/{name}": data for name, data in CHAT_FILES.items()})
    for name, data in contents.items():
        path = pack.models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    offline = {"HF_ENDPOINT": "https://nowhere.invalid", "MODELSCOPE_ENDPOINT": "https://nowhere.invalid"}
    good = pack.run("--verify", carried, **offline)
    assert good.returncode == 0, good.stdout
    assert good.stdout.count(": right") == 3, "the hub knows the hashes of weights alone"
    assert good.stdout.count(": whole") == 2
    (pack.models / "vae/vae.safetensors").write_bytes(safetensors(5, 50_000))
    assert pack.run("--verify", carried, **offline).returncode == 1
    assert "cannot be read as a list" in pack.run("--verify", pack.root / "install.py", **offline).stdout


def test_a_cut_file_that_was_carried_is_found_without_a_list(pack):
    path = pack.models / "vae/vae.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(VAE)
    assert "whole, as far as its length tells" in pack.run("--verify").stdout
    path.write_bytes(VAE[:-1])
    bad = pack.run("--verify")
    assert bad.returncode == 1
    assert "shorter or longer than its header says" in bad.stdout


def test_a_folder_that_another_program_fetched(pack):
    """huggingface_hub keeps notes of its own in a hidden folder, which are no part of the model."""
    folder = pack.models / "LLM/Chat"
    notes = folder / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text("x")
    (notes / "abc.incomplete.part").write_text("x")
    for name, data in CHAT_FILES.items():
        (folder / name).write_bytes(data)
    told = pack.run("--models", "chat", "--verify").stdout.splitlines()
    assert [line.partition(":")[0] for line in told] == [f"LLM/Chat/{name}" for name in sorted(CHAT_FILES)]
    assert pack.run("--list").stdout.partition("chat")[2].splitlines()[0].endswith("yes")


def test_unknown_models_and_wrong_options(pack):
    unknown = pack.run("--models", "vidoe")
    assert unknown.returncode == 2
    assert unknown.stdout == "There is no model 'vidoe' to fetch. There are: video, vae, chat.\n"
    assert pack.run("--print-files").returncode == 2
    assert pack.run("--models", "vae", "--source", "ftp").returncode == 2
    assert pack.run("--list", "--verify").returncode == 2
    assert pack.hugging_face.asked == []


def test_dry_run_fetches_nothing(pack):
    done = pack.run("--models", "video", "--dry-run")
    assert done.returncode == 0, done.stdout
    assert f"Would fetch {pack.models / 'vae/vae.safetensors'}, {len(VAE) / 1e3:.1f} kB" in done.stdout
    assert not pack.models.exists()


def test_dependencies_come_first(machine, tmp_path):
    """On a bare Python with pip and an index of empty packages; huggingface_hub is not among them."""
    copy_pack(machine.pack)
    with running_hub() as hub:
        fill(hub, "", "main")
        done = machine.install("--models", "vae", HF_ENDPOINT=hub.url, HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.index("New: torch") < done.stdout.index("1 files are in")
    assert (machine.pack.parents[1] / "models/vae/vae.safetensors").read_bytes() == VAE


@pytest.mark.parametrize("code", [0, 1])
def test_a_system_python_hands_the_models_to_the_one_of_its_own(load_install, monkeypatch, tmp_path, code):
    module = load_install()
    own = tmp_path / ".venv"
    python = own / ("Scripts/python.exe" if WINDOWS else "bin/python")
    python.parent.mkdir(parents=True)
    python.touch()
    ran = []

    def run(command, check):
        ran.append([str(part) for part in command])
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(module, "OWN_VENV", own)
    monkeypatch.setattr(module, "installed_version", lambda name: None)
    monkeypatch.setattr(module, "externally_managed", lambda: True)
    monkeypatch.setattr(module, "say_how_to_go_on", lambda python, dev: None)
    monkeypatch.setattr(module.subprocess, "run", run)
    options = ["--models", "wan2.1-vae", "qwen3-4b", "--source", "modelscope", "--to", str(tmp_path / "models")]
    assert module.main(options) == code, "and it fetches nothing itself"
    install, source, to = str(module.ROOT / "install.py"), "modelscope", str(tmp_path / "models")
    assert ran == [[str(python), install, "--source", source, "--to", to, "--models", "wan2.1-vae", "qwen3-4b"]]


def test_a_model_that_is_not_known_installs_nothing(machine):
    copy_pack(machine.pack)
    assert machine.install("--models", "vidoe").returncode == 2
    assert machine.installed() == {}


def test_huggingface_hub_says_who_is_logged_in(pack, tmp_path):
    """HF_TOKEN_PATH is a thing of that library alone."""
    pytest.importorskip("huggingface_hub")
    for served in pack.hugging_face.files.values():
        served.token = "hf_secret"
    (tmp_path / "token").write_text("hf_secret")
    command = [part for part in pack.command("--models", "video", "--source", "huggingface") if part != "-S"]
    environment = pack.environment(HF_TOKEN_PATH=str(tmp_path / "token"))
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pack.here()["vae/vae.safetensors"] == VAE
