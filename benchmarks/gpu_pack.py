"""Package of the day with a card: wheels and a ComfyUI checkout for a machine that reaches no package index."""

from __future__ import annotations

import email
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

LIMIT = 44 * 2**20  # with the repository's 17 MiB under 64
# What the day imports beside torch, torchvision and what comes with them (numpy, Pillow). Left out for their size:
# imageio-ffmpeg (65 MiB; no part writes or reads a video file), OpenCV (55) and SciPy (34), which are taken from the
# machine where it has them.
WHEELS = (
    *("diffusers", "transformers", "accelerate", "safetensors", "tokenizers", "huggingface_hub", "sentencepiece"),
    *("ftfy", "wcwidth", "regex", "psutil", "pyyaml", "requests", "importlib_metadata", "zipp", "lazy_importer"),
    *("tqdm", "packaging", "filelock", "fsspec", "typing_extensions", "typer", "click", "rich", "shellingham"),
    *("markdown_it_py", "mdurl", "pygments", "annotated_doc", "httpx", "httpcore", "h11", "anyio", "idna", "certifi"),
    *("httpx2", "httpcore2", "truststore", "urllib3", "charset_normalizer", "pytest", "pluggy", "iniconfig"),
    *("torchsde", "trampoline", "einops"),  # ComfyUI's
)
# The pack needs these as new as they are here.
NEWEST = ("diffusers", "transformers", "pytest")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
# Of ComfyUI what holds and samples a model: no server, no nodes, no web pages.
COMFYUI = ("comfy", "comfy_api", "comfy_config", "comfy_execution", "utils", "comfyui_version.py", "folder_paths.py")
COMFYUI_FILES = (*COMFYUI, "node_helpers.py", "latent_preview.py", "LICENSE")
ARCHIVE = "comfyui.tar.gz"


def pack(folder: Path, python: str, comfyui: Path | None, left_out: Iterable[str]) -> int:
    """Collect wheels for another machine, and the part of a ComfyUI checkout that samples; return the bytes.

    Versions are those of the Python that runs this, with which the tests ran, where it has the package.

    Args:
        python: the version there, such as 3.12; the machine is Linux on x86-64.
        left_out: packages that the machine has in these versions or later.

    Raises:
        SystemExit: a wheel cannot be had, or all together are too large; the text says which.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    names = [name for name in WHEELS if name not in {_normal(each) for each in left_out}]
    platforms = [f"--platform={each}_x86_64" for each in PLATFORMS]
    fixed = [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:", "--no-deps", *platforms]
    command = [sys.executable, "-m", "pip", "download", "-q", *fixed, f"--dest={folder}", *map(_pinned, names)]
    ran = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if ran.returncode:
        raise SystemExit(f"The wheels cannot be collected: {ran.stderr.strip().splitlines()[-1]}")
    if comfyui is not None:
        with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
            for name in COMFYUI_FILES:
                archive.add(comfyui / name, f"ComfyUI/{name}", filter=_without_caches)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    total = sum(sizes.values())
    if total > LIMIT:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise SystemExit(
            f"{folder} has {total / 2**20:.0f} MiB, and {LIMIT / 2**20:.0f} are allowed. Leave out with --has what "
            "the machine has; the largest are " + ", ".join(f"{name} ({sizes[name] / 2**20:.0f})" for name in largest)
        )
    return total


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _pinned(name: str) -> str:
    """Return a requirement of the version that is installed here; where none is, of the newest."""
    try:
        return f"{name}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def install(folder: Path, target: Path) -> list[str]:
    """Install the wheels of a package that this Python needs into `target`; return their names.

    Needed are diffusers, transformers and pytest in the versions packed, and whatever they and the other packages ask
    for that is not installed here in a version that serves.

    Raises:
        SystemExit: pip refuses; the text is pip's.
    """
    # A wheel of Python alone can be imported as it is: packaging, where this Python has none. What is on the path
    # counts as installed, so it is there no longer than that.
    carried = list(map(str, folder.glob("packaging-*.whl")))
    sys.path += carried
    importlib.import_module("packaging.requirements")
    sys.path = [each for each in sys.path if each not in carried]
    wheels = {_normal(path.name.partition("-")[0]): path for path in sorted(folder.glob("*.whl"))}
    wanted: dict[str, Path] = {}
    waiting = [f"{name}>={path.name.split('-')[1]}" if name in NEWEST else name for name, path in wheels.items()]
    while waiting:
        name, is_met = _requirement(waiting.pop())
        if not is_met and name in wheels and name not in wanted:
            wanted[name] = wheels[name]
            waiting += _requirements(wheels[name])
    target.mkdir(parents=True, exist_ok=True)
    if wanted:
        fixed = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", f"--target={target}"]
        command = [sys.executable, "-m", "pip", "install", "-q", *fixed, *map(str, wanted.values())]
        ran = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if ran.returncode:
            raise SystemExit(f"The wheels cannot be installed: {ran.stderr.strip().splitlines()[-1]}")
    return sorted(wanted)


def _requirement(text: str) -> tuple[str, bool]:
    """Return the name of a package and whether what is installed here serves; extras are none of ours."""
    from packaging.requirements import Requirement

    wanted = Requirement(text)
    name = _normal(wanted.name)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return name, True
    try:
        return name, wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return name, False


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        described = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(described)).get_all("Requires-Dist", [])


def comfyui_checkout(folder: Path, target: Path) -> Path | None:
    """Unpack the ComfyUI of a package into `target`; return its folder, None where the package has none."""
    if not (folder / ARCHIVE).is_file():
        return None
    with tarfile.open(folder / ARCHIVE) as archive:
        archive.extractall(target, filter="data")
    return target / "ComfyUI"
