"""Distilled LoRAs: used where `speed` asks for few steps and one is installed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import PurePosixPath

from ..catalog.selection import ModelHandle
from ..download.manifest import listed_models
from ..errors import PiyingError
from ..host.base import Host
from ..lora.catalog import in_words, lora_choices, lora_files, made_for, with_lora
from .family import WAN_VACE
from .model import load
from .request import WanRequest
from .schedule import has_own_steps
from .speed import FEW_STEPS

log = logging.getLogger("piying")


DISTILLED_SPEEDS = ("fast", "draft")


def with_distilled(handle: ModelHandle, request: WanRequest, host: Host) -> tuple[ModelHandle, WanRequest]:
    """Return model and request for the few steps of a step-distilled LoRA; unchanged where there is none.

    One that is on the handle already comes first, then the first of the manifest that is installed and was
    made for a transformer of this width. Steps, cfg and shift become those it was made for. A request of few steps is
    taken for one that was set for such a LoRA by hand, and so is one whose schedule has steps of its own, or that
    leaves steps to another sampler.

    Raises:
        PiyingError: the model or a LoRA of the handle is not installed.
    """
    if request.speed not in DISTILLED_SPEEDS or request.steps <= FEW_STEPS:
        return handle, request
    if has_own_steps(request) or request.is_partial:
        return handle, request
    if not made_for(lora_files(handle, host)):
        handle = _with_installed(handle, host)
    files = lora_files(handle, host)
    settings = made_for(files)
    if not settings:
        return handle, request
    names = ("steps", "cfg", "shift")
    log.info(
        "Speed: %s in place of %s, with %s.",
        in_words({name: settings[name] for name in names}),
        in_words({name: getattr(request, name) for name in names}),
        next(file.name for file in reversed(files) if file.settings),
    )
    return handle, replace(
        # It was made for one cfg, of both experts where there are two.
        request,
        steps=int(settings["steps"]),
        cfg=float(settings["cfg"]),
        shift=float(settings["shift"]),
        cfg_2=0.0,
    )


def _with_installed(handle: ModelHandle, host: Host) -> ModelHandle:
    """Return a handle with the first of the manifest's that is here and fits the model."""
    # By file name: users sort their LoRAs into folders, which the manifest knows nothing of.
    here = {PurePosixPath(name).name: name for name in lora_choices(host, WAN_VACE)}
    known = [model for model in listed_models() if model.family == WAN_VACE.key and model.settings]
    found = [(here.get(PurePosixPath(model.files[0].path).name), model.settings) for model in known]
    if not any(name for name, _ in found):
        return handle
    # Only now: reading the transformer's header is wasted where no such LoRA is installed.
    width = load(handle, host).components()["transformer"].hidden
    for name, settings in found:
        if name is None:
            continue
        try:
            changed = with_lora(handle, name, settings["strength"], host)
        except PiyingError as error:  # nobody asked for it: the run goes on without it
            log.warning("Speed: %s", error)
            continue
        if width in lora_files(changed, host)[-1].shape.widths:
            return changed
    return handle
