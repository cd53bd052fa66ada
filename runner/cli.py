"""The command line: `python -m runner WORKFLOW`."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from .. import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ..core.errors import PiyingError
from ..core.host import HeadlessHost, get_host, set_host
from .core_nodes import CORE_NODE_CLASSES, CORE_NODE_TITLES
from .definitions import ObjectInfo, object_info
from .display import Display, LogToDisplay, choose_display
from .errors import NodeFailed, WorkflowError
from .execute import Executor, Hidden, Result
from .graph import Graph
from .overrides import Assignment, parse_set, prompt_assignment, seed_assignments
from .validate import validate
from .workflow_file import Workflow, read_workflow_file

DONE, FAILED, WRONG, CANCELLED = 0, 1, 2, 130
ROOT = Path(__file__).resolve().parents[1]
CLASSES: dict[str, type] = {**CORE_NODE_CLASSES, **NODE_CLASS_MAPPINGS}
TITLES: dict[str, str] = {**CORE_NODE_TITLES, **NODE_DISPLAY_NAME_MAPPINGS}
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parse = argparse.ArgumentParser(
        prog="python -m runner",
        description="Run a ComfyUI workflow file without ComfyUI.",
        epilog="Exit codes: 0 done, 1 a node failed, 2 the workflow or the options are wrong, 130 cancelled.",
    )
    parse.add_argument("workflow", type=Path, help="UI or API JSON, or a PNG, WEBP, MP4 or WEBM that carries one")
    parse.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="set an input; NODE is an id, a title or a class; may be repeated",
    )
    parse.add_argument("--prompt", metavar="TEXT", help="set the one prompt that the workflow asks for")
    parse.add_argument("--seed", metavar="N", help="set every seed")
    parse.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="where files are read from")
    parse.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="where files are written to")
    parse.add_argument(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of models; may be repeated",
    )
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parse.add_argument("--check", action="store_true", help="validate the workflow and stop")
    shown = parse.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="events as JSON lines on stdout")
    shown.add_argument("--quiet", action="store_true", help="paths of the files on stdout, nothing else but errors")
    parse.add_argument("--verbose", action="store_true", help="tracebacks, and what libraries have to say")
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parser().parse_args(arguments)
    display = choose_display(options.json, options.quiet)
    _prepare_process(options.verbose, display)
    try:
        return _run(options, display)
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
    if isinstance(error, NodeFailed) and not isinstance(error.cause, PiyingError):
        kind = type(error.cause).__name__
        return f"{error.node}: {kind}: {error.cause}. Run with --verbose for the traceback."
    return str(error)


def _run(options: argparse.Namespace, display: Display) -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="piying-") as temp:
        set_host(_host(options, display, Path(temp)))
        info = object_info(CLASSES, TITLES)
        workflow = _workflow(options, info)
        graph = workflow.graph(TITLES)
        roots = validate(graph, info, CLASSES)
        if options.check:
            display.message(f"{options.workflow}: {len(graph)} nodes, nothing wrong.", "INFO")
            return DONE
        _check_installed()
        _check_writable(options.output)
        _execute(workflow, graph, roots, display, options.output)
    display.done(time.monotonic() - begun)
    return DONE


def _host(options: argparse.Namespace, display: Display, temp: Path) -> HeadlessHost:
    return HeadlessHost(
        input=options.input,
        output=options.output,
        temp=temp,
        models=[*_existing(options.models), *_default_models()],
        chosen_device=options.device,
        on_progress=display.progress,
    )


def _existing(folders: list[Path]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise WorkflowError(f"--models {folder}: there is no such folder.")
    return folders


def _default_models() -> list[Path]:
    """Return the pack's models folder, and ComfyUI's where the pack lies in its custom_nodes."""
    beside = [ROOT.parents[1] / "models"] if ROOT.parent.name == "custom_nodes" else []
    return [ROOT / "models", *beside]


def _workflow(options: argparse.Namespace, info: ObjectInfo) -> Workflow:
    workflow = read_workflow_file(options.workflow, info)
    return workflow.with_values(_assignments(options, workflow.graph(TITLES), info), info)


def _assignments(options: argparse.Namespace, graph: Graph, info: ObjectInfo) -> list[Assignment]:
    """Return all values of the command line; --set comes last, since it is the most exact."""
    assignments: list[Assignment] = []
    if options.prompt is not None:
        assignments.append(prompt_assignment(options.prompt, graph))
    if options.seed is not None:
        assignments += seed_assignments(options.seed, graph)
    return assignments + [parse_set(text, graph, info) for text in options.set]


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


def _execute(workflow: Workflow, graph: Graph, roots: list[str], display: Display, output: Path) -> None:
    get_host().device()  # a device that cannot be used is said before the first node runs
    hidden = Hidden(prompt=workflow.api, extra_pnginfo=workflow.extra_pnginfo)
    results = Executor(CLASSES, display).run(graph, roots, hidden)
    for path in _saved_files(results, output):
        display.saved(path)


def _saved_files(results: dict[str, Result], output: Path) -> list[Path]:
    entries: list[dict[str, Any]] = [entry for result in results.values() for entry in result.ui.get("images", ())]
    return [output / entry["subfolder"] / entry["filename"] for entry in entries if entry["type"] == "output"]
