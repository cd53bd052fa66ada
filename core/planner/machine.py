"""The machine a plan is made for: sizes in bytes, rates per second."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..files.dtypes import torch_dtype
from . import rates
from .plan_types import GB

if TYPE_CHECKING:
    import torch

    from ..host.base import Host, MemoryRules


# What a machine that is not there to be asked has less than its makers say: CUDA's context on the card, the
# system and other programs in main memory. Allowances.
CONTEXT = 300 * 2**20
OTHERS_RAM = 2 * GB


@dataclass(frozen=True)
class Machine:
    """What a plan may count on.

    Attributes:
        device: the torch device, such as `cuda:0` or `cpu`.
        name: the device's name, for people.
        vram_total, vram_free: bytes of the card; free is what will be there once other tenants have
            left. 0 on a CPU.
        ram_total, ram_free: bytes of main memory; what merely holds files that could be read again
            counts as free.
        pcie: bytes per second from main memory to the card.
        disk: bytes per second from the disk that holds the models.
        bf16_flops: operations per second in 16-bit types, as reached in practice; fp32 on a CPU.
        fp8_flops: the same for FP8 matrix products; None where the card has none.
        bandwidth: bytes per second between the device's memory and its arithmetic.
        capability: CUDA's compute capability; None elsewhere.
        low_vram: the user asked to spare the card (ComfyUI's `--lowvram`).
    """

    device: str
    name: str
    vram_total: int
    vram_free: int
    ram_total: int
    ram_free: int
    pcie: float
    disk: float
    bf16_flops: float
    fp8_flops: float | None
    bandwidth: float
    capability: tuple[int, int] | None = None
    low_vram: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether there is no card: everything is computed from main memory."""
        return self.device == "cpu"


def synthetic(vram_gb: float, ram_gb: float = 32.0) -> Machine:
    """Return a machine that is not there: a typical card with so much memory, in GB of 2**30 bytes.

    The rates are those of one card whatever its size, so that plans for several sizes compare.
    """
    vram, ram = int(vram_gb * GB), int(ram_gb * GB)
    flops = rates.TYPICAL_PEAK * rates.REACHED
    return Machine(
        device="cuda:0",
        name=rates.TYPICAL_NAME,
        vram_total=vram,
        vram_free=max(0, vram - CONTEXT),
        ram_total=ram,
        ram_free=max(0, ram - OTHERS_RAM),
        pcie=rates.pcie_rate(rates.TYPICAL_CAPABILITY),
        disk=rates.DISK,
        bf16_flops=flops,
        fp8_flops=flops * rates.FP8_SPEEDUP,
        bandwidth=rates.TYPICAL_BANDWIDTH * rates.MEMORY_REACHED,
        capability=rates.TYPICAL_CAPABILITY,
    )


def read_machine(host: Host) -> Machine:
    """Return the machine the host runs on, within the limits its memory rules set.

    Args:
        host: says which device to use and what others hold of it. Where its rules are imagined, a limit
            stands for a card that is not there.

    Raises:
        PiyingError: the chosen device cannot be used.
    """
    rules, device = host.memory_rules(), host.device()
    total, free = _main_memory()
    if rules.ram is not None:
        total, free = rules.ram, max(0, rules.ram - OTHERS_RAM)
    if device.startswith("cuda"):
        return _limited(_read_card(device, total, free), rules)
    if rules.imagined and rules.vram is not None:
        card = synthetic(rules.vram / GB, total / GB)
        return replace(card, ram_free=free, low_vram=rules.low_vram)
    return _without_card(device, total, free)


def _main_memory() -> tuple[int, int]:
    """Return total and available bytes."""
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total), min(int(memory.total), int(memory.available) + _given_up())


def _given_up() -> int:
    """Return the bytes that models kept from runs before leave free when room is needed.

    Of a model that is mapped from its file only a part, or nothing, is in this process's own memory.
    """
    import psutil

    from ..executor.model_cache import kept_bytes

    process = psutil.Process().memory_info()
    own = getattr(process, "private", process.rss - getattr(process, "shared", 0))
    return max(0, min(kept_bytes(), int(own)))


def _without_card(device: str, total: int, free: int) -> Machine:
    """Return a CPU, or a device that shares its memory."""
    shared = device != "cpu"
    return Machine(
        device=device,
        name=device.upper(),
        vram_total=total if shared else 0,
        vram_free=free if shared else 0,
        ram_total=total,
        ram_free=free,
        pcie=rates.CPU_BANDWIDTH,
        disk=rates.DISK,
        bf16_flops=rates.CPU_FLOPS,
        fp8_flops=None,
        bandwidth=rates.CPU_BANDWIDTH,
    )


def _read_card(device: str, ram_total: int, ram_free: int) -> Machine:
    import torch

    card = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    # What this process holds without using it is free for a plan too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    capability = (card.major, card.minor)
    flops = rates.peak_operations(capability, card.multi_processor_count, _clock(card), card.name) * rates.REACHED
    return Machine(
        device=device,
        name=card.name,
        vram_total=total,
        vram_free=free + unused,
        ram_total=ram_total,
        ram_free=ram_free,
        pcie=rates.pcie_rate(capability),
        disk=rates.DISK,
        bf16_flops=flops,
        fp8_flops=flops * rates.FP8_SPEEDUP if capability >= rates.FIRST_FP8 else None,
        bandwidth=_bandwidth(card) * rates.MEMORY_REACHED,
        capability=capability,
    )


def _clock(card: Any) -> float:
    """Return hertz; older versions of torch do not tell."""
    return float(getattr(card, "clock_rate", 0) or rates.TYPICAL_CLOCK / 1000) * 1000


def _bandwidth(card: Any) -> float:
    """Return bytes per second; memory clocks are in kHz and count twice, widths are in bits."""
    clock, width = getattr(card, "memory_clock_rate", 0), getattr(card, "memory_bus_width", 0)
    return float(2 * clock * 1000 * width / 8) or rates.TYPICAL_BANDWIDTH


def _limited(card: Machine, rules: MemoryRules) -> Machine:
    """Return a card as the rules leave it: what others give up counts as free, what is reserved does not."""
    free = card.vram_free + rules.evictable - rules.reserved
    total = card.vram_total
    if rules.vram is not None and rules.imagined:
        total, free = rules.vram, rules.vram - CONTEXT
    elif rules.vram is not None:
        total = min(total, rules.vram)
    return replace(card, vram_total=total, vram_free=max(0, min(free, total)), low_vram=rules.low_vram)


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
    return torch_dtype(precision)


def memory_bytes(device: str) -> int:
    """Return the whole memory of a device; of the machine for the CPU and for shared memory."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)
