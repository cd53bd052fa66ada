"""`python install.py` on machines of many kinds, with the real pip and an index that is a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

WINDOWS = os.name == "nt"
# Fails the test if it is run, since the output of install.py then holds this word.
BOMB = "print('pip-was-called'); sys.exit(9)"
CV2_KINDS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


def test_fresh_machine_gets_everything_and_the_second_run_nothing(machine):
    first = machine.install()
    assert first.returncode == 0, first.stdout + first.stderr
    have = machine.installed()
    assert have["torch"] == "2.13.0", "the index has a newer one, which nobody has tried"
    assert {"diffusers", "transformers", "accelerate", "opencv-python"} <= have.keys()
    assert "pytest" not in have
    assert len(first.stdout.splitlines()) <= 6
    assert "Collecting" not in first.stdout

    machine.stub_pip(BOMB)
    started = time.monotonic()
    second = machine.install()
    assert time.monotonic() - started < 1
    assert second.returncode == 0, second.stdout
    assert "Nothing to install" in second.stdout
    assert "torch 2.13.0" in second.stdout


def test_dev_adds_what_the_tests_need(machine, fill):
    fill(machine)
    done = machine.install("--dev")
    assert done.returncode == 0, done.stdout
    assert {"pytest", "ruff", "mypy"} <= machine.installed().keys()


def test_existing_torch_family_stays(machine):
    """The index has newer ones of all of them, and a plain `pip install --upgrade` would take those."""
    theirs = {
        "torch": "2.9.1+cu128",
        "torchvision": "0.24.1+cu128",
        "torchaudio": "2.9.1+cu128",
        "xformers": "0.0.33.post2",
        "numpy": "1.26.4",
    }
    for name, version in theirs.items():
        machine.add(name, version)
    done = machine.install(PIP_UPGRADE="1", PIP_UPGRADE_STRATEGY="eager")
    assert done.returncode == 0, done.stdout
    assert theirs.items() <= machine.installed().items()
    assert "torch is still 2.9.1+cu128" in done.stdout


@pytest.mark.parametrize("torch", ["2.14.0.dev20260801+cu130", "2.10.0a0+b558c986e8.nv25.11"])
def test_nightly_and_vendor_builds_of_torch_stay(machine, fill, torch):
    fill(machine, without=["torch", "accelerate"])
    machine.add("torch", torch)
    done = machine.install(PIP_UPGRADE="1")
    assert done.returncode == 0, done.stdout
    assert machine.installed()["torch"] == torch


def test_a_requirement_that_insists_on_another_torch_fails(machine, greedy_index):
    machine.index = greedy_index
    machine.add("torch", "2.9.1+cu128")
    done = machine.install()
    assert done.returncode == 1
    assert machine.installed() == {"torch": "2.9.1+cu128"}
    assert "torch 2.9.1+cu128" in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr


def test_a_pip_that_moves_torch_is_found_out(bare, fill):
    fill(bare, without=["pillow"])
    bare.stub_pip(
        "(packages / 'pillow-10.dist-info').mkdir()\n"
        "(packages / 'pillow-10.dist-info/METADATA').write_text('Name: pillow\\nVersion: 10\\n')\n"
        "info = packages / 'torch-2.9.1+cu128.dist-info'\n"
        "text = (info / 'METADATA').read_text().replace('2.9.1+cu128', '2.15.0')\n"
        "(info / 'METADATA').write_text(text)\n"
    )
    done = bare.install()
    assert done.returncode == 1
    assert "torch==2.9.1+cu128" in done.stdout


def test_pip_is_given_constraints_and_no_torch(bare, fill):
    fill(bare, without=["pillow", "opencv-python"])
    bare.stub_pip(
        "print(sys.argv[1:])\nprint(Path(sys.argv[sys.argv.index('--constraint') + 1]).read_text())\nsys.exit(1)\n"
    )
    done = bare.install()
    assert "'install', '--no-input'" in done.stdout
    assert "'pillow>=10', 'opencv-python>=4.8', '--constraint'" in done.stdout
    assert "  torch==2.9.1+cu128\n" in done.stdout
    assert "'torch" not in done.stdout


@pytest.mark.parametrize("kind", CV2_KINDS)
def test_opencv_of_any_kind_is_enough(bare, fill, kind):
    fill(bare, without=["opencv-python"])
    bare.add(kind, "4.5.0")
    bare.stub_pip(BOMB)
    done = bare.install()
    assert done.returncode == 0, done.stdout
    assert f"{kind} 4.5.0" in done.stdout


def test_headless_opencv_is_not_joined_by_another(machine, fill):
    fill(machine, without=["opencv-python", "pillow"])
    machine.add("opencv-python-headless", "4.10.0.84")
    assert machine.install(PIP_UPGRADE="1").returncode == 0
    have = machine.installed()
    assert have["opencv-python-headless"] == "4.10.0.84"
    assert "opencv-python" not in have


def test_cv2_of_another_packager_is_enough(bare, fill):
    fill(bare, without=["opencv-python"])
    (bare.packages / "cv2").mkdir()
    assert "Would install" in bare.install("--dry-run").stdout, "an empty folder is no cv2"
    (bare.packages / "cv2/__init__.py").write_text("", encoding="utf-8")
    assert "Nothing to install" in bare.install().stdout


def test_numpy_too_old_is_replaced(machine, fill):
    fill(machine, without=["numpy"])
    machine.add("numpy", "1.24.4")
    assert machine.install().returncode == 0
    assert machine.installed()["numpy"] == "2.4.0"


def test_torch_too_old_is_kept_and_said(bare, fill):
    fill(bare, without=["torch"])
    bare.add("torch", "2.1.0")
    done = bare.install()
    assert done.returncode == 0
    assert "too old: 2.6 or newer" in done.stdout


def test_dry_run_does_nothing(bare):
    bare.stub_pip(BOMB)
    done = bare.install("--dev", "--dry-run")
    assert done.returncode == 0
    assert "torch==2.13.0, diffusers>=" in done.stdout
    assert "pytest>=" in done.stdout
    assert bare.installed() == {}


def test_failing_pip_ends_in_a_sentence(machine, tmp_path):
    machine.index = tmp_path
    done = machine.install()
    assert done.returncode == 1
    assert "No matching distribution found" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Could not install torch==2.13.0. ")
    assert "https://pytorch.org/get-started" in last
    assert last.endswith("Then run the same command again.")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("says", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("ReadTimeoutError: Read timed out.", "index-url"),
        ("OSError: [WinError 5] Access is denied: 'cv2.pyd'", "Close ComfyUI"),
        ("Something nobody has seen before", "Put right what is named above"),
    ],
)
def test_known_failures_get_their_own_advice(bare, fill, says, advice):
    fill(bare, without=["pillow"])
    bare.stub_pip(f"print({says!r}); sys.exit(1)")
    done = bare.install()
    assert done.returncode == 1
    assert f"  {says}" in done.stdout
    assert advice in done.stdout


def test_success_without_the_package_is_a_failure(bare, fill):
    fill(bare, without=["pillow"])
    bare.stub_pip("")
    done = bare.install()
    assert done.returncode == 1
    assert "does not see pillow>=10" in done.stdout


def test_no_pip_but_ensurepip(bare, fill):
    """An environment that uv made looks like this."""
    pytest.importorskip("ensurepip")
    fill(bare, without=["pillow"])
    done = bare.install()
    assert done.returncode == 0, done.stdout
    assert bare.installed()["pillow"] == "10"


def test_no_pip_and_no_way_to_get_it(bare, tmp_path):
    bare.at_start("import sys\nsys.modules['ensurepip'] = None\n")
    done = bare.install(PATH=str(tmp_path))
    assert done.returncode == 1
    assert "has no pip" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(WINDOWS, reason="the stand-in for uv is a shell script")
def test_no_pip_but_uv(bare, fill, tmp_path):
    fill(bare, without=["pillow"])
    bare.at_start("import sys\nsys.modules['ensurepip'] = None\n")
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$@"\nexit 1\n', encoding="utf-8")
    uv.chmod(0o755)
    done = bare.install(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert f"pip install --python {bare.python} pillow>=10 --constraint" in done.stdout


def managed_by_the_system(tmp_path: Path) -> str:
    """Return start-up code that makes a virtual environment look like the operating system's own Python."""
    marked = tmp_path / "stdlib"
    marked.mkdir()
    (marked / "EXTERNALLY-MANAGED").write_text("[externally-managed]\n", encoding="utf-8")
    return (
        "import sys, sysconfig\nsys.base_prefix = sys.prefix\nreal = sysconfig.get_path\n"
        f"marked = {str(marked)!r}\n"
        "sysconfig.get_path = lambda name, *a, **k: marked if name == 'stdlib' else real(name, *a, **k)\n"
    )


def test_system_python_gets_a_venv_of_its_own(machine, tmp_path):
    machine.at_start(managed_by_the_system(tmp_path))
    planned = machine.install("--dry-run")
    assert "Would make it and install: torch==2.13.0" in planned.stdout
    assert not (machine.pack / ".venv").exists()

    done = machine.install("--dev", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.installed() == {}
    own = machine.packages.relative_to(machine.home)
    assert {"torch", "pytest", "diffusers"} <= machine.installed(machine.pack / ".venv" / own).keys()
    program = r".venv\Scripts\python.exe" if WINDOWS else ".venv/bin/python"
    assert f"  {program} -m runner workflows/t2v.json" in done.stdout
    assert f"  {program} -m pytest" in done.stdout
    cd = f'  cd "{machine.pack}"' if WINDOWS else f"  cd '{machine.pack}'"
    assert cd in done.stdout
    assert "run install.py with ComfyUI's Python" in done.stdout

    again = machine.install("--dev")
    assert "Nothing to install" in again.stdout
    assert f"  {program} -m pytest" in again.stdout
    assert "  cd " not in again.stdout


def test_system_python_whose_user_insists(machine, fill, tmp_path):
    fill(machine, without=["pillow"])
    machine.at_start(managed_by_the_system(tmp_path))
    assert machine.install(PIP_BREAK_SYSTEM_PACKAGES="1").returncode == 0
    assert machine.installed()["pillow"] == "10"
    assert not (machine.pack / ".venv").exists()


def test_system_python_without_venv(bare, tmp_path):
    # What Debian does without python3-venv: the folder and its Python are made, then ensurepip is missed.
    no_ensurepip = "import venv\nvenv.EnvBuilder._setup_pip = lambda *_: sys.exit('ensurepip is not available')\n"
    bare.at_start(managed_by_the_system(tmp_path) + no_ensurepip)
    done = bare.install()
    assert done.returncode == 1
    assert "  ensurepip is not available" in done.stdout
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"sudo apt install python{version}-venv" in done.stdout
    assert not (bare.pack / ".venv").exists(), "half of an environment would pass for a whole one"


def test_path_the_code_page_lacks(bare, fill):
    """Windows pipes have a legacy encoding, and ComfyUI-Manager reads install.py through one."""
    fill(bare)
    bare.at_start("import sys\nsys.executable = '/皮影/python'\n")
    done = bare.install(PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert r"\u76ae\u5f71" in done.stdout


def test_unknown_option(bare):
    done = bare.install("--everything")
    assert done.returncode == 2
    assert "--everything" in done.stderr


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 9, 18)])
def test_python_too_old(bare, version):
    old = f"{'.'.join(map(str, version))} (default)"
    bare.at_start(f"import sys\nsys.version_info = {(*version, 'final', 0)}\nsys.version = {old!r}\n")
    done = bare.install()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Piying needs Python 3.10 or newer")
    assert old.split()[0] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def oldest_python() -> str | None:
    found = (Path.home() / ".pyenv/versions").glob("3.[6-9].*/bin/python")
    return next(map(str, sorted(found)), None)


@pytest.mark.skipif(oldest_python() is None, reason="pyenv has no Python older than 3.10 here")
def test_python_really_too_old(bare):
    done = subprocess.run(
        [str(oldest_python()), str(bare.pack / "install.py")],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    assert "Piying needs Python 3.10 or newer" in done.stderr


def test_cuda_index_only_for_windows_with_an_nvidia_card(load_install: Callable[[], object], monkeypatch):
    module = load_install()
    for windows, card, asks_cuda in (
        (True, "nvidia-smi", True),
        (True, None, False),
        (False, "nvidia-smi", False),
    ):
        monkeypatch.setattr(module, "WINDOWS", windows)
        monkeypatch.setattr(module.shutil, "which", lambda _, card=card: card)
        request = module.torch_request()
        assert (request[0] == "torch==2.13.0+cu130") is asks_cuda
        assert ("--extra-index-url" in request) is asks_cuda


@pytest.mark.parametrize(
    ("requirement", "version", "met"),
    [
        ("numpy>=1.25", "1.25", True),
        ("numpy>=1.25", "1.25.2", True),
        ("numpy>=1.25", "2.0", True),
        ("numpy>=1.25", "1.9.9", False),
        ("diffusers>=0.42.1", "0.43.0.dev0", True),
        ("diffusers>=0.42.1", "0.42", False),
        ("pillow>=10", None, False),
        ("pillow", "1", True),
    ],
)
def test_versions_compare_as_numbers(load_install: Callable[[], object], requirement, version, met):
    assert load_install().is_met(requirement, lambda _: version) is met


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
@pytest.mark.parametrize("option", ["--help", "--list", "--dry-run"])
def test_an_output_that_is_full_is_an_error(option):
    root = Path(__file__).resolve().parents[2]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, str(root / "install.py"), option], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ran.returncode == 1
    assert ran.stderr.strip().endswith(
        "stdout cannot be written (No space left on device). Files that were saved are whole."
    )
    assert "Traceback" not in ran.stderr
