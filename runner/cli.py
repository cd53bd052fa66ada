"""Command line: `python -m runner WORKFLOW`, its options and exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import PiyingError, escaped
from ..core.main_memory import is_out_of_memory, shortage
from ..core.parallel.cards import ASKED, Cards, local_cards
from ..core.parallel.joining import Joined, check_of, help_rank_0, is_helper, joined_group, joined_run
from ..core.parallel.ranks import Ranks, device_of, ranks_of
from ..core.parallel.watchdog import RankLostError
from ..core.process import (
    CANCELLED,
    DONE,
    FAILED,
    WRONG,
    Interruption,
    Output,
    checked_output,
    exit_code,
    standard_outputs,
)
from .definitions import ObjectInfo, read_object_info
from .display import Display, LogToDisplay, PlanDisplay, Silent, choose_display, error_text, print_json
from .errors import InvalidGraph, JobFailed, NodeFailed, ServerNodeError, WorkflowError

if TYPE_CHECKING:
    from .session import Session
    from .workflow_file import Workflow

ROOT = Path(__file__).resolve().parents[1]
EPILOG = (
    "Exit codes: 0 done, 1 a node failed, no server finished the job or the output cannot be written, 2 the workflow "
    "or the options are wrong, 129 the terminal was closed, 130 cancelled."
)
STDOUT = Path("-")  # in place of a file to write
MOST_CARDS = 1024
MOST_GB = 1 << 20  # a PiB; what is larger is a slip
FORMATS = (
    "fp8",
    "int8",
    "int8_convrot",
    "q8_0",
    "q6_k",
    "q5_k",
    "q4_k",
    "q4_0",
    "mxfp8",
    "nvfp4",
)  # that --quantize writes
# Looked for before a run: what is missing would stop it minutes later, in the node that imports it.
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
        prog="python -m runner", description="Run a ComfyUI workflow file without ComfyUI.", epilog=EPILOG
    )
    parse.add_argument(
        "workflow", type=Path, nargs="?", help="UI or API JSON, or a PNG, WEBP, MP4 or WEBM that carries one"
    )
    many: dict[str, Any] = {"action": "append", "default": []}
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}

    values = parse.add_argument_group("values")
    values.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        help="set an input; NODE is an id, a title or a class; may be repeated",
        type=_text,
        **many,
    )
    values.add_argument("--prompt", metavar="TEXT", type=_text, help="set the one prompt that the workflow asks for")
    values.add_argument("--seed", metavar="N", help="set every seed")
    values.add_argument(
        "--partial",
        action="store_true",
        help="run the outputs that are valid even where others are not, as ComfyUI does",
    )

    _add_places(parse)

    group = parse.add_argument_group("instead of running")
    modes = group.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="validate the workflow and stop")
    modes.add_argument(
        "--plan",
        action="store_true",
        help="show what it would need and stop; models of the manifest need not be installed",
    )
    group.add_argument("--table", action="store_true", help="with --plan: so for files in each weight format")
    modes.add_argument("--inspect", help="say what a file of weights, or a folder, is and stop", **file)
    group.add_argument(
        "--layers",
        action="store_true",
        help="with --inspect: say which layer is held in which type where weights are cast, and why",
    )
    modes.add_argument(
        "--quantize", help="write a file of weights with the layers inside its blocks in fewer bits and stop", **file
    )
    group.add_argument("--to", choices=FORMATS, help="with --quantize: the format")
    group.add_argument("--out", help="with --quantize: the file to write (default: beside the original)", **file)
    modes.add_argument("--export-api", help="write the API form, to stdout where FILE is -, and stop", **file)
    modes.add_argument(
        "--convert-to-piying",
        help="write a workflow of ComfyUI's or another pack's nodes in Piying's, say what it could not carry over, "
        "and stop; FILE may be - too",
        **file,
    )
    group.add_argument(
        "--object-info",
        help="node definitions saved from a server's /object_info, to export workflows whose nodes are not here",
        **file,
    )

    group = parse.add_argument_group("what is shown")
    shown = group.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="events as JSON lines on stdout")
    shown.add_argument("--quiet", action="store_true", help="paths of the files on stdout, nothing else but errors")
    group.add_argument("--verbose", action="store_true", help="tracebacks, and what libraries have to say")
    return parse


def _add_places(parse: argparse.ArgumentParser) -> None:
    """Add the options that say where files are, and where work is done."""
    many: dict[str, Any] = {"action": "append", "default": []}
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    size: dict[str, Any] = {"type": gigabytes, "metavar": "GB"}
    places = parse.add_argument_group("places")
    places.add_argument("--input", default=Path("input"), help="where files are read from", **folder)
    places.add_argument("--output", default=Path("output"), help="where files are written to", **folder)
    places.add_argument("--models", help="a folder of models; may be repeated", **folder, **many)
    places.add_argument("--custom-nodes", help="a pack, or a folder of packs; may be repeated", **folder, **many)
    places.add_argument("--comfyui", help="a ComfyUI checkout that such packs may import from", **folder)
    places.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps (default: auto)")
    places.add_argument(
        "--vram-gb", help="use so much of the card (GB of 2**30 bytes), or plan for such a card", **size
    )
    places.add_argument(
        "--second-device",
        metavar="DEVICE",
        default="",
        help="another card, such as cuda:1, for text encoders and VAE where that is about as fast (default: none)",
    )
    places.add_argument(
        "--second-vram-gb",
        help="use so much of that card, or with --plan: plan for a second card of that size",
        **size,
    )
    places.add_argument("--ram-gb", help="plan with so much main memory", **size)

    places.add_argument(
        "--cards",
        metavar="N",
        type=card_count,
        help="share each video between N cards of this machine, or plan for N that are not there",
    )
    places.add_argument(
        "--parallel",
        choices=ASKED,
        default="auto",
        help="what the cards share of one video or image: its prompts, its token sequence (default: auto)",
    )
    places.add_argument(
        "--server", metavar="URL", help="run it on a ComfyUI server, the least busy one where it is repeated", **many
    )


def _text(argument: str) -> str:
    """Return an argument as text: in a locale without UTF-8, Python hands over its bytes one by one."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{argument!r} is no text in UTF-8.") from error


def gigabytes(text: str) -> int:
    """Return the bytes of a number of GB above 0."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size <= MOST_GB:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GB above 0, up to {MOST_GB}, such as 16.")
    return int(size * 2**30)


def card_count(text: str) -> int:
    """Return a number of cards, from 1."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_CARDS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of cards, from 1 to {MOST_CARDS}.")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    interruption = Interruption()
    with interruption.caught(), standard_outputs() as (out, err):
        try:
            code = _main(arguments, interruption, out, err)
        except SystemExit as end:  # from argparse, which has printed its help, or what is wrong
            code = exit_code(end)
        except KeyboardInterrupt:  # before there was anything to stop
            code = interruption.exit_code or CANCELLED
        except (ImportError, AttributeError, RuntimeError):
            # A library that swallowed the interrupt while it was imported is half there, and fails a moment later.
            if interruption.exit_code is None:
                raise
            code = interruption.exit_code
        return checked_output(code, out, err)


def _main(arguments: list[str] | None, interruption: Interruption, out: Output, err: Output) -> int:
    parse = parser()
    options = parse.parse_args(arguments)
    if options.layers and options.inspect is None:
        parse.error("--layers goes with --inspect FILE")
    if options.table and not options.plan:
        parse.error("--table goes with --plan")
    _check_card_options(parse, options)
    if (options.quantize is None) != (options.to is None) or (options.out and not options.quantize):
        parse.error(f"--quantize FILE goes with --to {'|'.join(FORMATS)}, and --out FILE with both")
    if options.workflow is None and options.inspect is None and options.quantize is None:
        parse.error("the following arguments are required: workflow")
    if options.json and STDOUT in (options.export_api, options.convert_to_piying):
        parse.error("a workflow written to - and the events of --json would be mixed on stdout: leave one out")
    if options.workflow is not None and (options.inspect or options.quantize):
        name = "--inspect" if options.inspect else "--quantize"
        parse.error(f"argument {name}: not allowed with argument workflow ({options.workflow})")
    if options.server:
        _check_server_options(parse, options)
    # stdout is for programs to read, so what packs print is kept out of it.
    with out.reserved(None if options.quiet else err):
        return _outcome(options, interruption, out)


def _check_card_options(parse: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options about cards that go with others which are not there."""
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if options.cards is not None and not options.plan and not is_alone:
        parse.error("--cards goes without torchrun, whose --nproc-per-node says how many there are")
    if options.second_vram_gb is not None and not (options.second_device or options.plan):
        parse.error("--second-vram-gb goes with --second-device, or with --plan")
    if options.parallel != "auto" and options.cards is None and is_alone:
        parse.error("--parallel goes with --cards N, or with torchrun --nproc-per-node N -m runner …")


def _check_server_options(parse: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that speak of this machine together with servers, which have models and cards of their own."""
    here = {
        name: parse.get_default(name)
        for name in (
            "models",
            "custom_nodes",
            "comfyui",
            "device",
            "vram_gb",
            "second_device",
            "second_vram_gb",
            "ram_gb",
            "plan",
            "inspect",
            "quantize",
            "cards",
            "parallel",
        )
    }
    here |= {"convert_to_piying": None, "object_info": None}
    for name, default in here.items():
        if getattr(options, name) != default:
            parse.error(
                f"argument --{name.replace('_', '-')}: not allowed with argument --server: it is for runs here"
            )


def _outcome(options: argparse.Namespace, interruption: Interruption, out: Output) -> int:
    """Do what the options say, and return the exit code."""
    # A plan is one object on stdout, so its events are errors alone.
    as_plan = options.plan and options.json
    display = PlanDisplay(partial(print_json, out)) if as_plan else choose_display(out, options.json, options.quiet)
    if is_helper(os.environ):
        display = Silent()
    _prepare_process(options.verbose, display)
    try:
        if options.quantize:
            code = _quantize(options, interruption, out)
        else:
            code = _inspect(options, out) if options.inspect else _run(options, display, interruption, out)
        interruption.end()
        return code
    except RankLostError as error:
        return _fail(error, FAILED, display, options.verbose)
    except (WorkflowError, PiyingError) as error:
        return _fail(error, WRONG, display, options.verbose)
    except (NodeFailed, JobFailed) as error:
        # torchrun ends all ranks by a signal where one has died.
        is_lost = isinstance(error, NodeFailed) and isinstance(error.cause, RankLostError)
        if interruption.exit_code is not None and not is_lost:
            return _fail(KeyboardInterrupt(), interruption.exit_code, display, options.verbose)
        return _fail(error, FAILED, display, options.verbose)
    except (MemoryError, ImportError, OSError) as error:  # between nodes, as while torch is imported
        if interruption.exit_code is not None or not is_out_of_memory(error):
            raise
        return _fail(PiyingError(shortage(error)), FAILED, display, options.verbose)
    except KeyboardInterrupt as error:
        interruption.end()
        return _fail(error, interruption.exit_code or CANCELLED, display, options.verbose)


def _prepare_process(verbose: bool, display: Display) -> None:
    if not verbose:
        for name, value in QUIET_LIBRARIES.items():
            os.environ.setdefault(name, value)
    logger = logging.getLogger("piying")
    logger.addHandler(LogToDisplay(display))
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Warnings of packs and libraries go the same way, each once, whatever handlers packs set up beside ours.
    logger.propagate = False
    others = LogToDisplay(display)
    others.setLevel(logging.WARNING)
    logging.getLogger().addHandler(others)


def _fail(error: BaseException, code: int, display: Display, verbose: bool) -> int:
    """Show the sentence of an error, and return the exit code."""
    text = error_text(error, "Run with --verbose for the traceback.")
    display.failed(text, code, error.node if isinstance(error, NodeFailed) else None)
    if verbose:
        if isinstance(error, NodeFailed) and isinstance(error.cause, ServerNodeError):
            print(escaped(error.cause.traceback), file=sys.stderr)
        traceback.print_exception(error)
    return code


def _inspect(options: argparse.Namespace, out: Output) -> int:
    """Print what a file of weights is and, with --layers, which type each of its layers is held in, and why.

    Of the folder of a whole model it prints so much of each component.
    """
    # Not at the top: a run reaches models through their nodes alone.
    from ..core.catalog.discovery import why_no_model
    from ..core.checkpoints import inspect, layers

    path: Path = options.inspect
    if not path.is_file() and not path.is_dir():
        raise PiyingError(f"{path}: there is no such file. Name one file of weights, or the folder of a component.")
    for place in inspect.components_in(path):
        found = inspect.inspect(place, contents=True)
        held = layers.layers(place) if options.layers else None
        unusable = why_no_model(path, found).removeprefix(f"{path}: ") if found.readable else ""
        if options.json:
            table = inspect.as_json(found) | ({} if held is None else {"layers": layers.as_json(held)})
            print_json(out, table | {"unusable": unusable})
        else:
            text = inspect.as_text(found) + (f"\n  model    cannot be used: {unusable}" if unusable else "")
            print(escaped(text + (f"\n{layers.as_text(held)}" if held else "")), file=out)
    return DONE


def _quantize(options: argparse.Namespace, interruption: Interruption, out: Output) -> int:
    """Write a file of weights in a format, and print what each layer has lost."""
    # Not at the top: a run reaches models through their nodes alone.
    from ..core.checkpoints import quantized_file

    path: Path = options.quantize
    if not path.is_file() and not path.is_dir():
        raise PiyingError(f"{path}: there is no such file. Name one file of weights, or the folder of a component.")
    is_told = not (options.json or options.quiet)
    found = quantized_file.quantize_file(
        path,
        options.to,
        options.out,
        check=interruption.check,
        on_layer=lambda layer: print(escaped(quantized_file.as_line(layer)), file=out) if is_told else None,
    )
    if options.json:
        print_json(out, quantized_file.as_json(found))
    else:
        print(escaped(quantized_file.as_text(found) if is_told else found.out), file=out)
    return DONE


def _run(options: argparse.Namespace, display: Display, interruption: Interruption, out: Output) -> int:
    begun, ranks = time.monotonic(), ranks_of(os.environ)
    is_run = not (options.check or options.plan or options.export_api or options.convert_to_piying or options.server)
    if ranks is not None and ranks.rank and not is_run:
        return DONE  # rank 0 does it alone
    if options.server:
        from .remote.command import run_on_servers

        code = run_on_servers(options, display, interruption.check, partial(_write, options, display=display, out=out))
        is_run = not (options.check or options.export_api)
    elif ranks is not None and is_run:
        code = _run_on_ranks(ranks, options, display, interruption=interruption, out=out)
    else:
        count = options.cards or (1 if ranks is None else ranks.size)
        cards = Cards(count, options.parallel) if count > 1 else None
        if cards is not None and is_run:
            cards = local_cards(count, options.parallel, options.device, options.second_device)
        joined = Joined(options.device, options.vram_gb, cards, interruption.check)
        code = _run_here(joined, options, display, interruption=interruption, out=out)
    if code == DONE and is_run:
        display.done(time.monotonic() - begun)
    return code


def _run_on_ranks(
    ranks: Ranks, options: argparse.Namespace, display: Display, *, interruption: Interruption, out: Output
) -> int:
    """Run the workflow with the other ranks, or help the one that does."""
    device = device_of(options.device, ranks)
    if isinstance(display, Silent):
        display.speaks = lambda: True  # that it does not find the others, nobody else can say
    with joined_group(ranks, device, interruption, lambda text: display.failed(text, FAILED)) as group:
        if isinstance(display, Silent):
            display.speaks = lambda: group.speaks
            help_rank_0(group, options.vram_gb, check_of(group, interruption))
            return DONE
        joined = joined_run(group, options.parallel, options.vram_gb, interruption)
        return _run_here(joined, options, display, interruption=interruption, out=out)


def _run_here(
    joined: Joined, options: argparse.Namespace, display: Display, *, interruption: Interruption, out: Output
) -> int:
    # Not at the top: --help and --inspect need none of it.
    from .session import Session

    session = Session(
        input=options.input,
        output=options.output,
        models=options.models,
        device=joined.device,
        custom_nodes=options.custom_nodes,
        comfyui=options.comfyui,
        display=display,
        vram=joined.vram,
        ram=options.ram_gb,
        imagined=options.plan,
        check_cancelled=joined.check,
        cards=joined.cards,
        second_device=options.second_device,
        second_vram=options.second_vram_gb,
    )
    try:
        return _run_in(session, options, display, out)
    finally:
        interruption.end()
        session.close()


def _run_in(session: Session, options: argparse.Namespace, display: Display, out: Output) -> int:
    from .plan import as_json, as_text, formats_as_json
    from .session import check_writable
    from .workflow_file import split_set

    with session.one_pass():
        values = dict(map(split_set, options.set))
        own = session.definitions()
        # Definitions from a server are for the export: only the session's own nodes can run.
        given = read_object_info(options.object_info) if options.object_info else {}
        # What a server leaves out, such as a title, is as it is here.
        titles = {name: {"display_name": own.get(name, {}).get("display_name")} for name in given}
        info = own | {name: titles[name] | each for name, each in given.items()}
        settings = {"set": values, "prompt": options.prompt, "seed": options.seed}
        if options.convert_to_piying:
            converted, notes = session.convert(options.workflow, info=given, **settings)
            _write(options, "--convert-to-piying", converted, display=display, out=out)
            for note in notes:
                display.message(note, "WARNING")
            return DONE
        workflow = session.prepare(options.workflow, info=info, **settings)
        if options.export_api:
            _write(options, "--export-api", workflow.api, display=display, out=out)
            _name_refused(session, workflow, info, display)
            return DONE
        graph, roots, errors = session.check(workflow, options.partial, own)
        for error in errors:
            display.message(f"left out: {error}", "WARNING")
        if options.check:
            session.check_device()
            found = "the outputs that are not left out can run" if errors else "nothing wrong"
            display.message(f"{options.workflow}: {len(graph)} nodes, {found}.", "INFO")
            return WRONG if errors else DONE
        _check_installed()
        if options.plan:
            plans = session.plan(graph, roots, formats=options.table)
            if options.json:
                print_json(out, formats_as_json(plans) if options.table else as_json(plans))
            else:
                print(escaped(as_text(plans)), file=out)
            return DONE
    check_writable(options.output)
    if options.vram_gb is not None and session.device() == "cpu":
        display.message("--vram-gb: there is no card here to limit; it tells --plan what to plan for.", "WARNING")
    for path in session.execute(workflow, graph, roots).files:
        display.saved(path)
    return WRONG if errors else DONE


def _write(
    options: argparse.Namespace, option: str, workflow: dict[str, Any], *, display: Display, out: Output
) -> None:
    """Write a workflow into the file of an option and name it, or print it where the file is `-`."""
    from .workflow_file import workflow_text, write_workflow

    path: Path = options.convert_to_piying or options.export_api
    if path.exists() and path.samefile(options.workflow):
        raise WorkflowError(f"{option} {path}: is the workflow itself, which would be lost. Name another file.")
    if path == STDOUT:
        print(workflow_text(workflow), end="", file=out)
    else:
        write_workflow(path, workflow, option)
        display.saved(path)


def _name_refused(session: Session, workflow: Workflow, info: ObjectInfo, display: Display) -> None:
    """Warn of what is wrong with a workflow that is written for others to run: as from the page, it has all values."""
    try:
        session.check(workflow, info=info)
    except InvalidGraph as refused:
        for error in refused.errors:
            display.message(f"would be refused: {error}", "WARNING")
    except WorkflowError as refused:
        display.message(f"would be refused: {refused}", "WARNING")


def _check_installed() -> None:
    """Name what is missing from this Python, and the Python that has it where install.py made one."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        own = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        remedy = f"Use {own} -m runner" if own.exists() else f"Run {sys.executable} {ROOT / 'install.py'}"
        raise WorkflowError(f"{sys.executable} lacks {', '.join(missing)}. {remedy}.")
