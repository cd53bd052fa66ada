"""The command line, as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--set", "PiyingVACESample.steps=2", "--set", "PiyingExpandPrompt.max_new_tokens=4"]


@dataclass
class Command:
    """Runs `python -m runner` with its own output folder."""

    output: Path

    def start(self, *arguments: object, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "runner", *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def __call__(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, "--output", self.output, **options)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def files(self) -> list[Path]:
        """Return every file under the output folder, hidden ones too."""
        return sorted(path for path in self.output.rglob("*") if path.is_file())


@pytest.fixture
def command(tmp_path):
    return Command(tmp_path / "output")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """One run of workflows/t2v.json that several tests look at: (command, result)."""
    command = Command(tmp_path_factory.mktemp("finished") / "output")
    return command, command("workflows/t2v.json", *SMALL)


@pytest.fixture
def t2v():
    return json.loads((ROOT / "workflows" / "t2v.json").read_text(encoding="utf-8"))


@pytest.fixture
def write(tmp_path):
    def write(workflow, name="workflow.json"):
        path = tmp_path / name
        path.write_text(workflow if isinstance(workflow, str) else json.dumps(workflow), encoding="utf-8")
        return path

    return write
