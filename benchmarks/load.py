"""Benchmark of model loading: time and peak memory, beside other loaders of the same weights.

    python benchmarks/load.py --stored fp16 --dtype fp32 --json benchmarks/results/load.json
    python benchmarks/load.py --formats fp8 int8 q8_0 q4_k --caches warm --rounds 3

Every figure is of a process of its own, from the first call to the last tensor read: files are mapped, so a loader
that has read nothing yet is made to. Peaks are the kernel's (VmHWM), less what the process held before. "cold" has the
file's pages dropped first. With `--formats` the file is written in each weight format first, and each is read. Cases
take turns, `--rounds` times; the table has the median of each. ComfyUI takes part where COMFYUI_PATH names a checkout
and COMFYUI_PYTHON, or this Python, runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_weights import RealFile, load_pack, write

WEIGHTS = "diffusion_pytorch_model.safetensors"
TYPES = ("bf16", "fp16", "fp32")
Row = dict[str, Any]


def main() -> None:
    """Write the files, run every case in turn, print a table."""
    options = _options()
    if options.case:
        print(json.dumps(measure(options.case, Path(options.folder), options.dtype)))
        return
    from machine import describe

    machine = describe("cpu")
    load_pack()
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        cases = options.only or [case for case in CASES if case != COMFYUI or os.environ.get("COMFYUI_PATH")]
        cases = [case for case in cases if options.dtype == "bf16" or case not in (KEPT, FP8_DIFFUSERS)]
        size = write(RealFile("transformer", f"wan-{options.model}", "diffusers", options.stored), folder)
        if COMFYUI in cases:
            write(RealFile(f"{ORIGINAL}/{WEIGHTS}", f"wan-{options.model}", "original", options.stored), folder)
        if KEPT in cases:
            keep_cast(folder / "transformer" / WEIGHTS)
        if options.formats:
            cases = [PLAIN, *(quantize(folder, to) for to in options.formats)]
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
        print(f"{options.model}, {size / 1e9:.2f} GB in {options.stored}, to {options.dtype}")
        print(f"{'':38}{'cache':>6}{'s':>8}{'CPU s':>8}{'peak GB':>9}{'held GB':>9}", flush=True)
        turns = [(case, cache) for cache in options.caches for case in cases]
        runs: dict[tuple[str, str], list[Row]] = {turn: [] for turn in turns}
        for _ in range(options.rounds):
            for case, cache in turns:
                runs[case, cache].append(_run(case, folder, cache == "cold", options.dtype))
        rows = [{"case": case, "cache": cache, **_median(several)} for (case, cache), several in runs.items()]
    for row in rows:
        _show(row)
    if options.json:
        given = {"model": options.model, "stored": options.stored, "dtype": options.dtype, "rounds": options.rounds}
        options.json.write_text(json.dumps({**machine, **given, "bytes": size, "rows": rows}, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vace-1.3b", choices=("vace-1.3b", "vace-14b"))
    parser.add_argument("--stored", default="bf16", choices=TYPES, help="number type of the files")
    parser.add_argument("--dtype", default="bf16", choices=TYPES, help="number type to load into")
    parser.add_argument("--caches", nargs="+", default=["cold", "warm"], choices=("cold", "warm"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder for the files, twice their size")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="these cases alone")
    parser.add_argument("--formats", nargs="+", default=[], help="weight formats to read the file in, beside as it is")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def load_plain(path: Path, dtype: str) -> Any:
    """Read all tensors with safetensors alone: no module, no check."""
    from safetensors.torch import load_file

    return {name: tensor.to(_torch(dtype)) for name, tensor in load_file(path).items()}


def load_diffusers(path: Path, dtype: str) -> Any:
    """Load with diffusers, from the folder."""
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel.from_pretrained(path.parent, dtype=_torch(dtype))


def load_diffusers_fp8(path: Path, dtype: str) -> Any:
    """Load with diffusers and cast with its layerwise casting."""
    model = load_diffusers(path, dtype)
    model.enable_layerwise_casting(storage_dtype=_torch("float8_e4m3fn"), compute_dtype=_torch(dtype))
    return model


def load_ours(path: Path, dtype: str, storage: str | None = None) -> Any:
    """Load with Piying."""
    from piying.core.checkpoints import load_component

    return load_component("transformer", path.parent, dtype=dtype, storage=storage)


def load_stored(path: Path, dtype: str) -> Any:
    """Load with Piying what is stored in a weight format, and hold it so."""
    from piying.core.checkpoints import load_component
    from piying.core.wan.family import WAN_VACE

    return load_component("transformer", path.parent, dtype=dtype, rules=WAN_VACE.rules["transformer"])


def load_single_file(path: Path, dtype: str) -> Any:
    """Load with diffusers, from the file, with the folder's configuration."""
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel.from_single_file(path, config=str(path.parent), torch_dtype=_torch(dtype))


def load_bytes(path: Path, dtype: str) -> Any:
    """Copy the file into memory and do nothing else: what the machine can do."""
    import torch

    del dtype
    held = torch.empty(path.stat().st_size, dtype=torch.uint8)
    with path.open("rb") as file:
        file.readinto(memoryview(held.numpy()))
    return {"bytes": held}


def _torch(dtype: str) -> Any:
    import torch

    return getattr(torch, {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(dtype, dtype))


def keep_cast(path: Path) -> None:
    """Write the file that PIYING_KEEP_FP8 keeps."""
    from piying.core.quantization.file_cache import CastFile

    CastFile("transformer", [path.parent], storage="fp8", identity="benchmark", compute="bf16").load(
        lambda _: load_ours(path, "bf16", "fp8")
    )


def load_cast(path: Path, dtype: str) -> Any:
    """Load what PIYING_KEEP_FP8 keeps."""
    from piying.core.checkpoints import load_component

    return load_component("transformer", path, config=path.parent, dtype=dtype, storage="fp8")


def quantize(folder: Path, to: str) -> str:
    """Write the transformer in a format into a folder of its own; return the name of the case that reads it."""
    from piying.core.checkpoints.quantized_file import TARGETS, quantize_file

    case = f"{IN}{to}"
    ending = ".gguf" if TARGETS[to].name == "gguf" else ".safetensors"
    (folder / case).mkdir()
    (folder / case / "config.json").write_bytes((folder / "transformer" / "config.json").read_bytes())
    begun = time.process_time()
    quantize_file(folder / "transformer" / WEIGHTS, to, (folder / case / WEIGHTS).with_suffix(ending))
    print(f"written in {to}: {time.process_time() - begun:.0f} s of processor time", flush=True)
    return case


def start_comfyui() -> None:
    """Import the ComfyUI that COMFYUI_PATH names; this Python has to have what it needs."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sd  # noqa: F401


def load_comfyui(path: Path, dtype: str) -> Any:
    """Load as ComfyUI's node for diffusion models does, in the type that is asked for."""
    import comfy.sd

    options = {"dtype": _torch(dtype)}
    return comfy.sd.load_diffusion_model(str(path), model_options=options).model.diffusion_model


ORIGINAL, COMFYUI = "original", "ComfyUI"
PLAIN, IN = "Piying", "Piying, a file in "
KEPT, FP8_DIFFUSERS = "Piying, fp8 kept from before", "diffusers, layerwise casting to fp8"
CASES: dict[str, Callable[[Path, str], Any]] = {
    "the bytes alone": load_bytes,
    "safetensors load_file": load_plain,
    "diffusers from_pretrained": load_diffusers,
    "diffusers from_single_file": load_single_file,
    PLAIN: load_ours,
    FP8_DIFFUSERS: load_diffusers_fp8,
    "Piying, fp8 per channel": lambda path, dtype: load_ours(path, dtype, "fp8"),
    KEPT: load_cast,
    COMFYUI: load_comfyui,
}


def _file(folder: Path, case: str) -> Path:
    """Return the file that a case reads."""
    if case == KEPT:
        return next((folder / "transformer").glob("*.fp8cast"))
    if case.startswith(IN):
        return next((folder / case).glob(f"{Path(WEIGHTS).stem}.*"))
    return folder / (ORIGINAL if case == COMFYUI else "transformer") / WEIGHTS


def measure(case: str, folder: Path, dtype: str) -> dict[str, float]:
    """Load once in this process; return seconds, processor seconds, peak bytes and bytes held."""
    import torch

    # Importing is not loading.
    if case == COMFYUI:
        start_comfyui()
    else:
        load_pack()
        import accelerate  # noqa: F401
        import transformers  # noqa: F401
        from diffusers import WanVACETransformer3DModel  # noqa: F401
        from piying.core.checkpoints import load_component  # noqa: F401

    path = _file(folder, case)
    before, begun, busy = peak(), time.perf_counter(), time.process_time()
    loaded = CASES.get(case, load_stored)(path, dtype)
    held = list(loaded.values()) if isinstance(loaded, dict) else [*loaded.parameters(), *loaded.buffers()]
    torch.set_num_threads(1)  # for less than a millisecond's work each
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


def _run(case: str, folder: Path, cold: bool, dtype: str) -> Row:
    with _file(folder, case).open("rb") as file:
        if cold:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):
                pass
    python = os.environ.get("COMFYUI_PYTHON", sys.executable) if case == COMFYUI else sys.executable
    command = [python, __file__, "--case", case, "--folder", str(folder), "--dtype", dtype]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(ran.stdout.splitlines()[-1])
    return found


def _median(several: list[Row]) -> Row:
    return {name: statistics.median(row[name] for row in several) for name in several[0]}


def _show(row: Row) -> None:
    numbers = f"{row['seconds']:8.2f}{row['processor_seconds']:8.2f}{row['peak'] / 1e9:9.2f}{row['held'] / 1e9:9.2f}"
    print(f"{row['case']:38}{row['cache']:>6}{numbers}", flush=True)


if __name__ == "__main__":
    main()
