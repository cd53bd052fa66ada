"""Environment of a benchmark: the pack, the machine, the versions of the software, and the file of figures."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def load_pack() -> None:
    """Load the pack under the name piying, as its hosts do, where that has not been done."""
    if "piying" in sys.modules:
        return
    # As for the tests: MKL else chooses kernels by where operands lie, and bits that are compared differ.
    os.environ.setdefault("MKL_CBWR", "AVX2")
    spec = importlib.util.spec_from_file_location(
        "piying", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["piying"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["piying"])


def write_json(path: Path, found: Any) -> None:
    """Write figures, the whole file or nothing: a benchmark that is stopped leaves those it has."""
    load_pack()
    write_text = importlib.import_module("piying.core.atomic_write").write_text
    write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def slug(name: str) -> str:
    """Return a device's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: str) -> dict[str, Any]:
    """Return the machine and the versions."""
    import torch

    card = device.startswith("cuda")
    found = {
        "device": torch.cuda.get_device_name(device) if card else _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    found |= {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    if not card:
        found["load average"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return found


def _processor() -> str:
    """Return the processor's name; Linux tells it in a file."""
    listing = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", listing.read_text()) if listing.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def be_quiet() -> None:
    """Keep progress bars and advice out of the tables."""
    for library in ("diffusers.utils.logging", "transformers.utils.logging"):
        logging = importlib.import_module(library)
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def command(script: str, given: list[str], names: dict[str, str]) -> str:
    """Return the command with names in place of this machine's folders."""
    return " ".join(["python", f"benchmarks/{script}", *(names.get(each, each) for each in given)])
