"""The options of `python -m runner`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

EPILOG = "Exit codes: 0 done, 1 a node failed, 2 the workflow or the options are wrong, 130 cancelled."


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parse = argparse.ArgumentParser(
        prog="python -m runner", description="Run a ComfyUI workflow file without ComfyUI.", epilog=EPILOG
    )
    parse.add_argument(
        "workflow", type=Path, nargs="?", help="UI or API JSON, or a PNG, WEBP, MP4 or WEBM that carries one"
    )
    _add_values(parse.add_argument_group("values"))
    _add_places(parse.add_argument_group("places"))
    _add_modes(parse.add_argument_group("instead of running"))
    _add_shown(parse.add_argument_group("what is shown"))
    return parse


def _add_values(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="set an input; NODE is an id, a title or a class; may be repeated",
    )
    group.add_argument("--prompt", metavar="TEXT", help="set the one prompt that the workflow asks for")
    group.add_argument("--seed", metavar="N", help="set every seed")
    group.add_argument(
        "--partial",
        action="store_true",
        help="run the outputs that are valid even where others are not, as ComfyUI does",
    )


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="where files are read from")
    group.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="where files are written to")
    many = {"type": Path, "action": "append", "default": [], "metavar": "DIR"}
    group.add_argument("--models", help="a folder of models; may be repeated", **many)  # type: ignore[arg-type]
    group.add_argument("--custom-nodes", help="a pack, or a folder of packs; may be repeated", **many)  # type: ignore[arg-type]
    group.add_argument(
        "--comfyui", type=Path, metavar="DIR", help="a ComfyUI checkout that such packs may import from"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    size = {"type": _gigabytes, "metavar": "GB"}
    group.add_argument(
        "--vram-gb",
        help="use so much of the card, or plan for such a card; a GB is 2**30 bytes",
        **size,  # type: ignore[arg-type]
    )
    group.add_argument("--ram-gb", help="plan with so much main memory", **size)  # type: ignore[arg-type]


def _add_modes(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--check", action="store_true", help="validate the workflow and stop")
    group.add_argument(
        "--plan",
        action="store_true",
        help="show what it would need and stop; models of the manifest need not be installed",
    )
    group.add_argument("--inspect", type=Path, metavar="FILE", help="say what a file of weights is and stop")
    group.add_argument("--export-api", type=Path, metavar="FILE", help="write the API form and stop")
    group.add_argument(
        "--object-info",
        type=Path,
        metavar="FILE",
        help="node definitions saved from a server's /object_info, to export workflows whose nodes are not here",
    )


def _add_shown(group: argparse._ArgumentGroup) -> None:
    shown = group.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="events as JSON lines on stdout")
    shown.add_argument("--quiet", action="store_true", help="paths of the files on stdout, nothing else but errors")
    group.add_argument("--verbose", action="store_true", help="tracebacks, and what libraries have to say")


def _gigabytes(text: str) -> int:
    """Return the bytes of a number of GB above 0."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GB above 0, such as 16.")
    return int(size * 2**30)
