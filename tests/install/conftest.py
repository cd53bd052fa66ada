"""Machines to install on: bare virtual environments, invented packages, and an index that is a folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
WINDOWS = os.name == "nt"
PACK_FILES = ("install.py", "requirements.txt", "requirements-dev.txt", "core/__init__.py", "core/process.py")


def metadata_text(name: str, version: str, requires: Iterable[str] = ()) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires), ""])


def write_wheel(folder: Path, name: str, version: str, requires: Iterable[str] = ()) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        info = f"{stem}.dist-info"
        wheel.writestr(f"{info}/METADATA", metadata_text(name, version, requires))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def requirement_lines(file: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def write_index(folder: Path, accelerate_needs: str) -> Path:
    """Fill a folder with an empty wheel for every requirement, and with a newer torch than is asked for."""
    folder.mkdir()
    for line in requirement_lines("requirements.txt") + requirement_lines("requirements-dev.txt"):
        name, _, version = line.partition(">=")
        write_wheel(folder, name, version, [accelerate_needs] if name == "accelerate" else [])
    for version in ("2.13.0", "2.15.0"):
        write_wheel(folder, "torch", version)
    for name, version in (("torchvision", "0.30.0"), ("numpy", "2.4.0"), ("opencv-python", "5.0.0.93")):
        write_wheel(folder, name, version)
    return folder


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_index(tmp_path_factory.mktemp("index") / "wheels", accelerate_needs="torch>=2.0.0")


@pytest.fixture(scope="session")
def greedy_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index where one requirement insists on a newer torch."""
    return write_index(tmp_path_factory.mktemp("greedy") / "wheels", accelerate_needs="torch>=2.14")


@pytest.fixture(scope="session")
def real_pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but pip in it, to be shared by all machines."""
    spec = importlib.util.find_spec("pip")
    if spec is None or spec.origin is None:
        pytest.skip("the Python that runs the tests has no pip to lend")
    folder = tmp_path_factory.mktemp("pip")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(spec.origin).parent, folder / "pip", ignore=ignore)
    return folder


@dataclass
class Machine:
    """A Python environment and a copy of the pack, in a folder whose name is not easy on programs."""

    home: Path
    pack: Path
    index: Path

    @property
    def python(self) -> Path:
        return self.home / ("Scripts/python.exe" if WINDOWS else "bin/python")

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.home / ("Lib/site-packages" if WINDOWS else f"lib/{version}/site-packages")

    def add(self, name: str, version: str) -> None:
        folder = self.packages / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(metadata_text(name, version), encoding="utf-8")
        # Without these two pip would not dare to uninstall it, and the tests would prove little.
        (folder / "INSTALLER").write_text("pip\n", encoding="utf-8")
        record = [f"{folder.name}/{file},," for file in ("METADATA", "INSTALLER", "RECORD")]
        (folder / "RECORD").write_text("\n".join(record), encoding="utf-8")

    def add_pip(self, folder: Path) -> None:
        (self.packages / "pip.pth").write_text(str(folder), encoding="utf-8")

    def stub_pip(self, code: str) -> None:
        """Put a program of our own where pip would be; it finds site-packages in `packages`."""
        (self.packages / "pip.pth").unlink(missing_ok=True)
        (self.packages / "pip").mkdir()
        (self.packages / "pip/__init__.py").write_text("", encoding="utf-8")
        start = "import sys\nfrom pathlib import Path\npackages = Path(__file__).parents[1]\n"
        (self.packages / "pip/__main__.py").write_text(start + code, encoding="utf-8")

    def at_start(self, code: str) -> None:
        """Run code whenever this machine's Python starts."""
        (self.packages / "sitecustomize.py").write_text(code, encoding="utf-8")

    def installed(self, packages: Path | None = None) -> dict[str, str]:
        found = (re.fullmatch(r"(.+)-(.+)\.dist-info", path.name) for path in (packages or self.packages).iterdir())
        return {match[1].replace("_", "-"): match[2] for match in found if match}

    def install(self, *options: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        foreign = ("PIP_", "UV_", "PYTHON", "VIRTUAL_ENV", "COVERAGE")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index), "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run(
            [self.python, self.pack / "install.py", *options],
            cwd=cwd or self.pack,
            env={**clean, **pip, "PYTHONIOENCODING": "utf-8", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )


@pytest.fixture
def bare(tmp_path: Path, index: Path) -> Machine:
    """A machine without pip."""
    home = tmp_path / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    pack = tmp_path / "custom_nodes/Piying 皮影"
    pack.mkdir(parents=True)
    for file in PACK_FILES:
        (pack / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, pack / file)
    return Machine(home, pack, index)


@pytest.fixture
def machine(bare: Machine, real_pip: Path) -> Machine:
    """A machine with pip, whose only index is a folder."""
    bare.add_pip(real_pip)
    return bare


@pytest.fixture
def fill(index: Path) -> Callable[..., None]:
    """Give a machine everything that is required, but for some names."""

    def fill_machine(machine: Machine, dev: bool = False, without: Iterable[str] = ()) -> None:
        lines = requirement_lines("requirements.txt") + (requirement_lines("requirements-dev.txt") if dev else [])
        have = {name: version for name, _, version in (line.partition(">=") for line in lines)}
        for name, version in {**have, "torch": "2.9.1+cu128", "opencv-python": "4.10.0.84"}.items():
            if name not in without:
                machine.add(name, version)

    return fill_machine


@pytest.fixture
def load_install() -> Callable[[], ModuleType]:
    """Load install.py by its path."""

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location("piying_install", ROOT / "install.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load
