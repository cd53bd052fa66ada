"""What machines reach, from what is written about them; for estimates, never for what fits."""

from __future__ import annotations

GB = 10**9  # rates count in powers of ten, unlike memory

# Dense 16-bit operations per clock and multiprocessor, with sums in float32, by compute capability: the
# rates of NVIDIA's architecture papers (A100 312e12 = 108 * 1.41e9 * 2048, RTX 4090 165e12 = 128 * 2.52e9 * 512,
# H100 989e12 = 132 * 1.83e9 * 4096, …). GeForce cards sum in float32 at half the rate of workstation cards.
OPERATIONS_PER_CLOCK = {(7, 0): 1024, (7, 5): 512, (8, 0): 2048, (8, 6): 512, (8, 9): 512, (9, 0): 4096, (12, 0): 512}
UNKNOWN_OPERATIONS = 512
FIRST_FP8 = (8, 9)  # FP8 tensor cores: Ada and later, at twice the 16-bit rate
FP8_SPEEDUP = 2.0

# Published Wan2.1 times are 36 % (H100), 63 % (A100), 64 % (H20) and 66 % (RTX 4090) of the dense peak.
REACHED = 0.5
MEMORY_REACHED = 0.8  # of the memory's nominal rate

# Page-locked copies as commonly reached: PCIe 3, 4 and 5 with 16 lanes.
PCIE = {7: 12 * GB, 8: 24 * GB, 9: 50 * GB}
NEWEST_PCIE = 50 * GB
DISK = 2 * GB  # a mapped file on an NVMe disk
CPU_FLOPS = 100 * GB  # float32, a few cores
CPU_BANDWIDTH = 30 * GB

# A card of 2022's middle class stands for the one that is not there: RTX 4070 class, PCIe 4 with 16 lanes.
TYPICAL_NAME = "a card of the RTX 4070 class"
TYPICAL_CAPABILITY = (8, 9)
TYPICAL_CLOCK = 2.475e9
TYPICAL_PEAK = 46 * TYPICAL_CLOCK * 512  # dense bf16 with float32 sums
TYPICAL_BANDWIDTH = 504 * GB


def peak_operations(capability: tuple[int, int], multiprocessors: int, clock: float, name: str) -> float:
    """Return a card's dense 16-bit operations per second.

    Args:
        capability: CUDA's compute capability.
        multiprocessors: their number.
        clock: hertz.
        name: the card's name, which tells GeForce from workstation cards.
    """
    per_clock = OPERATIONS_PER_CLOCK.get(capability, UNKNOWN_OPERATIONS)
    halved = per_clock == UNKNOWN_OPERATIONS and "GeForce" not in name and capability >= (8, 0)
    return multiprocessors * clock * per_clock * (2 if halved else 1)


def pcie_rate(capability: tuple[int, int]) -> float:
    """Return the bytes per second that cards of this generation reach over PCIe."""
    return PCIE.get(capability[0], NEWEST_PCIE)
