"""Which device to compute on, and in which number type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PiyingError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
MEMORY_CHOICES = ("auto", "resident", "streamed", "fp8")


def available_devices() -> list[str]:
    """Return the devices torch can use here, best first."""
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, "cpu"]


def best_device() -> str:
    """Return the device to use when the user did not choose."""
    return available_devices()[0]


def checked_device(name: str) -> str:
    """Return `name` as torch spells it.

    Raises:
        PiyingError: torch cannot use that device here.
    """
    usable = available_devices()
    full = "cuda:0" if name == "cuda" else name
    if full not in usable:
        raise PiyingError(f"Device {name!r} cannot be used here. Choose one of: auto, {', '.join(usable)}.")
    return full


def resolve_dtype(precision: str, device: str, preferred: str = "bf16") -> torch.dtype:
    """Return the number type to compute in.

    Args:
        precision: one of `PRECISIONS`.
        device: a torch device name.
        preferred: what the model was published in; used by `auto` on a card. `auto` on a CPU is
            fp32: 16-bit matrix products there are emulated and many times slower.

    Raises:
        PiyingError: `precision` is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise PiyingError(f"precision is {precision!r}. Choose one of: {', '.join(PRECISIONS)}.")
    if precision == "auto":
        precision = "fp32" if device == "cpu" else preferred
    return named_dtype(precision)


def named_dtype(name: str) -> torch.dtype:
    """Return the torch type of `bf16`, `fp16` or `fp32`."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def memory_bytes(device: str) -> int:
    """Return the whole memory of a device; of the machine for the CPU and for shared memory."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)
