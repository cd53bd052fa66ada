"""What a plan says: how each phase runs, what that is predicted to cost, and why it was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..quantization.registry import weight_format

GB = 2**30  # as makers of cards and memory count

Compute = Literal["bf16", "fp16", "fp32"]
Storage = str  # a `Compute`, or the name of a weight format
Placement = Literal["resident", "streamed", "sharded", "cpu"]
PhaseName = Literal[
    "expand",
    "encode",
    "encode_2",
    "encode_image",
    "condition",
    "sample",
    "sample_2",
    "decode",
    "upscale",
    "interpolate",
]
VariantName = Literal["whole", "batched", "tiled"]


@dataclass(frozen=True)
class PhasePlan:
    """How one phase runs, and what that is predicted to cost.

    Attributes:
        phase, component: their names.
        compute, storage: number types of the arithmetic and of the stored weights.
        placement: `resident` on the device, `streamed` to it block by block, `sharded`: a share of each block on the
            card of every rank, or `cpu`.
        variant: the name of the phase's chosen `Variant`.
        native_matmul: whether Linear layers multiply in the format they are stored in.
        vram, ram: predicted peaks in bytes. Mapped files, which the system evicts when memory
            is short, are not part of `ram`.
        moved: bytes from main memory to the device.
        seconds: estimate.
        weights: bytes of all weights as stored.
        copied: bytes of `ram` that are weights: those that do not stay in mapped files. They stay in memory after the
            phase, as long as nothing needs the room.
        cached: bytes beside `ram` that models of earlier phases still hold then, see `copied`.
        address_space: bytes of the process's address space that it adds, its mapped files included.
        loading: the seconds of them that reading and casting the weights take, which no second run needs.
        room: bytes of the card to have free for it: `vram`, and what libraries and the allocator take beside it.
        device: the second card, where it runs there; "" for the device of the run.
    """

    phase: PhaseName
    component: str
    compute: Compute
    storage: Storage
    placement: Placement
    variant: VariantName
    native_matmul: bool
    vram: int
    ram: int
    moved: int
    seconds: float
    weights: int = 0
    copied: int = 0
    cached: int = 0
    address_space: int = 0
    loading: float = 0.0
    room: int = 0
    device: str = ""

    def on(self, device: str) -> str:
        """Return where it computes: on the device of the run, on the second card, or on the CPU beside them."""
        return "cpu" if self.placement == "cpu" else self.device or device

    @property
    def choice(self) -> str:
        """The choices in words."""
        numbers = self.compute if self.storage == self.compute else f"{self.compute} stored as {self.storage}"
        further = [*([self.matmul] if self.matmul else []), *([f"on {self.device}"] if self.device else [])]
        return ", ".join([numbers, self.placement, self.variant, *further])

    @property
    def matmul(self) -> str:
        """The format that Linear layers multiply in, as in "FP8 matmul"; "" where they unpack their weights."""
        stored = weight_format(self.storage)
        return f"{stored.title} matmul" if stored is not None and self.native_matmul else ""

    @property
    def key(self) -> str:
        """A stable text of the choices, the key under which a failed one is recorded."""
        # It is written to disk: other words than before would lose the recorded failures.
        return f"{self.phase}: {self.component} {self.choice}"


@dataclass(frozen=True)
class PhaseMeasurement:
    """What a phase really took.

    Attributes:
        phase: its name.
        seconds: wall-clock time.
        vram: peak bytes torch allocated on the card; 0 without one.
        ram: bytes of the process in memory at the phase's end, mapped files included.
        loads: models that were read in it; None where it needed none, since its result was cached.
        loading: the seconds that reading them took.
    """

    phase: str
    seconds: float
    vram: int
    ram: int
    loads: int | None = None
    loading: float = 0.0


@dataclass(frozen=True)
class Rates:
    """What was measured on a machine, per second.

    Attributes:
        flops: operations of a transformer's block, by the number type; `fp32` and `bf16` are there.
        convolution: the same of convolutions over space and time.
        bandwidth: bytes of weights that are read to multiply one row.
        unpacking: {format: weights unpacked and multiplied with one row}.
        pcie: bytes copied to the card; 0 without one.
    """

    flops: Mapping[str, float]
    convolution: Mapping[str, float]
    bandwidth: float
    unpacking: Mapping[str, float]
    pcie: float = 0.0


@dataclass(frozen=True)
class Rejected:
    """A way of running a phase that was passed over, and why."""

    phase: str
    choice: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How all phases run.

    Attributes:
        phases: in the order in which they run. Where nothing fits a phase, the way that needs the
            least of the card.
        fits: whether every phase fits the machine.
        peak_vram, peak_ram: predicted peaks in bytes; `peak_vram` is that of the first card.
        seconds, moved: sums over the phases.
        reasons: sentences that say why these choices, and what to expect; where it does not fit, why not.
        rejected: what was passed over.
    """

    phases: tuple[PhasePlan, ...]
    fits: bool
    peak_vram: int
    peak_ram: int
    seconds: float
    moved: int
    reasons: tuple[str, ...]
    rejected: tuple[Rejected, ...]

    def phase(self, name: str) -> PhasePlan:
        """Return the plan of the phase of that name."""
        return next(phase for phase in self.phases if phase.phase == name)

    @property
    def peak_second(self) -> int:
        """The predicted peak of the second card in bytes; 0 where no phase runs there."""
        return max((phase.vram for phase in self.phases if phase.device), default=0)

    @property
    def key(self) -> str:
        """A stable text of the choices of all phases."""
        return "; ".join(phase.key for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        """Return the plan fit for JSON; sizes in GB of 2**30 bytes."""
        components = [
            {
                "name": phase.component,
                "phase": phase.phase,
                "storage": phase.storage,
                "compute": phase.compute,
                "placement": phase.placement,
                "variant": phase.variant,
                "fp8_matmul": phase.native_matmul,  # the key of the first version, which scripts read
                "gb": gigabytes(phase.weights),
                "peak_vram_gb": gigabytes(phase.vram),
                "moved_gb": gigabytes(phase.moved),
                "seconds": round(phase.seconds, 1),
                "loading_seconds": round(phase.loading, 1),
                **({"device": phase.device} if phase.device else {}),
            }
            for phase in self.phases
        ]
        return {
            "fits": self.fits,
            "peak_vram_gb": gigabytes(self.peak_vram),
            "peak_ram_gb": gigabytes(self.peak_ram),
            "seconds": round(self.seconds, 1),
            "components": components,
            "reasons": list(self.reasons),
            "rejected": [asdict(rejected) for rejected in self.rejected],
        }


def gigabytes(size: float) -> float:
    """Return bytes as GB of 2**30 bytes, rounded up to three decimals: a peak is never shown as less."""
    return math.ceil(size / GB * 1000) / 1000


def amount(size: float) -> str:
    """Return bytes for people: "12.3 GB", "40 MB"; a GB is 2**30 bytes, a MB 2**20."""
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{math.ceil(size / 2**20)} MB"
