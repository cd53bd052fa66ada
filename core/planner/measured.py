"""Measured times: what a machine computes and copies in a second, and how long phases took beside their estimates."""

from __future__ import annotations

import json
import logging
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..disk_cache import DiskCache, entry_name
from ..main_memory import is_out_of_memory, usable_cores
from ..quantization.registry import FORMATS
from .machine import TYPICAL_NAME, Machine
from .plan_types import Rates

if TYPE_CHECKING:
    import torch

    from .phases import Phase
    from .plan_types import PhaseMeasurement, PhasePlan, Plan

log = logging.getLogger("piying")

# Estimated seconds of a run for which measuring, of about a second, is worth while.
WORTH_MEASURING = 5.0
RUNS = 3  # the median counts
LEAST_SECONDS = 0.03  # of a run: a processor's time is told in steps of up to 10 ms
MAX_MACHINES, MAX_PHASES = 20, 500
SAMPLES = 8  # of a phase
NEAREST = 3  # of them make an estimate: those of the most similar runs
# What a phase may take compared with its estimate, whatever was measured once; one that is over soon may take any
# multiple: the operations of toys are too small to count beside the calls.
LEAST_RATIO, LARGEST_RATIO = 1 / 50, 1000.0
SOON = 60.0  # seconds
LEAST_ESTIMATE = 1e-6
HEAD = 64


def with_rates(machine: Machine, folder: Path, *, measure: bool) -> Machine:
    """Return a machine with the rates that were measured on it, or as it is where none were.

    Args:
        machine: one that is imagined has none.
        folder: of the disk cache.
        measure: whether to measure them now where that was not done before.
    """
    if machine.second is not None:
        machine = replace(machine, second=with_rates(machine.second, folder, measure=measure))
    if machine.name == TYPICAL_NAME:
        return machine
    cache = DiskCache(folder / "rates", ".json", max_entries=MAX_MACHINES)
    name = entry_name(_identity(machine))
    rates = _measured.get(name) or _parsed(cache.get(name))
    if rates is None and measure:
        log.info("Measuring how fast %s computes and copies; this is done once.", machine.name)
        rates = measure_rates(machine.device)
        if rates is not None:
            cache.put(name, json.dumps(asdict(rates)).encode())
    if rates is None:
        return machine
    _measured[name] = rates  # a cache that cannot be written must not have it measured at every run
    flops = rates.flops["fp32" if machine.is_cpu else "bf16"]
    return replace(
        machine,
        rates=rates,
        bf16_flops=flops,
        native_flops={name: one * flops / machine.bf16_flops for name, one in machine.native_flops.items()},
        bandwidth=rates.bandwidth,
        pcie=rates.pcie or rates.bandwidth,
    )


_measured: dict[str, Rates] = {}


def _identity(machine: Machine) -> dict[str, Any]:
    """Return what a machine's rates depend on: the device, and the versions that compute."""
    import torch

    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass  # not on Linux
    return {
        "device": machine.name,
        "processor": processor,
        "threads": min(torch.get_num_threads(), usable_cores()),
        "torch": torch.__version__,
        "cuda": [torch.version.cuda, machine.capability],
        "formats": sorted(FORMATS),
    }


def _parsed(data: bytes | None) -> Rates | None:
    if data is None:
        return None
    try:
        rates = Rates(**json.loads(data))
        numbers = [*rates.flops.values(), *rates.convolution.values(), *rates.unpacking.values(), rates.bandwidth]
        sound = {"fp32", "bf16"} <= rates.flops.keys() and all(math.isfinite(one) and one > 0 for one in numbers)
    except (ValueError, TypeError, AttributeError):
        return None
    return rates if sound else None


def measure_rates(device: str) -> Rates | None:
    """Return what a device computes and copies in a second; None where it has no memory for that.

    About a second on a CPU. Each rate is the best of several short runs.

    Args:
        device: a torch device.
    """
    try:
        return _Bench(device).rates()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.debug("The rates of %s cannot be measured: %s", device, error)
        return None


@dataclass
class _Bench:
    """Times what models are made of on one device, in sizes that fill it and take milliseconds."""

    device: str
    _draw: Any = field(default=None, init=False)

    def rates(self) -> Rates:
        """Return all of them."""
        import torch

        # Its own generator: what a seed gives must not depend on whether rates were measured before.
        self._draw = torch.Generator("cpu").manual_seed(0)
        is_cpu = self.device == "cpu"
        with torch.no_grad():
            tokens, width = (256, 1024) if is_cpu else (4096, 2048)
            flops = {"fp32": self._block(tokens, width, torch.float32)}
            # Emulated on most CPUs, a hundred times slower.
            small = (32, 256) if is_cpu else (tokens, width)
            flops["bf16"], flops["fp16"] = (self._block(*small, one) for one in (torch.bfloat16, torch.float16))
            convolution = {"fp32": self._convolution(torch.float32)}
            if not is_cpu:
                convolution["bf16"] = self._convolution(torch.bfloat16)
            bandwidth = self._bandwidth(64 if is_cpu else 512)
            unpacking = {name: self._unpacking(name) for name in FORMATS} if is_cpu else {}
            pcie = self._copying() if self.device.startswith("cuda") else 0.0
        return Rates(flops=flops, convolution=convolution, bandwidth=bandwidth, unpacking=unpacking, pcie=pcie)

    def _random(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.randn(shape, generator=self._draw).mul_(0.02).to(self.device, dtype)

    def _seconds(self, work: Callable[[], object]) -> float:
        import torch

        def now() -> float:
            if self.device.startswith("cuda"):
                torch.cuda.synchronize(self.device)
            if self.device != "cpu" or sys.platform == "win32":  # there processor time moves in steps of 16 ms
                return time.perf_counter()
            # What others take of the cores is not the machine's rate. All threads work, or spin while they wait.
            return time.process_time() / torch.get_num_threads()

        work()  # the first one chooses kernels
        times, begun = 0, now()
        while times == 0 or now() - begun < LEAST_SECONDS:
            work()
            times += 1
        found = [(now() - begun) / times]
        for _ in range(RUNS - 1):
            begun = now()
            for _ in range(times):
                work()
            found.append((now() - begun) / times)
        return max(median(found), 1e-9)

    def _block(self, tokens: int, width: int, dtype: torch.dtype) -> float:
        """Return operations per second of a transformer's block, with its norm, activation and attention."""
        from torch.nn import functional

        given = self._random(tokens, width, dtype=dtype)
        shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
        projection, out, wide, narrow = (self._random(*shape, dtype=dtype) for shape in shapes)

        def run() -> None:
            normed = functional.layer_norm(given, (width,))
            heads = functional.linear(normed, projection).view(1, tokens, 3, width // HEAD, HEAD).transpose(1, 3)
            query, key, value = heads.unbind(2)
            attended = functional.scaled_dot_product_attention(query, key, value)
            kept = given + functional.linear(attended.transpose(1, 2).reshape(tokens, width), out)
            functional.linear(functional.gelu(functional.linear(kept, wide)), narrow)

        return (24 * tokens * width**2 + 4 * tokens**2 * width) / self._seconds(run)

    def _convolution(self, dtype: torch.dtype) -> float:
        """Return operations per second of a convolution over space and time, of the width of video VAEs."""
        from torch.nn import functional

        channels, side = 96, 48 if self.device == "cpu" else 256
        given = self._random(1, channels, 3, side, side, dtype=dtype)
        kernel = self._random(channels, channels, 3, 3, 3, dtype=dtype)
        operations = 2 * 27 * channels**2 * 3 * side**2
        return operations / self._seconds(lambda: functional.conv3d(given, kernel, padding=1))

    def _bandwidth(self, megabytes: int) -> float:
        """Return bytes per second at which weights are read for one row of inputs."""
        import torch
        from torch.nn import functional

        weights = torch.zeros(megabytes * 2**20 // (4 * 2048), 2048, device=self.device)
        row = torch.ones(1, 2048, device=self.device)
        return weights.nbytes / self._seconds(lambda: functional.linear(row, weights))

    def _unpacking(self, name: str) -> float:
        """Return weights per second that a layer of a format unpacks to fp32 and multiplies with a row."""
        import torch

        weights = self._random(1024, 1024, dtype=torch.float32)
        layer = FORMATS[name].layer(FORMATS[name].sample(weights), None, torch.float32)
        row = torch.ones(1, 1024)
        return weights.numel() / self._seconds(lambda: layer(row))

    def _copying(self) -> float:
        """Return bytes per second from page-locked memory to the card."""
        import torch

        source = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(source, device=self.device)
        return source.nbytes / self._seconds(lambda: target.copy_(source, non_blocking=True))


@dataclass
class PhaseTimes:
    """How long phases took on one machine, and the estimates that follow; made anew for every plan.

    Loading the weights is told from working with them: a second run finds them in memory.

    Attributes:
        folder: of the disk cache.
        machine: where they run.
        is_loaded: whether a phase's weights are in memory from a run before.
    """

    folder: Path
    machine: Machine
    is_loaded: Callable[[PhasePlan], bool] = lambda planned: False
    _estimates: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)

    def expected(self, phase: Phase, planned: PhasePlan) -> tuple[float, float]:
        """Return the seconds that a way of running a phase will take, and how many of them it loads weights.

        By its estimate, and by runs before.
        """
        # Beside a card weights are read while it computes.
        working = planned.seconds - (planned.loading if self.machine.is_cpu else 0.0)
        self._estimates[planned.key] = working, planned.loading
        samples, loaded = self._samples(phase, planned), self.is_loaded(planned)
        # A first pass takes longer, but says something of later ones where there were none.
        kinds = (_LATER, _FIRST) if loaded else (_FIRST, _LATER)
        seconds = _scaled(working, samples.get(kinds[0]) or samples.get(kinds[1]) or [])
        reads = not loaded and (self.machine.is_cpu or _LOADING in samples)
        loading = _scaled(planned.loading, samples.get(_LOADING, [])) if reads else 0.0
        return seconds + loading, loading

    def add(self, plan: Plan, phases: tuple[Phase, ...], measured: list[PhaseMeasurement]) -> None:
        """Keep what the phases of a run took; those whose result was cached tell nothing."""
        for one in measured:
            phase = next(phase for phase in phases if phase.name == one.phase)
            planned = plan.phase(one.phase)
            if one.loads is None or planned.key not in self._estimates:
                continue
            working, loading = self._estimates[planned.key]
            samples = self._samples(phase, planned)
            found = {_FIRST if one.loads else _LATER: (working, one.seconds - one.loading)}
            if one.loads:
                found[_LOADING] = loading, one.loading
            for kind, (estimate, seconds) in found.items():
                # The latest first: of equally similar ones it counts.
                latest = max(estimate, LEAST_ESTIMATE), seconds
                samples[kind] = [latest, *samples.get(kind, [])][:SAMPLES]
            self._cache.put(self._entry(phase, planned), json.dumps(samples).encode())

    @property
    def _cache(self) -> DiskCache:
        return DiskCache(self.folder / "phase_times", ".json", max_entries=MAX_PHASES)

    def _entry(self, phase: Phase, planned: PhasePlan) -> str:
        where = self.machine.of(planned)
        machine = {"machine": where.name, "rates": where.rates is not None}
        return entry_name({**machine, "component": repr(phase.component), "way": planned.key})

    def _samples(self, phase: Phase, planned: PhasePlan) -> dict[str, list[tuple[float, float]]]:
        data = self._cache.get(self._entry(phase, planned))
        return {} if data is None else json.loads(data)


# What samples are of: loading, and the rest of a phase that loaded or of one that found its weights in memory.
_LOADING, _FIRST, _LATER = "loading", "first", "later"


def _scaled(estimate: float, samples: list[tuple[float, float]]) -> float:
    """Return an estimate in proportion to what the most similar of earlier ones turned out to be."""
    estimate = max(estimate, LEAST_ESTIMATE)
    nearest = sorted(samples, key=lambda sample: abs(math.log(sample[0] / estimate)))[:NEAREST]
    ratio = median([seconds / at for at, seconds in nearest] or [1.0])
    return min(estimate * max(ratio, LEAST_RATIO), max(estimate * LARGEST_RATIO, SOON))
