"""The planning table of the documentation is what its command prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("options", [[], ["--formats"]])
def test_the_documentation_holds_what_the_command_prints(options):
    """After a change to the plan: run the command and put its table into docs/memory.md."""
    ran = subprocess.run(
        [sys.executable, "benchmarks/plan_table.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert ran.stdout.strip() in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
