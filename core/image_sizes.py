"""Picture sizes: what a model accepts, and the nearest it does when a size is refused."""

from __future__ import annotations

MULTIPLE = 16  # VAE stride 8 × patch 2, both for Wan 2.1 and for Hunyuan-DiT


def nearest_multiples(value: int, step: int, low: int, high: int, *, offset: int = 0) -> list[int]:
    """Return the one or two numbers `offset + k·step` within [low, high] that lie nearest to `value`."""
    below = offset + (value - offset) // step * step
    candidates = {min(max(candidate, low), high) for candidate in (below, below + step)}
    return sorted(candidates)


def either(numbers: list[int]) -> str:
    """Return "80 or 96" for [80, 96], for use in a sentence."""
    return " or ".join(str(number) for number in numbers)


def nearest_shape(width: int, height: int, shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the (width, height) of `shapes` closest in aspect, then in area, to the one asked for."""

    def distance(shape: tuple[int, int]) -> tuple[float, int]:
        aspect = abs(shape[0] / shape[1] - width / height)
        return round(aspect, 2), abs(shape[0] * shape[1] - width * height)

    return min(shapes, key=distance)
