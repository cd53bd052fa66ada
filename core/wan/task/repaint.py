"""Repaint: a control video says where things are and how they move."""

from __future__ import annotations

import logging

import torch

from ...errors import PiyingError
from ...image_sizes import Fit
from .frames import frames_of, mask_of, white_of
from .options import Length, check_steps
from .vace_task import Layer, Strength, VACETask

log = logging.getLogger("piying")


TITLE = "VACE: Repaint"
NOUN = "control video"
FLAT = 0.02  # a frame whose values all lie this near to gray shows the model nothing


def repaint(
    control: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    strength: Strength | None = None,
    fit: Fit = "refuse",
    length: Length = "refuse",
    fps: float = 16.0,
    task: VACETask | None = None,
) -> VACETask:
    """Show the model a control video, everywhere or where the mask is white.

    Args:
        control: IMAGE [n, h, w, 3]: depth, pose, edges or scribble, gray, optical flow or boxes.
        mask: MASK [1 or n, h, w]; where it is black the model gets no control.
        strength: of the whole task; 1.0 over all steps where None.
        fit, length, fps: how the control comes to the size and length of the video made.
        task: what to build on.

    Raises:
        PiyingError: mask, size, length or strength do not agree with the rest.
    """
    strength = strength or Strength()
    check_steps(strength.start, strength.end)
    frames = frames_of(control, NOUN)
    # Recipes of other tools fill frames with gray to mean "to be made"; here the tasks do that themselves.
    gray = int(((frames - 0.5).abs().amax(dim=(1, 2, 3)) < FLAT).sum())
    if gray:
        log.warning(
            "%s: %d of %d control frames are plain gray. To have the model make the frames between given ones use "
            "VACE: Extend, to have it make a part of each frame use VACE: Inpaint; both set the gray by themselves.",
            TITLE,
            gray,
            len(frames),
        )
    area = None if mask is None else white_of(mask_of(mask, frames, NOUN))
    if area is not None and not area.any():
        raise PiyingError(
            "The mask of the control video is black everywhere, so none of it would be used. White marks where the "
            "control counts: invert the mask, or take it out to use all of the control video."
        )
    layer = Layer("control", TITLE, NOUN, frames, area, fit=fit, length=length, fps=fps)
    return (task or VACETask()).with_layers(layer).with_strength(strength)
