"""Routes of the browser extension at ComfyUI's server: plans, models, downloads, and progress of a run."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.catalog.discovery import installed_models
from ..core.catalog.installed_model import AUTO, BUILT_IN
from ..core.catalog.selection import ModelHandle, check_model, choose_model, is_imagined, model_choices
from ..core.errors import PiyingError
from ..core.families.base import TrainedOn
from ..core.host import comfy_server
from ..core.host.current import get_host
from . import NODE_CLASS_MAPPINGS
from .model_nodes import PlannedNode
from .postprocessing import PostprocessingNode
from .widget_query import RefusedError, WidgetQuery, check, class_of, read

if TYPE_CHECKING:
    from ..core.download.downloadable import Downloadable
    from ..core.download.jobs import Downloader
    from ..core.families.base import ModelFamily

FITS, STREAMS, TOO_BIG, ON_CPU, MISSING, WRONG = "fits", "streams", "too big", "cpu", "missing", "wrong"
UNKNOWN = "unknown"
SIZES = ("width", "height", "num_frames")  # the widgets on which a plan depends most
SMALL = "The model is small: the times leave out overhead, which takes most of a run's seconds."
OVERHEAD = 10.0  # seconds; below, a toy's time is mostly what a plan does not count
PATIENCE = 3600.0  # seconds of a run that a person may wait for
MAX_CLIENT = 100  # characters of a tab's name


def offer_routes() -> None:
    """Register the routes, where ComfyUI's server runs."""

    # Made at the first question: importing the pack must load no threads, locks or manifest.
    @cache
    def downloader() -> Downloader:
        from ..core.download.jobs import Downloader

        return Downloader()

    comfy_server.add_routes(
        {
            "plan": plan,
            "models": lambda question: models(question, downloader()),
            "fetch": lambda question: fetch(question, downloader()),
            "cancel": lambda question: cancel(question, downloader()),
            "watch": watch,
            "aliases": aliases,
        }
    )
    comfy_server.offer_files(Path(__file__).parents[1])
    comfy_server.offer_clips()


def plan(question: dict[str, Any]) -> dict[str, Any]:
    """Return what a sampler, or post-processing, would need, in numbers and in words; nothing is loaded.

    Args:
        question: see `widget_query.read`; `last` has the sizes of the node's last run, which stand for those that
            only the next run will know.

    Returns:
        What `Estimate.to_json` gives, and `verdict` (one of the words above), `text` (the plan in sentences), `toy`
        (whether the built-in model would run), `offer` (the id of a model to download), `sizes` ([width, height] to
        choose from), `settings` (values of widgets with which the model is used as it was trained), `reads` (what it
        makes its results from, where models of its family differ in that), `from_task` (sizes
        that the task sets in place of the widgets) and `unknown` (planned inputs that only the run will know). Where
        the model is not installed: `verdict`, `model`, `error`, `offer`, `sizes` and `settings`. Where a run would
        refuse the values: `verdict`, `error`, `sizes` and `settings`. Where a size comes over a wire that only the run
        knows: `verdict`, `model`, `toy`, `unknown`, `offer`, `sizes`, `settings` and `from_task`. `fitting` has the
        values of each smaller run that would fit where this one does not; `seconds` is None where the time is mostly
        overhead, which no plan counts.

    Raises:
        PiyingError: the node is no sampler, or its model cannot be planned for.
    """
    from ..core.download.manifest import first_of, listed_models

    try:
        asked = read(question)
        if issubclass(asked.node_class, PostprocessingNode):
            return _postprocessing_planned(asked)
        from_task = asked.take_sizes() if issubclass(asked.node_class, PlannedNode) else {}
        _as_last_time(asked, question.get("last"))
    except RefusedError as error:
        return {"verdict": WRONG, "error": str(error), "sizes": []}
    handle = asked.known.get("model")
    if not issubclass(asked.node_class, PlannedNode) or not isinstance(handle, ModelHandle):
        raise PiyingError("Connect a loader of Piying to model to see what it would need.")
    family = handle.family.key
    trained = {"sizes": list(handle.family.trained_on(handle.model).sizes), "settings": _settings(asked, handle)}
    try:
        check_model(handle.family, handle.model, get_host())
    except PiyingError as error:
        # A name that the manifest lists can be downloaded; for any other the default model is offered.
        known = any((model.id, model.family) == (handle.model, family) for model in listed_models())
        offer = handle.model if known else first_of(family).id
        return {"verdict": MISSING, "model": handle.model, "error": str(error), "offer": offer, **trained}
    refused = asked.node_class.refusal(asked.known, asked.unknown)
    if refused:
        return {"verdict": WRONG, "error": refused, **trained}
    return {**trained, **_planned(asked, handle), "offer": first_of(family).id, "from_task": from_task}


def _postprocessing_planned(asked: WidgetQuery) -> dict[str, Any]:
    """Return what post-processing would need; see `plan`.

    Raises:
        RefusedError: a run would refuse its inputs.
    """
    # What a run would refuse is an answer here: the page asks while a person types.
    try:
        asked.take_sizes()
        refused = asked.node_class.refusal(asked.known)
        if refused:
            raise RefusedError(refused)
        answer: Any = asked.node_class().plan_memory(linked=frozenset(asked.unknown), **asked.known)
    except PiyingError as error:
        raise RefusedError(str(error)) from error
    found = {**answer.to_json(), "toy": False, "sizes": [], "settings": {}, "unknown": []}
    if found["fits"] is None:
        return {**found, "verdict": UNKNOWN, "unknown": list(answer.unknown)}
    return {**found, "verdict": verdict(found, answer.machine.is_cpu), "text": answer.to_text()}


def _as_last_time(asked: WidgetQuery, last: object) -> None:
    declared = asked.node_class.INPUT_TYPES().get("required", {})
    sizes = last if isinstance(last, dict) else {}
    for name in SIZES:
        if name in asked.unknown and sizes.get(name) is not None:
            check(name, declared[name], sizes[name])
            asked.known[name] = sizes[name]
            asked.unknown.remove(name)


def _settings(asked: WidgetQuery, handle: ModelHandle, model: str | None = None) -> dict[str, float]:
    """Return the values of the node's widgets with which a model is used as it was trained."""
    from ..core.lora.catalog import lora_files, made_for

    published = _trained_on(handle, model).settings
    loras = made_for(lora_files(handle, get_host()))
    distilled = {name: value for name, value in loras.items() if name in published}
    settings: dict[str, float] = asked.node_class.trained_settings({**published, **distilled})
    return settings


def _trained_on(handle: ModelHandle, model: str | None = None) -> TrainedOn:
    name = model or handle.model
    found = next((one for one in installed_models(handle.family, get_host()) if one.name == name), None)
    return handle.family.trained_on(name, found)


def _planned(asked: WidgetQuery, handle: ModelHandle) -> dict[str, Any]:
    answer = asked.node_class().plan_memory(linked=frozenset(asked.unknown), **asked.known)
    found = answer.to_json()
    toy = found["model"] == BUILT_IN
    host = get_host()
    reads = "" if is_imagined(handle, host) else handle.family.reads(choose_model(handle, host, quiet=True))
    # Which model auto is, only the plan tells.
    trained = {
        "sizes": list(_trained_on(handle, found["model"]).sizes),
        "settings": _settings(asked, handle, found["model"]),
        "reads": reads,
    }
    unknown = [name for name in asked.unknown if name in handle.family.planned_inputs]
    if any(name in SIZES for name in unknown):
        # A plan for the widgets' values would be one for another run.
        return {"verdict": UNKNOWN, "model": found["model"], "toy": toy, "unknown": unknown, **trained}
    text = answer.to_text()
    if toy and found["seconds"] < OVERHEAD:
        found["seconds"] = None
        text = f"{text}\n- {SMALL}"
    return {
        **found,
        **trained,
        "verdict": verdict(found, answer.machine.is_cpu),
        "text": text,
        "toy": toy,
        "unknown": unknown,
        "fitting": [{name: getattr(work, name) for name in SIZES if hasattr(work, name)} for work in answer.fitting],
    }


def verdict(found: dict[str, Any], on_cpu: bool) -> str:
    """Return the verdict on a plan, one of the words above."""
    if not found["fits"]:
        return TOO_BIG
    if on_cpu:
        return ON_CPU
    return STREAMS if any(part["placement"] == "streamed" for part in found["components"]) else FITS


def models(question: dict[str, Any], downloader: Downloader) -> dict[str, Any]:
    """Return what is installed and what can be downloaded for a loader, and the running download; no hub is asked.

    Args:
        question: `class_type`, a loader; `advice`, whether the models are to be planned for on this machine.

    Returns:
        `installed`; `offers`, see `Downloadable`; `folder`, where most of them go, and `free`, the bytes left on its
        disk; `hubs`, {name: address}; `commands`, what to run in a terminal, with MODEL for the model; `job`. With
        `advice` also `plans`, {id: {`fits`, `seconds`, `words`, the size}}, and `recommended`, the id of the model for
        this machine.
    """
    from ..core.download.downloadable import download_folder, downloadable_models
    from ..core.download.hubs import HuggingFace, ModelScope

    family = getattr(class_of(question.get("class_type")), "FAMILY", None)
    if family is None:
        raise PiyingError("That node loads no model.")
    root = comfy_server.models_root()
    folder = download_folder(family.key, root)
    offers = downloadable_models(family.key, root)
    installed = [name for name in model_choices(family, get_host()) if name not in (AUTO, BUILT_IN)]
    return {
        "installed": installed,
        "offers": [offer.to_json() for offer in offers],
        "folder": str(folder),
        "free": free_bytes(folder),
        "hubs": {"huggingface": HuggingFace().endpoint, "modelscope": ModelScope().endpoint},
        "commands": commands(str(root)),
        **(advice(family, offers) if question.get("advice") is True else {}),
        **_job(downloader),
    }


def advice(family: ModelFamily, offers: Sequence[Downloadable]) -> dict[str, Any]:
    """Return how long each model would take on this machine, used as it was trained, and which to choose.

    That is the largest of those that fit and take no longer than `PATIENCE`, the smallest download of those that are
    as large.
    """
    from ..core.families.diffusion_model import estimate_listed

    if not family.published.sizes:
        return {"plans": {}, "recommended": None}
    found = {offer: estimate_listed(family, offer.id, get_host()) for offer in offers}
    planned = {offer: made for offer, made in found.items() if made is not None}
    quick = [offer for offer, made in planned.items() if made.fits and made.seconds <= PATIENCE]
    best = max(quick, key=lambda offer: (offer.min_vram_gb or 0, -(offer.bytes or 0)), default=None)
    return {
        "plans": {
            offer.id: {"fits": made.fits, "seconds": made.seconds, "words": family.published.words}
            for offer, made in planned.items()
        },
        "recommended": None if best is None else best.id,
    }


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free


def commands(root: str) -> dict[str, str]:
    """Return what to run in a terminal to get a model, here and for a machine without a network."""
    install = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).parents[1] / 'install.py'))}"
    return {
        "here": f"{install} --no-dependencies --models MODEL --to {shlex.quote(root)}",
        "elsewhere": "python install.py --models MODEL --print-files > files.txt",
        "verify": f"{install} --models MODEL --verify files.txt --to {shlex.quote(root)}",
    }


def fetch(question: dict[str, Any], downloader: Downloader) -> dict[str, Any]:
    """Start the download of a manifest model into ComfyUI's models folder.

    Args:
        question: `model`, its id.
    """
    model = question.get("model")
    if not isinstance(model, str):
        raise PiyingError("model is no id of a model.")
    downloader.start(model, comfy_server.models_root())
    return _job(downloader)


def cancel(question: dict[str, Any], downloader: Downloader) -> dict[str, Any]:
    """Stop the download."""
    del question
    downloader.cancel()
    return _job(downloader)


def _job(downloader: Downloader) -> dict[str, Any]:
    return {"job": downloader.job.to_json() if downloader.job is not None else None}


def aliases(question: dict[str, Any]) -> dict[str, Any]:
    """Return the words that each node is found by, for ComfyUIs whose node definitions leave them out."""
    del question
    return {name: node.SEARCH_ALIASES for name, node in NODE_CLASS_MAPPINGS.items()}


def watch(question: dict[str, Any]) -> dict[str, Any]:
    """Send a browser tab the progress of its runs.

    Args:
        question: `client`, the tab's name at ComfyUI; `moving`, whether it wants moving previews; `page`, false for a
            program that shows progress alone.
    """
    client, moving, is_page = question.get("client"), question.get("moving"), question.get("page", True)
    is_named = isinstance(client, str) and 0 < len(client) <= MAX_CLIENT
    if not is_named or not isinstance(moving, bool) or not isinstance(is_page, bool):
        raise PiyingError("client is a text of up to 100 characters, moving and page are true or false.")
    comfy_server.tabs.join(str(client), moving, is_page)
    return {}
