"""Annotator models, which look at frames: which are installed, which is taken, and one of them in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..catalog.installed_model import AUTO, BUILT_IN, InstalledModel, built_in, installed_models, why_not
from ..errors import PiyingError
from ..executor.model_cache import kept
from ..host.base import Host
from .choices import WHOLE_FRAME

if TYPE_CHECKING:
    import torch

log = logging.getLogger("piying")
FOLDER = "annotators"  # below the models folder


@dataclass(frozen=True)
class Annotator:
    """A kind of model that looks at frames.

    Attributes:
        key: its family in `core.catalog.installed_model`, and its folder in builtin_models.
        title: for people.
        auto_class: the transformers class that loads it.
        repo: the model to fetch first, on huggingface.co.
        ships: whether a toy one comes with the pack.
    """

    key: str
    title: str
    auto_class: str
    repo: str
    ships: bool = True


DEPTH = Annotator("depth", "depth", "AutoModelForDepthEstimation", "depth-anything/Depth-Anything-V2-Small-hf")
SEGMENTATION = Annotator(
    "segmentation", "segmentation", "AutoModelForSemanticSegmentation", "openmmlab/upernet-convnext-tiny"
)
POSE = Annotator("pose", "pose", "VitPoseForPoseEstimation", "usyd-community/vitpose-base-simple", ships=False)
DETECTOR = Annotator("detector", "detector", "AutoModelForObjectDetection", "PekingU/rtdetr_r50vd", ships=False)


def choices(annotator: Annotator, host: Host) -> list[str]:
    """Return what a `model` widget offers: `auto`, what is installed, and `built-in` where there is one."""
    return [
        AUTO,
        *(found.name for found in installed_models(annotator.key, host)),
        *([BUILT_IN] if annotator.ships else []),
    ]


def check_model(annotator: Annotator, model: str, host: Host) -> None:
    """Accept a name from `choices`, spelled with either slash; `auto` only where there is a model to take.

    Raises:
        PiyingError: no such model is installed.
    """
    # Workflows are passed between systems, and Windows writes the other slash.
    offered, name = choices(annotator, host), model.replace("\\", "/")
    if name not in offered:
        reason = why_not(name, annotator.key, host)
        raise PiyingError(
            f"model {model!r} {f'cannot be used: {reason}' if reason else 'is not installed'}. Here are: "
            f"{', '.join(offered)}. Choose one of them, or put the model's folder under models/{FOLDER}."
        )
    if offered == [AUTO]:
        raise PiyingError(
            f"No {annotator.title} model is installed, and none comes with the pack. {install_hint(annotator)}"
        )


def install_hint(annotator: Annotator) -> str:
    """Return what to fetch, and where to put it."""
    folder = annotator.repo.split("/")[1]
    return f"Put the files of https://huggingface.co/{annotator.repo} into models/{FOLDER}/{folder}."


def detector_choices(host: Host) -> list[str]:
    """Return what the `detector` widget offers."""
    return [*choices(DETECTOR, host), WHOLE_FRAME]


def check_detector(detector: str, host: Host) -> None:
    """Accept a name from `detector_choices`.

    Raises:
        PiyingError: no such detector is installed.
    """
    if detector not in (AUTO, WHOLE_FRAME):
        check_model(DETECTOR, detector, host)


def choose(annotator: Annotator, model: str, host: Host) -> InstalledModel:
    """Return the model of a widget's value; `auto` takes the largest installed, else the built-in one, and says so.

    Raises:
        PiyingError: no such model is installed.
    """
    check_model(annotator, model, host)
    name, installed = model.replace("\\", "/"), installed_models(annotator.key, host)
    if name not in (AUTO, BUILT_IN):
        return next(found for found in installed if found.name == name)
    # The largest is the best of its family nearly always, and all of them are small beside a video model.
    if name == AUTO and installed:
        return max(installed, key=lambda found: found.size)
    if name == AUTO:
        log.warning(
            "No %s model is installed: using the built-in one, which knows drawn shapes alone. %s",
            annotator.title,
            install_hint(annotator),
        )
    return built_in(annotator.key)


def load(annotator: Annotator, found: InstalledModel, host: Host) -> torch.nn.Module:
    """Return a model in fp32, in host memory.

    They are small: 16-bit types would save little, and change what they see.

    Raises:
        PiyingError: the folder is incomplete or damaged.
    """
    host.check_cancelled()

    def read() -> torch.nn.Module:
        import torch
        import transformers

        from ..checkpoints.modules import reading

        log.info("Loading %s model: %s", annotator.title, found.name)
        with reading(found.path, annotator.title):
            model, info = getattr(transformers, annotator.auto_class).from_pretrained(
                found.path, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        missing = info["missing_keys"]
        # transformers fills them with random numbers and goes on.
        if missing:
            raise PiyingError(
                f"{found.path}: cannot be read as a {annotator.title} model ({len(missing)} tensors are not in its "
                f"files, {min(missing)} first). Fetch the folder again, or choose another model."
            )
        whole: torch.nn.Module = model.eval()
        return whole

    return kept(f"controls/{annotator.key}", found.path, read, host, found.size)


def image_processor(annotator: Annotator, found: InstalledModel) -> Any:
    """Return what brings pictures to the model's size and values, and its answers back.

    Pictures are resized by Pillow, whose results are the same with and without torchvision.

    Raises:
        PiyingError: the folder has no `preprocessor_config.json`, or a damaged one.
    """
    import transformers

    from ..checkpoints.modules import reading

    with reading(found.path, annotator.title):
        return transformers.AutoImageProcessor.from_pretrained(found.path, local_files_only=True, backend="pil")
