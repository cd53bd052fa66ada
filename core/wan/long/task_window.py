"""Task windows: the part of a long video's task that lies in one of its windows."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...errors import PiyingError
from ..task.canvas import pick_frames
from ..task.vace_task import Layer, VACETask, frame_indices
from .request import Window


def cut(task: VACETask, window: Window, total: int) -> VACETask:
    """Return the part of a task that lies in a window. Frames are views of the task's own where that can be.

    Args:
        task: made for `total` frames.
        window: with the frames that the window before has made too.
        total: the length of the whole video.

    Raises:
        PiyingError: a layer does not go with that length, or ends before a loop does.
    """
    parts = [_part(layer, window, total) for layer in task.layers]
    return replace(task, layers=tuple(part for part in parts if part is not None))


def _part(layer: Layer, window: Window, total: int) -> Layer | None:
    if layer.kind == "given":
        return _given(layer, window, total)
    if layer.length == "continue" and len(layer.frames) < total:
        if window.start < 0 or window.closing:
            raise PiyingError(
                f"{layer.title}: the {layer.noun} ends before the video, whose end leads to its beginning. Choose "
                "another length: hold or spread; or no loop."
            )
        return _continued(layer, window)
    try:
        picks = frame_indices(len(layer.frames), total, layer.length, layer.fps)
    except PiyingError as error:
        raise PiyingError(f"{layer.title}: the {layer.noun} {error}") from None
    # Picked for the whole video first: a window of its own length would be fitted in another way.
    picks = [picks[index % total] for index in range(window.start, window.end)]
    area = layer.area
    if area is not None and len(area) > 1:
        area = pick_frames(area, picks)
    return replace(layer, frames=pick_frames(layer.frames, picks), area=area, length="refuse")


def _given(layer: Layer, window: Window, total: int) -> Layer | None:
    """Return the given frames whose place is in the window."""
    if layer.total != total:
        raise PiyingError(
            f"{layer.title} makes a video of {layer.total} frames, VACE Long Video is set to {total}. Give both the "
            "same num_frames, or wire it from this node."
        )
    # Of a loop a window may hold frames of both ends.
    places = [(slot - window.start) % total for slot in layer.slots]
    inside = [index for index, place in enumerate(places) if place < window.count]
    if not inside:
        return None
    slots = tuple(places[index] for index in inside)
    return replace(layer, frames=pick_frames(layer.frames, inside), slots=slots, total=window.count)


def _continued(layer: Layer, window: Window) -> Layer | None:
    """Return the part of a layer whose frames end before the video does; behind them the model is free."""
    own = len(layer.frames) - window.start
    if own <= 0:
        if layer.kind != "edit":
            return None
        # An edit that keeps nothing: all of the window is to be made.
        frames = layer.frames[-1:].expand(window.count, -1, -1, -1)
        return replace(layer, frames=frames, area=torch.ones(1, *frames.shape[1:3], dtype=torch.bool), length="refuse")
    span = slice(window.start, window.end)
    area = layer.area
    if area is not None and len(area) > 1:
        area = area[span]
    return replace(layer, frames=layer.frames[span], area=area, length="continue" if own < window.count else "refuse")
