"""What our browser extension may ask ComfyUI's server: plans, models, fetching, and news of a run."""

from __future__ import annotations

from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.catalog.installed_model import AUTO, BUILT_IN
from ..core.catalog.selection import ModelHandle, check_model, model_choices
from ..core.download.manifest import first_of, listed_models
from ..core.errors import PiyingError
from ..core.host import comfy_server
from ..core.host.current import get_host
from ..core.hunyuan_dit.request import SIZES as IMAGE_SIZES
from .hunyuan_dit import SIZING as IMAGE_SIZING
from .wan_vace import SIZING as VIDEO_SIZING
from .widget_query import WidgetQuery, class_of, read

if TYPE_CHECKING:
    from ..core.download.jobs import Fetcher

# Sizes to offer: those Wan2.1-VACE was trained on, 1.3B at the first two.
VIDEO_SIZES = [(832, 480), (480, 832), (1280, 720), (720, 1280), (624, 624), (960, 960)]
FITS, STREAMS, TOO_BIG, ON_CPU, MISSING, WRONG = "fits", "streams", "too big", "cpu", "missing", "wrong"
MAX_CLIENT = 100  # characters of a tab's name


def offer_routes() -> None:
    """Answer the extension's questions, where ComfyUI's server runs."""

    @cache
    def fetcher() -> Fetcher:
        from ..core.download.jobs import Fetcher

        return Fetcher()

    comfy_server.add_routes(
        {
            "plan": plan,
            "models": lambda question: models(question, fetcher()),
            "fetch": lambda question: fetch(question, fetcher()),
            "cancel": lambda question: cancel(question, fetcher()),
            "watch": watch,
        }
    )
    comfy_server.offer_help(Path(__file__).parents[1])


def plan(question: dict[str, Any]) -> dict[str, Any]:
    """Return what a sampler would need, in numbers and in words; nothing is loaded.

    Args:
        question: see `asked.read`.

    Returns:
        What `Answer.to_json` gives, and `verdict`, `text`, `toy`, `offer` (the id of a model to fetch, or None),
        `sizes` (width and height to choose from), `unknown`. Of a model that is not installed `verdict`, `model`,
        `error`, `offer` and `sizes` alone; of values that a run would refuse `verdict`, `error` and `sizes`.

    Raises:
        PiyingError: the node is no sampler, or its model cannot be planned for.
    """
    asked = read(question)
    handle = asked.known.get("model")
    if not hasattr(asked.node_class, "plan_memory") or not isinstance(handle, ModelHandle):
        raise PiyingError("Connect a loader of Piying to model to see what it would need.")
    sizes = VIDEO_SIZES if "num_frames" in asked.node_class.INPUT_TYPES()["required"] else IMAGE_SIZES
    refused = _refused(asked)
    if refused is not None:
        return {"verdict": WRONG, "error": refused, "sizes": sizes}
    family = handle.family.key
    try:
        check_model(handle.family, handle.model, get_host())
    except PiyingError as error:
        known = any((model.id, model.family) == (handle.model, family) for model in listed_models())
        offer = handle.model if known else first_of(family).id
        return {"verdict": MISSING, "model": handle.model, "error": str(error), "offer": offer, "sizes": sizes}
    return {**_planned(asked), "sizes": sizes, "offer": first_of(family).id}


def _refused(asked: WidgetQuery) -> str | None:
    """Return the sentence with which ComfyUI would refuse the values, None where it would take them."""
    validate = asked.node_class.VALIDATE_INPUTS
    answer = validate(**{name: asked.known.get(name) for name in signature(validate).parameters})
    return None if answer is True else str(answer)


def _planned(asked: WidgetQuery) -> dict[str, Any]:
    answer = asked.node_class().plan_memory(linked=frozenset(asked.unknown), **asked.known)
    found = answer.to_json()
    sizing = {*VIDEO_SIZING, *IMAGE_SIZING}
    return {
        **found,
        "verdict": verdict(found, answer.machine.is_cpu),
        "text": answer.to_text(),
        "toy": found["model"] == BUILT_IN,
        "unknown": [name for name in asked.unknown if name in sizing],
    }


def verdict(found: dict[str, Any], on_cpu: bool) -> str:
    """Return a plan in a word."""
    if not found["fits"]:
        return TOO_BIG
    if on_cpu:
        return ON_CPU
    return STREAMS if any(part["placement"] == "streamed" for part in found["components"]) else FITS


def models(question: dict[str, Any], fetcher: Fetcher) -> dict[str, Any]:
    """Return what is installed and what can be fetched for a loader, and what is on its way; no hub is asked.

    Args:
        question: `class_type`, a loader.
    """
    from ..core.download.downloadable import downloadable_models

    family = getattr(class_of(question.get("class_type")), "FAMILY", None)
    if family is None:
        raise PiyingError("That node loads no model.")
    root = comfy_server.models_root()
    installed = [name for name in model_choices(family, get_host()) if name not in (AUTO, BUILT_IN)]
    return {
        "installed": installed,
        "offers": [offer.to_json() for offer in downloadable_models(family.key, root)],
        "folder": str(root),
        **_job(fetcher),
    }


def fetch(question: dict[str, Any], fetcher: Fetcher) -> dict[str, Any]:
    """Begin to fetch a model of the manifest into ComfyUI's models folder.

    Args:
        question: `model`, its id.
    """
    model = question.get("model")
    if not isinstance(model, str):
        raise PiyingError("model is no id of a model.")
    fetcher.start(model, comfy_server.models_root())
    return _job(fetcher)


def cancel(question: dict[str, Any], fetcher: Fetcher) -> dict[str, Any]:
    """Stop fetching."""
    del question
    fetcher.cancel()
    return _job(fetcher)


def _job(fetcher: Fetcher) -> dict[str, Any]:
    return {"job": fetcher.job.to_json() if fetcher.job is not None else None}


def watch(question: dict[str, Any]) -> dict[str, Any]:
    """Tell a tab how its runs go.

    Args:
        question: `client`, the tab's name at ComfyUI; `moving`, whether it wants moving previews.
    """
    client, moving = question.get("client"), question.get("moving")
    if not isinstance(client, str) or not 0 < len(client) <= MAX_CLIENT or not isinstance(moving, bool):
        raise PiyingError("client is a text of up to 100 characters, moving is true or false.")
    comfy_server.tabs.join(client, moving)
    return {}
