"""Environment of a benchmark: the machine, and the versions of the software."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any


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
