"""Annotator models, which analyse frames: the choices of widgets, the selection of one, loading it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..catalog.discovery import installed_models, why_not
from ..catalog.installed_model import AUTO, BUILT_IN, InstalledModel, built_in
from ..catalog.selection import model_choices
from ..errors import PiyingError
from ..executor.model_cache import cached_model
from ..host.base import Host
from .choices import WHOLE_FRAME
from .family import DETECTOR, FOLDER, AnnotatorFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("piying")


def check_model(family: AnnotatorFamily, model: str, host: Host) -> None:
    """Accept a name from `model_choices`, spelled with either slash; `auto` only where there is a model to take.

    Raises:
        PiyingError: no such model is installed.
    """
    # Workflows are shared between systems, and Windows writes backslashes.
    offered, name = model_choices(family, host), model.replace("\\", "/")
    if name not in offered:
        reason = why_not(name, family, host)
        raise PiyingError(
            f"model {model!r} {f'cannot be used: {reason}' if reason else 'is not installed'}. Here are: "
            f"{', '.join(offered)}. Choose one of them, or put the model's folder under models/{FOLDER}."
        )
    if offered == [AUTO]:
        raise PiyingError(
            f"No {family.title} model is installed, and none comes with the pack. {install_hint(family)}"
        )


def install_hint(family: AnnotatorFamily) -> str:
    """Return a sentence that says which files to download, and where to put them."""
    folder = family.repo.split("/")[1]
    return f"Put the files of https://huggingface.co/{family.repo} into models/{FOLDER}/{folder}."


def detector_choices(host: Host) -> list[str]:
    """Return what the `detector` widget offers."""
    return [*model_choices(DETECTOR, host), WHOLE_FRAME]


def check_detector(detector: str, host: Host) -> None:
    """Accept a name from `detector_choices`.

    Raises:
        PiyingError: no such detector is installed.
    """
    if detector not in (AUTO, WHOLE_FRAME):
        check_model(DETECTOR, detector, host)


def choose(family: AnnotatorFamily, model: str, host: Host) -> InstalledModel:
    """Return the model of a widget's value; `auto` takes the largest installed, else the built-in one, and says so.

    Raises:
        PiyingError: no such model is installed.
    """
    check_model(family, model, host)
    name, installed = model.replace("\\", "/"), installed_models(family, host)
    if name not in (AUTO, BUILT_IN):
        return next(found for found in installed if found.name == name)
    # Within a family the largest is nearly always the best, and all are small compared to a video model.
    if name == AUTO and installed:
        return max(installed, key=lambda found: (found.can_run, found.size))
    if name == AUTO:
        log.warning(
            "No %s model is installed: using the built-in one, which knows drawn shapes alone. %s",
            family.title,
            install_hint(family),
        )
    return built_in(family.key)


def load(family: AnnotatorFamily, found: InstalledModel, host: Host) -> PreTrainedModel:
    """Return a model in fp32, in host memory.

    They are small: 16-bit types would save little, and change the results.

    Raises:
        PiyingError: the folder is incomplete or damaged, or weights are not finite.
    """
    host.check_cancelled()

    def read() -> PreTrainedModel:
        import torch

        from ..checkpoints.assemble import require_finite_weights
        from ..checkpoints.load import load_pretrained

        log.info("Loading %s model: %s", family.title, found.name)
        model = load_pretrained(found.path, family.title, family.index_classes, torch.float32)
        require_finite_weights(model, found.path)
        return model

    return cached_model(f"controls/{family.key}", found.path, read, host, size=found.size)


def image_processor(family: AnnotatorFamily, found: InstalledModel) -> Any:
    """Return the model's image processor, which resizes and normalises frames and postprocesses outputs.

    Pictures are resized by Pillow, whose results are the same with and without torchvision.

    Raises:
        PiyingError: the folder has no `preprocessor_config.json`, or a damaged one.
    """
    import transformers

    from ..checkpoints.pretrained import reading

    with reading(found.path, family.title):
        return transformers.AutoImageProcessor.from_pretrained(
            found.path, local_files_only=True, trust_remote_code=False, backend="pil"
        )
