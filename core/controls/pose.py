"""Pose: people detected in frames, keypoints decoded from heat maps, drawn as OpenPose's coloured sticks.

Crops and points follow unbiased data processing (Huang et al., The Devil is in the Details, 2020), which ViTPose was
trained with. Sticks are drawn as VACE's annotator draws them.
"""

from __future__ import annotations

import logging
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..catalog.discovery import installed_models
from ..catalog.installed_model import AUTO
from ..errors import PiyingError, check_choice
from ..executor.placement import resident
from ..host.base import Host
from ..media.frames import checked_frames, stack_frames
from .choices import OPENPOSE, POSE_COLOURS, WHOLE_FRAME
from .family import DETECTOR, POSE
from .models import check_detector, choose, image_processor, load

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from ..media.frames import Pixels

    Numbers = npt.NDArray[np.float32]
    Box = tuple[float, float, float, float]

log = logging.getLogger("piying")
COCO_POINTS = 17

# ImageNet's mean and standard deviation, which every published ViTPose was trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_MARGIN = 1.25  # how much wider than the person a crop is

MIN_CONFIDENCE = 0.3  # points less certain than this are not drawn (DWPose, and VACE after it)
# OpenPose's 18 points, as numbers of COCO's 17; None is the neck, halfway between the shoulders.
_FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
NECK, LEFT_SHOULDER, RIGHT_SHOULDER = 1, 5, 6  # the shoulders as COCO numbers them
# Sticks between OpenPose's points: shoulders and arms, hips and legs, then the head.
STICKS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7)),
    *((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_POINT, _HALF_STICK = 4, 4  # pixels, on a canvas whose shorter side is 1024
_CANVAS, _MULTIPLE = 1024, 64  # its sides are multiples of 64
_STICK_SHADE = 0.6


def pose(
    images: Any, model: str, *, detector: str, min_score: float, colours: str, host: Host
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the people of every frame as sticks on black, IMAGE [N, H, W, 3], and what ran.

    Args:
        images: IMAGE [N, H, W, 3] in 0..1.
        model: from `model_choices(POSE, host)`: a ViTPose of COCO's 17 points.
        detector: from `models.detector_choices`. It finds people; without one the whole frame is taken for one person.
        min_score: how sure the detector has to be, 0..1.
        colours: one of `choices.POSE_COLOURS`.

    Raises:
        PiyingError: no frames, no such model, or its files cannot be read.
    """
    import torch

    from ..media.images import to_uint8

    check_choice("colours", colours, POSE_COLOURS)
    frames = checked_frames(images)
    found = choose(POSE, model, host)
    check_detector(detector, host)
    boxes, finder = find_people(frames, detector, min_score, host)
    network = load(POSE, found, host)
    progress = host.progress("Pose", len(frames))
    people = []
    with torch.no_grad(), resident([network], host.device(), host):
        for index, (frame, around) in enumerate(zip(frames, boxes, strict=True)):
            people.append(_coco_points(to_uint8(frame), around, network))
            progress.step(index + 1)
    height, width = frames.shape[1:3]
    drawn = (draw_people(openpose_points(points), width, height, colours) for points in people)
    record = {"model": found.name, "detector": finder, "device": host.device()}
    return stack_frames(drawn, len(frames), "Drawing poses", host), record


def find_people(frames: torch.Tensor, detector: str, min_score: float, host: Host) -> tuple[list[list[Box]], str]:
    """Return each frame's boxes around people, and what found them.

    Raises:
        PiyingError: no such detector, its files cannot be read, or it does not know people.
    """
    import torch

    from ..media.images import to_uint8

    if detector == WHOLE_FRAME or (detector == AUTO and not installed_models(DETECTOR, host)):
        if detector == AUTO:
            log.info("No detector is installed: the whole frame is taken for one person.")
        height, width = frames.shape[1:3]
        return [[(0.0, 0.0, float(width), float(height))]] * len(frames), WHOLE_FRAME
    found = choose(DETECTOR, detector, host)
    network, processor = load(DETECTOR, found, host), image_processor(DETECTOR, found)
    labels: Any = network.config.id2label
    people = [int(number) for number, name in labels.items() if name.lower() == "person"]
    if not people:
        raise PiyingError("The chosen detector has no class named person. Choose one trained on COCO or Objects365.")
    progress = host.progress("Finding people", len(frames))
    boxes = []
    with torch.no_grad(), resident([network], host.device(), host):
        for index, frame in enumerate(frames):
            pixels = processor(images=to_uint8(frame), return_tensors="pt").to(network.device)
            (seen,) = processor.post_process_object_detection(
                network(**pixels), threshold=min_score, target_sizes=[tuple(frame.shape[:2])]
            )
            both = zip(seen["labels"].tolist(), seen["boxes"].tolist(), strict=True)
            boxes.append([tuple(box) for label, box in both if label in people])
            progress.step(index + 1)
    return boxes, found.name


def _coco_points(frame: Pixels, boxes: list[Box], network: PreTrainedModel) -> Numbers:
    """Return the people in boxes of a frame as COCO's points [P, 17, 3]."""
    import numpy as np
    import torch

    height, width = network.config.backbone_config.image_size
    crops = [crop_around(box, width / height) for box in boxes]
    if not crops:
        return np.zeros((0, COCO_POINTS, 3), np.float32)
    pictures = torch.from_numpy(np.stack([warp_crop(frame, crop, width, height) for crop in crops]))
    # ViTPose+ has an expert per data set: COCO's is the first, and its first 17 keypoints are COCO's.
    experts = getattr(network.config.backbone_config, "num_experts", 1) > 1
    chosen = {"dataset_index": torch.zeros(len(crops), dtype=torch.long, device=network.device)} if experts else {}
    heat = network(pictures.to(network.device), **chosen).heatmaps.float().cpu().numpy()[:, :COCO_POINTS]
    return np.stack([decode_heatmaps(maps, crop) for maps, crop in zip(heat, crops, strict=True)])


# Crops and heat maps


@dataclass(frozen=True)
class Crop:
    """A crop of a frame, in pixels of the frame: its centre and size."""

    x: float
    y: float
    width: float
    height: float


def crop_around(box: tuple[float, float, float, float], aspect: float) -> Crop:
    """Return a crop around a box (left, top, right, bottom) with a margin, of the aspect ratio width / height."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    width, height = max(width, height * aspect), max(height, width / aspect)
    return Crop((left + right) / 2, (top + bottom) / 2, width * CROP_MARGIN, height * CROP_MARGIN)


def warp_crop(frame: Pixels, crop: Crop, width: int, height: int) -> Numbers:
    """Return a crop of a frame [H, W, 3], resized and normalised, [3, height, width], padded with black."""
    import cv2
    import numpy as np

    # Between the centres of the corner pixels, hence the - 1: without it, points of flipped pictures are shifted.
    x_scale, y_scale = (width - 1) / crop.width, (height - 1) / crop.height
    matrix = np.array(
        [
            [x_scale, 0, (width - 1) / 2 - x_scale * crop.x],
            [0, y_scale, (height - 1) / 2 - y_scale * crop.y],
        ]
    )
    cut = cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_LINEAR).astype(np.float32) / 255
    normal: Numbers = ((cut - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)).transpose(2, 0, 1)
    return normal


def decode_heatmaps(heat: Numbers, crop: Crop) -> Numbers:
    """Return the points [K, 3] that heat maps [K, h, w] show: x and y in pixels of the frame, and confidence."""
    import numpy as np

    count, height, width = heat.shape
    places = heat.reshape(count, -1).argmax(1)
    peaks = np.stack([places % width, places // width], axis=1)
    sure = heat[np.arange(count), peaks[:, 1], peaks[:, 0]]
    fine = peaks + _subpixel_offsets(heat, peaks)
    x = fine[:, 0] * crop.width / (width - 1) + crop.x - crop.width / 2
    y = fine[:, 1] * crop.height / (height - 1) + crop.y - crop.height / 2
    return np.stack([x, y, sure], axis=1).astype(np.float32)


def _subpixel_offsets(heat: Numbers, peaks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the offset [K, 2] from each map's maximum to its peak at subpixel accuracy.

    One Newton step on the logarithm, which is a parabola where the hill is a Gaussian (Zhang et al.,
    Distribution-Aware Coordinate Representation, 2020).
    """
    import cv2
    import numpy as np

    steps = np.zeros((len(heat), 2))
    for index, (x, y) in enumerate(peaks):
        soft = cv2.GaussianBlur(heat[index], (3, 3), 0.8, borderType=cv2.BORDER_REFLECT)
        hill = np.pad(np.log(np.clip(soft, 1e-3, 50).astype(np.float64)), 1, mode="edge")[y : y + 3, x : x + 3]
        slope = np.array([hill[1, 2] - hill[1, 0], hill[2, 1] - hill[0, 1]]) / 2
        across, down = hill[1, 2] + hill[1, 0] - 2 * hill[1, 1], hill[2, 1] + hill[0, 1] - 2 * hill[1, 1]
        # The mixed second derivative, by the finite difference that the authors use.
        mixed = (hill[2, 2] - hill[1, 2] - hill[2, 1] + 2 * hill[1, 1] - hill[1, 0] - hill[0, 1] + hill[0, 0]) / 2
        # Regularized: the Hessian of a flat map is singular.
        curve = np.array([[across, mixed], [mixed, down]]) + np.finfo(np.float32).eps * np.eye(2)
        steps[index] = -np.linalg.solve(curve, slope)
    return steps


# Drawing


def hue(index: int) -> tuple[int, int, int]:
    """Return the colour (R, G, B) of a stick or point: 18 even steps around the circle of hues, from red."""
    red, green, blue = (round(255 * part) for part in hsv_to_rgb(index / 18, 1, 1))
    return red, green, blue


def openpose_points(people: Numbers) -> Numbers:
    """Return OpenPose's points [P, 18, 3] for COCO's [P, 17, 3]: x, y and confidence 0..1.

    The neck is as certain as the less certain shoulder.
    """
    import numpy as np

    left, right = people[:, LEFT_SHOULDER], people[:, RIGHT_SHOULDER]
    neck = (left + right) / 2
    neck[:, 2] = np.minimum(left[:, 2], right[:, 2])
    return np.stack([neck if source is None else people[:, source] for source in _FROM_COCO], axis=1)


def draw_people(people: Numbers, width: int, height: int, colours: str) -> Pixels:
    """Return people on black, uint8 [height, width, 3].

    Sticks and points are drawn on a picture whose shorter side is 1024, as VACE's annotator does, and
    scaled down: their thickness is a part of the picture and not a number of pixels.

    Args:
        people: OpenPose's points [P, 18, 3], x and y in pixels of the frame, and confidence.
        width, height: of the frame.
        colours: `OpenPose` (right shoulder red), or `as VACE`, whose annotator gives videos with red and blue
            exchanged.
    """
    import cv2
    import numpy as np

    across, down = (round(side * (_CANVAS / min(width, height)) / _MULTIPLE) * _MULTIPLE for side in (width, height))
    canvas = np.zeros((down, across, 3), np.uint8)
    placed = people * np.array([across / width, down / height, 1], np.float32)
    for number, stick in enumerate(STICKS):
        for person in placed:
            _draw_stick(canvas, person[list(stick)], hue(number))
    # Only the sticks are darkened, so that points stand out.
    canvas = (canvas * _STICK_SHADE).astype(np.uint8)
    for number in range(placed.shape[1]):
        for x, y, sure in placed[:, number]:
            if sure > MIN_CONFIDENCE:
                cv2.circle(canvas, (int(x), int(y)), _POINT, hue(number), thickness=-1)
    # As in the annotator: Lanczos to enlarge, area to shrink.
    how = cv2.INTER_LANCZOS4 if width * height > across * down else cv2.INTER_AREA
    drawn: Pixels = cv2.resize(canvas, (width, height), interpolation=how)
    return drawn if colours == OPENPOSE else drawn[..., ::-1]


def _draw_stick(canvas: Pixels, ends: Numbers, colour: tuple[int, int, int]) -> None:
    """Draw an ellipse from one point to another, where both are certain."""
    import cv2
    import numpy as np

    if ends[:, 2].min() <= MIN_CONFIDENCE:
        return
    (x1, y1), (x2, y2) = ends[:, :2].astype(float)
    length = np.hypot(x1 - x2, y1 - y2)
    angle = np.degrees(np.arctan2(y1 - y2, x1 - x2))
    middle, axes = (int((x1 + x2) / 2), int((y1 + y2) / 2)), (int(length / 2), _HALF_STICK)
    cv2.fillConvexPoly(canvas, cv2.ellipse2Poly(middle, axes, int(angle), 0, 360, 1), colour)
