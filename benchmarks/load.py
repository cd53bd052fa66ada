"""Benchmark of model loading: time and peak memory, beside other loaders of the same file.

    python benchmarks/load.py --gb 4 --json benchmarks/results/load.json

Every figure is of a process of its own, from the first call to the last tensor read: files are mapped,
so a loader that has read nothing yet is made to. Peaks are the kernel's (VmHWM), less what the process
held before. "cold" has the file's pages dropped first. ComfyUI takes part where COMFYUI_PATH names a checkout
and this is the Python that runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "diffusion_pytorch_model.safetensors"
WIDTH, FFN = 2048, 8192
BLOCK_BYTES = 2 * (8 * WIDTH * WIDTH + 2 * WIDTH * FFN)


def main() -> None:
    """Write the file, run every case cold and warm, print a table."""
    arguments = _arguments()
    if arguments.case:
        print(json.dumps(measure(arguments.case, Path(arguments.folder))))
        return
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "transformer"
        size = write(folder, arguments.gb)
        cases = arguments.only or [case for case in CASES if case != COMFYUI or os.environ.get("COMFYUI_PATH")]
        if KEPT in cases:
            keep_cast(folder / WEIGHTS)
        if COMFYUI in cases:
            write_original(folder / WEIGHTS)
        print(f"{size / 1e9:.2f} GB in bf16; {machine}, load {os.getloadavg()[1]:.0f}; torch {_version('torch')}")
        print(f"{'':38}{'cache':>6}{'s':>8}{'CPU s':>8}{'peak GB':>9}{'held GB':>9}", flush=True)
        rows = [row for case in cases for row in _both(case, folder)]
    if arguments.json:
        report = {
            "machine": machine,
            "load": os.getloadavg()[1],
            "torch": _version("torch"),
            "diffusers": _version("diffusers"),
            "bytes": size,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0, help="size of the bf16 file")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="these cases alone")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def write(folder: Path, gigabytes: float) -> int:
    """Write a diffusers folder of a Wan VACE transformer in bf16; return the bytes of its one file."""
    import torch
    from accelerate import init_empty_weights
    from diffusers import WanVACETransformer3DModel
    from safetensors.torch import save_file

    layers = max(2, round(gigabytes * 1e9 / BLOCK_BYTES) - 1)
    sizes = {"num_attention_heads": WIDTH // 128, "ffn_dim": FFN, "num_layers": layers, "vace_layers": [0]}
    with init_empty_weights():
        model = WanVACETransformer3DModel(**sizes)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2 * WIDTH * FFN, generator=generator).mul_(0.02).bfloat16()
    tensors = {name: noise[: p.numel()].clone().view(p.shape) for name, p in model.named_parameters()}
    folder.mkdir()
    path = folder / WEIGHTS
    save_file(tensors, path)
    model.save_config(folder)
    return path.stat().st_size


def load_plain(path: Path) -> Any:
    """Read all tensors with safetensors alone: no module, no check."""
    from safetensors.torch import load_file

    return load_file(path)


def load_diffusers(path: Path) -> Any:
    """Load with diffusers, from the folder."""
    import torch
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel.from_pretrained(path.parent, dtype=torch.bfloat16)


def load_diffusers_fp8(path: Path) -> Any:
    """Load with diffusers and cast with its layerwise casting."""
    import torch

    model = load_diffusers(path)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    return model


def load_ours(path: Path, storage: str | None = None) -> Any:
    """Load with Piying."""
    from piying.core.checkpoints import load_component

    return load_component("transformer", path.parent, dtype="bf16", storage=storage)


def load_single_file(path: Path) -> Any:
    """Load with diffusers, from the file, with the folder's configuration."""
    import torch
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel.from_single_file(path, config=str(path.parent), torch_dtype=torch.bfloat16)


def load_bytes(path: Path) -> Any:
    """Copy the file into memory and do nothing else: what the machine can do."""
    import torch

    held = torch.empty(path.stat().st_size, dtype=torch.uint8)
    with path.open("rb") as file:
        file.readinto(memoryview(held.numpy()))
    return {"bytes": held}


def keep_cast(path: Path) -> None:
    """Write the file that PIYING_KEEP_FP8 keeps."""
    import_pack()
    from piying.core.quantization.file_cache import CastFile

    CastFile("transformer", [path.parent], storage="fp8", identity="benchmark", compute="bf16").load(
        lambda _: load_ours(path, "fp8")
    )


def load_cast(path: Path) -> Any:
    """Load what PIYING_KEEP_FP8 keeps."""
    from piying.core.checkpoints import load_component

    return load_component("transformer", path, config=path.parent, dtype="bf16", storage="fp8")


def write_original(path: Path) -> None:
    """Write the same weights under the names of the authors' code, which are those ComfyUI reads."""
    import_pack()
    from piying.tests.core.formats.names import wan_transformer
    from safetensors.torch import load_file, save_file

    original = path.parent.with_name(ORIGINAL)
    original.mkdir()
    save_file(wan_transformer(load_file(path)), original / path.name)


def start_comfyui() -> None:
    """Import the ComfyUI that COMFYUI_PATH names; this Python has to have what it needs."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sd  # noqa: F401


def load_comfyui(path: Path) -> Any:
    """Load as ComfyUI's node for diffusion models does, in the file's type: on a CPU it would take fp32."""
    import comfy.sd
    import torch

    options = {"dtype": torch.bfloat16}
    return comfy.sd.load_diffusion_model(str(path), model_options=options).model.diffusion_model


ORIGINAL, COMFYUI = "original", "ComfyUI"
KEPT = "Piying, fp8 kept from before"
CASES: dict[str, Callable[[Path], Any]] = {
    "the bytes alone": load_bytes,
    "safetensors load_file": load_plain,
    "diffusers from_pretrained": load_diffusers,
    "diffusers from_single_file": load_single_file,
    "Piying": load_ours,
    "diffusers, layerwise casting to fp8": load_diffusers_fp8,
    "Piying, fp8 per channel": lambda path: load_ours(path, "fp8"),
    KEPT: load_cast,
    COMFYUI: load_comfyui,
}


def _file(folder: Path, case: str) -> Path:
    """Return the file that a case reads."""
    if case == KEPT:
        return next(folder.glob("*.fp8cast"))
    return (folder.with_name(ORIGINAL) if case == COMFYUI else folder) / WEIGHTS


def import_pack() -> None:
    """Load the pack under its name."""
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest  # noqa: F401


def measure(case: str, folder: Path) -> dict[str, float]:
    """Load once in this process; return seconds, processor seconds, peak bytes and bytes held."""
    import_pack()
    import torch
    from diffusers import WanVACETransformer3DModel  # noqa: F401 - importing is not loading
    from piying.core.checkpoints import load_component  # noqa: F401

    if case == COMFYUI:
        start_comfyui()
    path = _file(folder, case)
    before, begun, busy = peak(), time.perf_counter(), time.process_time()
    loaded = CASES[case](path)
    held = list(loaded.values()) if isinstance(loaded, dict) else [*loaded.parameters(), *loaded.buffers()]
    for tensor in held:
        tensor.detach().reshape(-1).view(torch.uint8)[:: os.sysconf("SC_PAGESIZE")].sum()
    return {
        "seconds": time.perf_counter() - begun,
        "processor_seconds": time.process_time() - busy,
        "peak": peak() - before,
        "held": sum(tensor.numel() * tensor.element_size() for tensor in held),
    }


def peak() -> int:
    """Return the most bytes of memory this process has had."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _both(case: str, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for cache in ("cold", "warm"):
        rows.append({"case": case, "cache": cache, **_run(case, folder, cache == "cold")})
        _show(rows[-1])
    return rows


def _run(case: str, folder: Path, cold: bool) -> dict[str, float]:
    with _file(folder, case).open("rb") as file:
        if cold:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):
                pass
    command = [sys.executable, __file__, "--case", case, "--folder", str(folder)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _show(row: dict[str, Any]) -> None:
    numbers = f"{row['seconds']:8.2f}{row['processor_seconds']:8.2f}{row['peak'] / 1e9:9.2f}{row['held'] / 1e9:9.2f}"
    print(f"{row['case']:38}{row['cache']:>6}{numbers}", flush=True)


if __name__ == "__main__":
    main()
