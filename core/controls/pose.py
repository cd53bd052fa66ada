"""Pose: where people's joints are, drawn as sticks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..catalog.discovery import installed_models
from ..catalog.installed_model import AUTO
from ..errors import PiyingError
from ..executor.placement import resident
from ..host.base import Host
from .choices import POSE_COLOURS, WHOLE_FRAME, check_choice
from .family import DETECTOR, POSE
from .frames import checked_frames, collected
from .heatmaps import crop_around, cut_out, points_of
from .models import check_detector, choose, image_processor, load
from .skeleton import draw_people, openpose_points

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from .frames import Pixels

    Numbers = npt.NDArray[np.float32]
    Box = tuple[float, float, float, float]

log = logging.getLogger("piying")
COCO_POINTS = 17


def pose(
    images: Any, model: str, detector: str, min_score: float, colours: str, host: Host
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the people of every frame as sticks on black, IMAGE [N, H, W, 3], and what ran.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        model: from `models.choices(POSE, host)`: a ViTPose of COCO's 17 points.
        detector: from `models.detector_choices`. It finds people; without one the whole frame is taken for one person.
        min_score: how sure the detector has to be, 0..1.
        colours: one of `choices.POSE_COLOURS`.

    Raises:
        PiyingError: no frames, no such model, or its files cannot be read.
    """
    check_choice("colours", colours, POSE_COLOURS)
    frames = checked_frames(images)
    found = choose(POSE, model, host)
    check_detector(detector, host)
    boxes, finder = find_people(frames, detector, min_score, host)
    people = _people(frames, boxes, load(POSE, found, host), host)
    height, width = frames.shape[1:3]
    drawn = (draw_people(openpose_points(points), width, height, colours) for points in people)
    record = {"model": found.name, "detector": finder, "device": host.device()}
    return collected(drawn, len(frames), "Drawing poses", host), record


def find_people(frames: torch.Tensor, detector: str, min_score: float, host: Host) -> tuple[list[list[Box]], str]:
    """Return each frame's boxes around people, and what found them."""
    if detector == WHOLE_FRAME or (detector == AUTO and not installed_models(DETECTOR, host)):
        if detector == AUTO:
            log.info("No detector is installed: the whole frame is taken for one person.")
        height, width = frames.shape[1:3]
        return [[(0.0, 0.0, float(width), float(height))]] * len(frames), WHOLE_FRAME
    found = choose(DETECTOR, detector, host)
    network, processor = load(DETECTOR, found, host), image_processor(DETECTOR, found)
    return _detected(frames, network, processor, min_score, host), found.name


def _detected(
    frames: torch.Tensor, network: PreTrainedModel, processor: Any, min_score: float, host: Host
) -> list[list[Box]]:
    import torch

    from ..media.images import to_uint8

    labels: Any = network.config.id2label
    people = [int(number) for number, name in labels.items() if name.lower() == "person"]
    if not people:
        raise PiyingError("The chosen detector has no class named person. Choose one trained on COCO or Objects365.")
    progress = host.progress("Finding people", len(frames))
    result = []
    with torch.no_grad(), resident([network], host.device(), host):
        for index, frame in enumerate(frames):
            pixels = processor(images=to_uint8(frame), return_tensors="pt").to(network.device)
            (seen,) = processor.post_process_object_detection(
                network(**pixels), threshold=min_score, target_sizes=[tuple(frame.shape[:2])]
            )
            both = zip(seen["labels"].tolist(), seen["boxes"].tolist(), strict=True)
            result.append([tuple(box) for label, box in both if label in people])
            progress.step(index + 1)
    return result


def _people(frames: torch.Tensor, boxes: list[list[Box]], network: PreTrainedModel, host: Host) -> list[Numbers]:
    """Return each frame's people as COCO's points [P, 17, 3]."""
    import torch

    from ..media.images import to_uint8

    progress = host.progress("Pose", len(frames))
    result = []
    with torch.no_grad(), resident([network], host.device(), host):
        for index, (frame, around) in enumerate(zip(frames, boxes, strict=True)):
            result.append(_points(to_uint8(frame), around, network))
            progress.step(index + 1)
    return result


def _points(frame: Pixels, boxes: list[Box], network: PreTrainedModel) -> Numbers:
    import numpy as np
    import torch

    height, width = network.config.backbone_config.image_size
    crops = [crop_around(box, width / height) for box in boxes]
    if not crops:
        return np.zeros((0, COCO_POINTS, 3), np.float32)
    pictures = torch.from_numpy(np.stack([cut_out(frame, crop, width, height) for crop in crops]))
    # ViTPose+ has experts by data set; COCO is the first.
    experts = getattr(network.config.backbone_config, "num_experts", 1) > 1
    chosen = {"dataset_index": torch.zeros(len(crops), dtype=torch.long, device=network.device)} if experts else {}
    heat = network(pictures.to(network.device), **chosen).heatmaps.float().cpu().numpy()[:, :COCO_POINTS]
    return np.stack([points_of(maps, crop) for maps, crop in zip(heat, crops, strict=True)])
