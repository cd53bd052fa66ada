"""Canvas: layers composed into what the model sees, what it makes, and what is pasted back afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...errors import PiyingError
from ...image_sizes import fit_frames
from .frames import fit_area
from .mask_ops import kept_weight
from .vace_task import Layer, VACETask, frame_indices, size_text

GRAY = 0.5  # exactly 0 in -1..1, which is what the model was trained to see where it makes something (VACE #107)


@dataclass(frozen=True, eq=False)
class Canvas:
    """A video of which some pixels are to be made.

    Attributes:
        frames: float32 [N, H, W, 3] in 0..1: kept pixels, control, and gray where neither is.
        make: bool [N, H, W]: what the model makes.
        weights: float32 [N, H, W], how much of `frames` comes back in the result, or None for nothing.
    """

    frames: torch.Tensor
    make: torch.Tensor
    weights: torch.Tensor | None = None


def empty_canvas(width: int, height: int, num_frames: int) -> Canvas:
    """Return a canvas on which everything is to be made; it takes no memory until written to."""
    frames = torch.full((1, 1, 1, 1), GRAY).expand(num_frames, height, width, 3)
    return Canvas(frames, torch.ones(1, 1, 1, dtype=torch.bool).expand(num_frames, height, width))


def compose(task: VACETask, width: int, height: int, num_frames: int) -> Canvas:
    """Compose the task's layers, in the way of VACE's `CompositionAnnotator`.

    Given frames lie on top; below them what edits keep, where every edit keeps it; below that control
    videos, a later one over an earlier one; gray where nothing lies. Control is drawn over by the model,
    so it shows only where something is made.

    Raises:
        PiyingError: a layer does not go with the size or length, two contradict each other, one would have
            no effect, or nothing is left to make.
    """
    layers = [_fit_layer(layer, width, height, num_frames) for layer in task.layers]
    canvas = _compose(layers, width, height, num_frames)
    if not canvas.make.any():
        raise PiyingError("The task keeps every pixel of every frame, so nothing is left to make.")
    _check_seen([layer for layer in layers if layer.kind == "control"], canvas.make)
    return canvas


def compared_with(task: VACETask, canvas: Canvas, count: int) -> dict[str, torch.Tensor]:
    """Return what a result of `count` frames is looked at beside; nothing where the task gives single frames alone.

    `before` [count, H, W, 3] is the video that an edit changes, as it was before the area to be made was cut out of
    it, and `mask` [count, H, W] that area; without an edit `before` is the control.
    """
    num_frames, height, width = canvas.make.shape
    found = {"before": canvas.frames} if any(layer.kind == "control" for layer in task.layers) else {}
    for layer in task.layers:
        if layer.kind == "edit":
            found = {"before": _fit_layer(layer, width, height, num_frames).frames, "mask": canvas.make}
            break
    return {name: as_loop(values, count) for name, values in found.items()}


def as_loop(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return what belongs to the frames of a task [N, …] for those of a result [count, …].

    A loop has frames in front of the task's first one, which lead to it from the last one: so do these values.
    """
    lead = count - len(values)
    if not lead:
        return values
    share = torch.arange(1, lead + 1).view(-1, *[1] * (values.ndim - 1)) / (lead + 1)
    between = torch.lerp(values[-1:].float(), values[:1].float(), share)
    return torch.cat([between.to(values.dtype) if values.is_floating_point() else between > 0, values])


def compose_part(task: VACETask, width: int, height: int, num_frames: int) -> Canvas:
    """Do as `compose` for a part of a video, in which nothing may be left to make, or a control be hidden.

    Raises:
        PiyingError: a layer does not go with the size or length, or two contradict each other.
    """
    layers = [_fit_layer(layer, width, height, num_frames) for layer in task.layers]
    return _compose(layers, width, height, num_frames)


def _compose(layers: Sequence[Layer], width: int, height: int, num_frames: int) -> Canvas:
    canvas = empty_canvas(width, height, num_frames)
    for layer in (layer for layer in layers if layer.kind == "control"):
        frames = layer.frames
        if layer.area is not None:
            frames = torch.where(layer.area[..., None], frames, canvas.frames)
        canvas = replace(canvas, frames=frames)
    canvas = _with_edits(canvas, [layer for layer in layers if layer.kind == "edit"])
    return with_given(canvas, [layer for layer in layers if layer.kind == "given"])


def _fit_layer(layer: Layer, width: int, height: int, num_frames: int) -> Layer:
    """Return the layer at the size and, unless it has slots, with the number of frames of the canvas."""
    _check_fits(layer, width, height, num_frames)
    if layer.kind == "given":
        return replace(layer, frames=fit_frames(layer.frames, width, height, layer.fit))
    try:
        picks = frame_indices(len(layer.frames), num_frames, layer.length, layer.fps)
    except PiyingError as error:
        raise PiyingError(f"{layer.title}: the {layer.noun} {error}") from None
    frames = fit_frames(pick_frames(layer.frames, picks), width, height, layer.fit)
    area = layer.area
    if area is not None:
        area = fit_area(area if len(area) == 1 else area[picks], width, height, layer.fit)
    if layer.length == "continue" and len(layer.frames) < num_frames:
        # The frames behind the layer's own are left to the model: to be made, and without control.
        whole = torch.ones(1, height, width, dtype=torch.bool) if area is None else area
        area = whole.expand(num_frames, -1, -1).clone()
        area[len(layer.frames) :] = layer.kind == "edit"
    return replace(layer, frames=frames, area=area)


def pick_frames(frames: torch.Tensor, picks: list[int]) -> torch.Tensor:
    """Return the frames of those numbers; a view where they follow each other, since a video is gigabytes."""
    first = picks[0]
    if picks == list(range(first, first + len(picks))):
        return frames[first : first + len(picks)]
    return frames[picks]


def _check_fits(layer: Layer, width: int, height: int, num_frames: int) -> None:
    if layer.fixed_size not in (None, (width, height)):
        raise PiyingError(
            f"{layer.title}: the {layer.noun} is {size_text(layer.size)}, the sampler is set to "
            f"{size_text((width, height))}. Set its width to {layer.size[0]} and height to {layer.size[1]} (or wire "
            f"them from this node), or choose a fit on {layer.title}: crop, letterbox or stretch."
        )
    if layer.kind == "given" and layer.total != num_frames:
        raise PiyingError(
            f"{layer.title} makes a video of {layer.total} frames, VACE Sample is set to {num_frames}. Give both the "
            "same num_frames, or wire it from this node."
        )


def _with_edits(canvas: Canvas, edits: Sequence[Layer]) -> Canvas:
    if not edits:
        return canvas
    kept = torch.ones(1, 1, 1, dtype=torch.bool)
    for layer in edits:
        kept = kept & ~_area(layer)
    one = edits[0]
    for other in edits[1:]:
        # Nodes that are given the same video share the tensor; then its gigabytes need not be compared.
        if one.frames.data_ptr() == other.frames.data_ptr():
            continue
        if (kept & (one.frames != other.frames).any(-1)).any():
            raise PiyingError(
                f"{one.title} and {other.title} keep different videos in the same place. Give both the same video, or "
                "mark the part that one of them leaves to the other."
            )
    frames = torch.where(kept[..., None], one.frames, canvas.frames)
    feathers = [layer.feather for layer in edits if layer.paste]
    weights = kept_weight(kept, max(feathers)).expand(canvas.make.shape) if feathers else None
    return Canvas(frames, (~kept).expand(canvas.make.shape), weights)


def with_given(canvas: Canvas, given: Sequence[Layer]) -> Canvas:
    """Return the canvas with whole frames on top, each at its slot.

    Raises:
        PiyingError: two different pictures are for the same frame.
    """
    if not given:
        return canvas
    _check_no_frame_twice(given)
    # Copies: an empty canvas is one pixel expanded, and the frames may be the user's own.
    frames, make = canvas.frames.clone(), canvas.make.clone()
    weights = None if canvas.weights is None else canvas.weights.clone()
    if weights is None and any(layer.paste for layer in given):
        weights = torch.zeros(make.shape)
    for layer in given:
        slots = list(layer.slots)
        frames[slots], make[slots] = layer.frames, False
        if weights is not None:
            weights[slots] = float(layer.paste)
    return Canvas(frames, make, weights)


def _check_no_frame_twice(given: Sequence[Layer]) -> None:
    taken: dict[int, Layer] = {}
    for layer in given:
        for slot, frame in zip(layer.slots, layer.frames, strict=True):
            earlier = taken.setdefault(slot, layer)
            if earlier is not layer and not torch.equal(frame, earlier.frames[earlier.slots.index(slot)]):
                raise PiyingError(
                    f"Two different pictures are given for frame {slot}: the {earlier.noun} and the {layer.noun} of "
                    f"{layer.title}. Give them other places, or leave one out."
                )


def _check_seen(controls: Sequence[Layer], make: torch.Tensor) -> None:
    """Refuse a control video of which the model would see nothing."""
    # From the top down, since a later control lies over an earlier one.
    open_to_view = make
    for layer in reversed(controls):
        area = _area(layer)
        if not (open_to_view & area).any():
            why = "under a later control video" if (make & area).any() else "where the task keeps what is there"
            raise PiyingError(
                f"{layer.title}: all of the {layer.noun} lies {why}, so it would have no effect. Restrict the one or "
                "the other with a mask, or leave one out."
            )
        open_to_view = open_to_view & ~area


def _area(layer: Layer) -> torch.Tensor:
    return torch.ones(1, 1, 1, dtype=torch.bool) if layer.area is None else layer.area
