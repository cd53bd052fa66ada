"""Annotator families, models that analyse frames: depth, segmentation, pose, and detection of people."""

from __future__ import annotations

from dataclasses import dataclass

from ..families.base import ModelFamily

FOLDER = "annotators"


@dataclass(frozen=True, eq=False, repr=False)
class AnnotatorFamily(ModelFamily):
    """Models of one task.

    Attributes:
        repo: the model to fetch first, on huggingface.co.
    """

    folder: str = FOLDER
    repo: str = ""


DEPTH = AnnotatorFamily(
    key="depth",
    title="depth",
    index_classes=("DepthAnythingForDepthEstimation", "DPTForDepthEstimation"),
    model_types={"depth_anything": "DepthAnythingForDepthEstimation", "dpt": "DPTForDepthEstimation"},
    repo="depth-anything/Depth-Anything-V2-Small-hf",
)
SEGMENTATION = AnnotatorFamily(
    key="segmentation",
    title="segmentation",
    index_classes=("SegformerForSemanticSegmentation", "UperNetForSemanticSegmentation"),
    model_types={"segformer": "SegformerForSemanticSegmentation", "upernet": "UperNetForSemanticSegmentation"},
    repo="openmmlab/upernet-convnext-tiny",
)
POSE = AnnotatorFamily(
    key="pose",
    title="pose",
    index_classes=("VitPoseForPoseEstimation",),
    model_types={"vitpose": "VitPoseForPoseEstimation"},
    repo="usyd-community/vitpose-base-simple",
)
DETECTOR = AnnotatorFamily(
    key="detector",
    title="detector",
    index_classes=("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection"),
    model_types={"rt_detr": "RTDetrForObjectDetection", "rt_detr_v2": "RTDetrV2ForObjectDetection"},
    repo="PekingU/rtdetr_r50vd",
)
