"""Reference: pictures of what the video is to show."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ...errors import PiyingError
from .frames import mask_of, pictures_on_white, white_of
from .vace_task import VACETask

log = logging.getLogger("piying")


MANY = 3  # what the authors' composition tasks go up to (UserGuide, reference_anything)


def reference(
    images: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    invert_mask: bool = False,
    crop: bool = False,
    task: VACETask | None = None,
) -> VACETask:
    """Add reference pictures, in the order given, behind those the task has.

    Args:
        images: IMAGE batches [n, h, w, 3 or 4], each with a MASK whose white part is the subject, or None.
            What lies outside the mask, or is hidden by alpha, becomes white.
        invert_mask: the masks are drawn the other way round: black is the subject.
        crop: cut each picture to its subject; pictures without a mask stay as they are.
        task: what to build on.

    Raises:
        PiyingError: a mask does not fit its picture or holds no subject.
    """
    pictures: list[torch.Tensor] = []
    for image, mask in images:
        batch = pictures_on_white(image, "reference picture")
        if mask is None:
            pictures += list(batch)
            continue
        masks = mask_of(mask, batch, "reference picture")
        masks = 1 - masks if invert_mask else masks
        pictures += [
            _cut_out(picture, one, crop) for picture, one in zip(batch, masks.expand(len(batch), -1, -1), strict=True)
        ]
    task = (task or VACETask()).with_references(tuple(pictures))
    if len(task.references) > MANY:
        log.warning(
            "%d reference pictures: the authors used up to %d. Each costs as much as four more frames.",
            len(task.references),
            MANY,
        )
    return task


def _cut_out(picture: torch.Tensor, mask: torch.Tensor, crop: bool) -> torch.Tensor:
    subject = white_of(mask)
    if not subject.any():
        raise PiyingError(
            "The mask of a reference picture is black everywhere, so nothing of the picture would be left. White "
            "marks the subject: turn invert_mask on if it is drawn the other way round, or take the mask out."
        )
    # Soft edges stay soft: a hard cut would leave a rim of the background.
    cut = picture * mask[..., None].clamp(0, 1) + (1 - mask[..., None].clamp(0, 1))
    if not crop:
        return cut
    rows, columns = subject.any(1).nonzero()[:, 0], subject.any(0).nonzero()[:, 0]
    return cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
