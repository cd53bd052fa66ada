"""The command line: `python -m runner WORKFLOW`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..core.errors import PiyingError
from .display import Display, LogToDisplay, PlanDisplay, choose_display, print_event
from .errors import NodeFailed, NodeMisused, WorkflowError
from .export import read_object_info, write_api
from .options import parser
from .overrides import split_set

if TYPE_CHECKING:
    from .graph import Graph
    from .session import Session

ROOT = Path(__file__).resolve().parents[1]
DONE, FAILED, WRONG, CANCELLED = 0, 1, 2, 130
NEEDED = ("torch", "diffusers", "transformers", "safetensors", "imageio_ffmpeg", "PIL")

# Libraries draw bars and print advice of their own, which would tear ours.
QUIET_LIBRARIES = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parse = parser()
    options = parse.parse_args(arguments)
    if options.workflow is None and options.inspect is None:
        parse.error("the following arguments are required: workflow")
    display = (
        PlanDisplay(print_event) if options.plan and options.json else choose_display(options.json, options.quiet)
    )
    _prepare_process(options.verbose, display)
    try:
        return _inspect(options) if options.inspect else _run(options, display)
    except (WorkflowError, PiyingError) as error:
        return _fail(display, error, WRONG, options.verbose)
    except NodeFailed as error:
        return _fail(display, error, FAILED, options.verbose, error.node)
    except KeyboardInterrupt as error:
        return _fail(display, error, CANCELLED, options.verbose)


def _prepare_process(verbose: bool, display: Display) -> None:
    if not verbose:
        for name, value in QUIET_LIBRARIES.items():
            os.environ.setdefault(name, value)
    logger = logging.getLogger("piying")
    logger.addHandler(LogToDisplay(display))
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    # A queue that ends a job by SIGTERM gets the clean-up that Ctrl-C gets.
    signal.signal(signal.SIGTERM, _cancel)


def _cancel(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _fail(display: Display, error: BaseException, code: int, verbose: bool, node: str | None = None) -> int:
    display.failed(_sentence(error), code, node)
    if verbose:
        traceback.print_exception(error)
    return code


def _sentence(error: BaseException) -> str:
    """Return the text of an error; unforeseen ones also get their kind and a way to learn more."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped; no unfinished file is left."
    if isinstance(error, NodeFailed) and not isinstance(error.cause, PiyingError | NodeMisused):
        kind = type(error.cause).__name__
        return f"{error.node}: {kind}: {error.cause}. Run with --verbose for the traceback."
    return str(error)


def _inspect(options: argparse.Namespace) -> int:
    from .inspecting import inspected

    print(inspected(options.inspect, options.json))
    return DONE


def _run(options: argparse.Namespace, display: Display) -> int:
    from .session import Session  # what --help does not need

    begun = time.monotonic()
    session = Session(
        input=options.input,
        output=options.output,
        models=options.models,
        device=options.device,
        custom_nodes=options.custom_nodes,
        comfyui=options.comfyui,
        display=display,
        vram=options.vram_gb,
        ram=options.ram_gb,
        imagined=options.plan,
    )
    try:
        code = _run_in(session, options, display)
    finally:
        session.close()
    if code == DONE and not (options.check or options.plan or options.export_api):
        display.done(time.monotonic() - begun)
    return code


def _run_in(session: Session, options: argparse.Namespace, display: Display) -> int:
    values = dict(map(split_set, options.set))
    own = session.definitions()
    info = own | (read_object_info(options.object_info) if options.object_info else {})
    workflow = session.prepare(options.workflow, values, options.prompt, options.seed, info)
    if options.export_api:
        write_api(options.export_api, workflow.api)
        display.saved(options.export_api)
        return DONE
    graph, roots, errors = session.check(workflow, options.partial, own)
    if options.check:
        display.message(f"{options.workflow}: {len(graph)} nodes, nothing wrong.", "INFO")
        return DONE
    for error in errors:
        display.message(f"left out: {error}", "WARNING")
    if options.plan:
        return _show_plan(session, graph, roots, options.json)
    _check_installed()
    _check_writable(options.output)
    if options.vram_gb is not None and session.device() == "cpu":
        display.message("--vram-gb: there is no card here to limit; it tells --plan what to plan for.", "WARNING")
    for path in session.execute(workflow, graph, roots).files:
        display.saved(path)
    return WRONG if errors else DONE


def _show_plan(session: Session, graph: Graph, roots: list[str], as_object: bool) -> int:
    """Print what the samplers would need, as text or as one JSON object."""
    from .plan import as_json, as_text

    _check_installed()
    plans = session.plan(graph, roots)
    print(json.dumps(as_json(plans), ensure_ascii=False) if as_object else as_text(plans))
    return DONE


def _check_installed() -> None:
    """Name what is missing from this Python, and the Python that has it where install.py made one."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        own = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        remedy = f"Use {own} -m runner" if own.exists() else f"Run {sys.executable} {ROOT / 'install.py'}"
        raise WorkflowError(f"{sys.executable} lacks {', '.join(missing)}. {remedy}.")


def _check_writable(folder: Path) -> None:
    """Make the output folder and try it, before minutes go into sampling."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".piying-"):
            pass
    except OSError as error:
        raise WorkflowError(
            f"--output {folder}: cannot be written to ({error.strerror}). Choose another folder."
        ) from error
