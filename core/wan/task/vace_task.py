"""VACE task: what travels along a VACE_TASK wire, layers of frames and how they adapt to the video made."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ...errors import PiyingError
from ...image_sizes import MULTIPLE, Fit, either, nearest_multiples
from ..latents import FRAME_STEP
from ..request import DEFAULT_FRAMES, FPS, LONGEST_FRAMES, MAX_FRAMES, MAX_SIDE, MIN_SIDE
from .options import Length, SizeFrom

if TYPE_CHECKING:
    import torch


# control: shown to the model where `area` says, and drawn over by it.
# edit: kept outside `area`, generated inside.
# given: whole frames that are kept, each at its slot in time.
Kind = Literal["control", "edit", "given"]


@dataclass(frozen=True, eq=False)
class Layer:
    """Frames with one part to play.

    Attributes:
        kind: see `Kind`.
        title: the node that made it, for messages: "VACE: Inpaint".
        noun: what the frames are, for messages: "video", "last frame".
        frames: float32 [n, h, w, 3] in 0..1, on the CPU.
        area: bool [1 or n, h, w], or None for everything; what it means depends on `kind`.
        fit: how the frames come to another size.
        length: how they come to another number; `given` layers have slots instead.
        fps: frames a second of the source, which `length` "resample" goes by.
        paste: whether the kept pixels come back untouched in the result.
        feather: width in pixels, inside what is kept, over which it blends into what is made.
        slots: for `given`: the place in time of each frame, from 0.
        total: for `given`: the number of frames the slots were counted in.
    """

    kind: Kind
    title: str
    noun: str
    frames: torch.Tensor
    area: torch.Tensor | None = None
    fit: Fit = "refuse"
    length: Length = "refuse"
    fps: float = FPS
    paste: bool = False
    feather: int = 0
    slots: tuple[int, ...] = ()
    total: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The only size the layer goes with, where it refuses to be fitted."""
        return self.size if self.fit == "refuse" else None

    @property
    def fixed_length(self) -> int | None:
        """The only number of frames the layer goes with, where it has one."""
        if self.kind == "given":
            return self.total
        return self.frames.shape[0] if self.length == "refuse" else None

    def describe(self) -> dict[str, Any]:
        """Return what the layer is, fit for JSON."""
        width, height = self.size
        about = {"node": self.title, "frames": len(self.frames), "width": width, "height": height}
        return {**about, "fit": self.fit, "length": self.length if self.kind != "given" else list(self.slots)}


@dataclass(frozen=True)
class Strength:
    """How strongly the model follows the task, and during which part of the steps.

    VACE adds what it makes of the task to the video model once in every VACE layer; `value`
    multiplies that (`context_scale` of the authors' code, `conditioning_scale` of diffusers). One
    value holds for control video, kept pixels and references together, since the model reads them
    as one.
    """

    value: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def at(self, step: int, steps: int) -> float:
        """Return the scale of step `step` (from 0) of `steps`: `value` in [start, end), 0 outside."""
        done = step / steps
        return self.value if self.start <= done < self.end else 0.0


@dataclass(frozen=True, eq=False)
class VACETask:
    """What a video is to be made from, beside its prompt.

    Attributes:
        layers: in the order they were added; `canvas.compose` says which one wins where several overlap.
        references: pictures [h, w, 3] in 0..1 of any size, in the order the model gets them.
        strength: None where no node set one.
    """

    layers: tuple[Layer, ...] = ()
    references: tuple[torch.Tensor, ...] = ()
    strength: Strength | None = None

    def with_layers(self, *layers: Layer) -> VACETask:
        """Return the task with layers added.

        Raises:
            PiyingError: a size or length can never be made, or not together with an earlier layer's.
        """
        for layer in layers:
            if layer.fixed_size:
                _check_size(layer)
            # Given frames are a part of the video: how long that is was checked where they were given places.
            if layer.kind != "given" and layer.fixed_length:
                _check_length(layer)
        together = (*self.layers, *layers)
        _check_agreement(together)
        return replace(self, layers=together)

    def with_references(self, pictures: tuple[torch.Tensor, ...]) -> VACETask:
        """Return the task with references added behind those it has."""
        return replace(self, references=(*self.references, *pictures))

    def with_strength(self, strength: Strength) -> VACETask:
        """Return the task with its one strength set.

        Raises:
            PiyingError: an earlier node set another.
        """
        if self.strength not in (None, strength):
            raise PiyingError(
                f"strength is {_say(strength)} here and {_say(self.strength)} in the task it builds on. "
                "The model has one strength for a whole task: set both nodes alike."
            )
        return replace(self, strength=strength)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The only width and height the task can be made at, where a layer refuses to be fitted."""
        return next((layer.size for layer in self.layers if layer.fixed_size), None)

    @property
    def fixed_length(self) -> int | None:
        """The only number of frames the task can be made with, where a layer has one."""
        return next((layer.fixed_length for layer in self.layers if layer.fixed_length), None)

    def offered_size(self) -> tuple[int, int] | None:
        """Return a width and height the task can be made at, its own or the nearest below; None if it has none."""
        if not self.layers:
            return None
        width, height = self.fixed_size or self.layers[0].size
        return _round_side(width), _round_side(height)

    def offered_length(self) -> int | None:
        """Return a number of frames the task can be made with; None if it has none of its own."""
        if not self.layers:
            return None
        first = self.layers[0]
        return self.fixed_length or offered_length(len(first.frames), first.length, first.fps)

    def sampler_sizes(self, size_from: SizeFrom, wired: Collection[str]) -> dict[str, int]:
        """Return the width, height and num_frames that a sampler takes from the task in place of its own.

        Args:
            size_from: `auto` is what the task fixes, `task` also what it offers where its frames may be fitted.
            wired: inputs of the sampler whose values come over a wire, which they keep; width and height go together.
        """
        if size_from == "widgets":
            return {}
        offers = size_from == "task"
        size = self.offered_size() if offers else self.fixed_size
        length = self.offered_length() if offers else self.fixed_length
        found: dict[str, int] = {}
        if size is not None and not {"width", "height"}.intersection(wired):
            found |= {"width": size[0], "height": size[1]}
        if length is not None and "num_frames" not in wired:
            found["num_frames"] = length
        return found

    def describe(self) -> dict[str, Any]:
        """Return what the task is made of, fit for JSON."""
        strength = self.strength or Strength()
        return {
            "layers": [layer.describe() for layer in self.layers],
            "references": [f"{picture.shape[1]}×{picture.shape[0]}" for picture in self.references],
            "strength": {"value": strength.value, "start": strength.start, "end": strength.end},
        }


def _say(strength: Strength | None) -> str:
    strength = strength or Strength()
    return f"{strength.value:g} (steps {strength.start:g} to {strength.end:g})"


def _round_side(side: int) -> int:
    return min(max(side // MULTIPLE * MULTIPLE, MIN_SIDE), MAX_SIDE)


def _check_size(layer: Layer) -> None:
    ways = [
        f"{name} {either(nearest)}"
        for name, side in zip(("width", "height"), layer.size, strict=True)
        if side not in (nearest := nearest_multiples(side, MULTIPLE, MIN_SIDE, MAX_SIDE))
    ]
    if ways:
        raise PiyingError(
            f"The {layer.noun} is {size_text(layer.size)}. Wan VACE makes sides that are multiples of {MULTIPLE}, up "
            f"to {MAX_SIDE}. Bring it to {' and '.join(ways)}, or choose a fit: crop, letterbox or stretch."
        )


def _check_length(layer: Layer) -> None:
    count = len(layer.frames)
    if count % FRAME_STEP == 1 and count <= LONGEST_FRAMES:
        return
    choices = f"trim ({offered_length(count, 'trim', FPS)})"
    if count <= offered_length(count, "hold", FPS):
        choices += f" or hold ({offered_length(count, 'hold', FPS)})"
    raise PiyingError(
        f"The {layer.noun} has {count} frames. Wan VACE makes 4n+1 frames, up to {LONGEST_FRAMES}. "
        f"Choose another length here: {choices}; resample and spread pick from all of it."
    )


def _check_agreement(layers: tuple[Layer, ...]) -> None:
    sizes = [(layer, size_text(layer.size)) for layer in layers if layer.fixed_size]
    lengths = [(layer, f"{layer.fixed_length} frames") for layer in layers if layer.fixed_length]
    for known, choice in ((sizes, "fit"), (lengths, "length")):
        for (one, first), (other, second) in pairwise(known):
            if first != second:
                # Given layers have slots in place of a `length` that could be chosen.
                fixed = choice == "length" and {one.kind, other.kind} == {"given"}
                raise PiyingError(
                    f"The {one.noun} of {one.title} goes with {first}, the {other.noun} of {other.title} with "
                    f"{second}. Give both the same"
                    + ("." if fixed else f", or choose another {choice} than refuse on one of the two nodes.")
                )


def size_text(size: tuple[int, int]) -> str:
    """Return "832×480" for (832, 480)."""
    return f"{size[0]}×{size[1]}"


def frame_indices(count: int, wanted: int, length: Length, fps: float) -> list[int]:
    """Return which of `count` frames become the `wanted` ones.

    - refuse: all, if they are as many.
    - trim: the first ones; the end is cut.
    - hold: all, then the last one again.
    - resample: those on screen at every sixteenth of a second, the end cut.
    - spread: evenly spread over the whole source, its first and last included.
    - continue: all, then the last one again, for frames that the model is to make.

    Raises:
        PiyingError: they cannot become as many this way; the text says which ways there are.
    """
    if length == "spread":
        return spread(count, wanted)
    usable = resampled(count, fps) if length == "resample" else list(range(count))
    too_many, too_few = len(usable) > wanted, len(usable) < wanted
    if (too_many and length not in ("trim", "resample")) or (too_few and length not in ("hold", "continue")):
        has = f"has {count} frames"
        if length == "resample":
            has = f"has {count} frames, {len(usable)} at {FPS} a second"
        ways = "trim or spread" if too_many else "hold, spread or continue"
        fitting = offered_length(count, length, fps)
        # A source longer than one run makes fits no number of frames this way.
        if fitting < len(usable) and length in ("refuse", "hold", "continue"):
            advice = f"Choose another length: {ways}; VACE Long Video makes all {count}."
        else:
            advice = f"Set num_frames to {fitting}, or choose another length: {ways}."
        raise PiyingError(f"{has}; num_frames is {wanted}. {advice}")
    return usable[:wanted] + [usable[-1]] * (wanted - len(usable))


def spread(count: int, wanted: int) -> list[int]:
    """Return `wanted` of `count` frames at even distances, as VACE's `VaceVideoProcessor` does with `keep_last`.

    Frame k is the first on screen at k/(wanted - 1) of the time to the middle of the last frame.
    """
    if wanted == 1:
        return [0]
    steps = 2 * (wanted - 1)
    return [max(0, -(-k * (2 * count - 1) // steps) - 1) for k in range(wanted)]


def resampled(count: int, fps: float) -> list[int]:
    """Return the frames on screen at 0, 1/16, 2/16 … seconds while the source of `fps` plays."""
    found: list[int] = []
    # The small summand keeps rounding from showing a frame a sixteenth of a second too long.
    while (index := int(len(found) * fps / FPS + 1e-6)) < count:
        found.append(index)
    return found


def longest_below(count: int) -> int:
    """Return the largest 4n+1 up to `count` and up to what one run can make."""
    return max(1, min((count - 1) // FRAME_STEP * FRAME_STEP + 1, MAX_FRAMES))


def offered_length(count: int, length: Length, fps: float) -> int:
    """Return the 4n+1 frames that suit `count` frames adapted by `length`."""
    if length in ("hold", "continue"):
        return min(-(-(count - 1) // FRAME_STEP) * FRAME_STEP + 1, MAX_FRAMES)
    if length == "spread":
        return min(longest_below(count), DEFAULT_FRAMES)
    return longest_below(len(resampled(count, fps)) if length == "resample" else count)
