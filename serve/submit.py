"""Command line of a client: `python -m runner submit`, its options and exit codes."""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import PiyingError, explain_os_errors
from ..core.host.base import Progress
from ..core.process import (
    CANCELLED,
    DONE,
    WRONG,
    Interruption,
    Output,
    checked_output,
    exit_code,
    standard_outputs,
)
from ..runner.display import Display, EventDisplay, choose_display, print_json
from ..runner.errors import WorkflowError
from ..runner.graph import Node
from ..runner.workflow_file import decoded_file, split_set
from .client import Client, result_files

TOKEN = "PIYING_TOKEN"
MOST_JOBS = 1000  # in one request
MOST_BYTES = 8 << 20  # of the workflows in one request
OWN_COLUMNS = ("prompt", "seed")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parse = argparse.ArgumentParser(
        prog="python -m runner submit",
        description="Send workflows to a server that python -m runner serve has started.",
        epilog="Exit codes: 0 taken or done, 1 a node failed, 2 a workflow or the options are wrong, 130 cancelled.",
    )
    parse.add_argument("workflow", help="a workflow file, a folder of them, or the name of one that the server has")
    parse.add_argument("--to", required=True, metavar="URL", help="the server, such as http://127.0.0.1:8190")
    parse.add_argument("--set", metavar="NODE.INPUT=VALUE", help="set an input; may be repeated", action="append")
    parse.add_argument("--prompt", metavar="TEXT", help="set the one prompt that the workflow asks for")
    parse.add_argument("--seed", metavar="N", type=int, help="set every seed")
    parse.add_argument(
        "--partial", action="store_true", help="run the outputs that are valid even where others are not"
    )
    parse.add_argument(
        "--csv", type=Path, metavar="FILE", help="a job for each row; columns are NODE.INPUT, prompt or seed"
    )
    parse.add_argument("--wait", action="store_true", help="show progress and fetch the results")
    parse.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="where they are written to")
    parse.add_argument("--token-file", type=Path, metavar="FILE", help=f"the token; {TOKEN} is another way")
    parse.add_argument("--plain-http", action="store_true", help="send the token without encryption to other machines")
    shown = parse.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="events as JSON lines on stdout")
    shown.add_argument("--quiet", action="store_true", help="ids or paths on stdout, nothing else but errors")
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    interruption = Interruption()
    with interruption.caught(), standard_outputs() as (out, err):
        display: Display | None = None
        try:
            options = parser().parse_args(arguments)
            display = choose_display(out, options.json, options.quiet)
            code = _submit(options, display, out, interruption)
        except SystemExit as end:  # from argparse
            code = exit_code(end)
        except (WorkflowError, PiyingError) as error:
            assert display is not None
            display.failed(str(error), WRONG)
            code = WRONG
        except KeyboardInterrupt:
            code = interruption.exit_code or CANCELLED
        interruption.end()
        return checked_output(code, out, err)


def _submit(options: argparse.Namespace, display: Display, out: Output, interruption: Interruption) -> int:
    client = Client(
        options.to, _token(options.token_file), options.plain_http, lambda line: display.message(line, "WARNING")
    )
    ids: list[str] = []
    for path, body in requests(options):
        answer = client.submit(path, body)
        ids += [str(job["id"]) for job in (answer if isinstance(answer, list) else [answer])]
    if not options.wait:
        for job_id in ids:
            if options.json:
                print_json(out, {"event": "queued", "job": job_id})
            else:
                print(job_id, file=out, flush=True)
        return DONE
    code = DONE
    for number, job_id in enumerate(ids, 1):
        if len(ids) > 1:
            display.message(f"Job {number} of {len(ids)}: {job_id}", "INFO")
        shown = EventDisplay(partial(_print_with_job, out, job_id)) if options.json else display
        try:
            found = _followed(client, job_id, options.output, shown)
        except KeyboardInterrupt:
            # A second Ctrl-C would leave half of them running.
            interruption.end()
            for left in ids[number - 1 :]:
                client.cancel(left)
            display.failed("stopped; the jobs that were not over are cancelled.", CANCELLED)
            raise
        code = code or found
    return code


def requests(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the routes and the bodies of the requests that options ask for.

    Raises:
        WorkflowError, PiyingError: a file cannot be read, or a value has no target.
    """
    common: dict[str, Any] = {"set": dict(map(split_set, options.set or [])), "partial": options.partial}
    common |= {name: getattr(options, name) for name in OWN_COLUMNS if getattr(options, name) is not None}
    path = Path(options.workflow)
    workflows: list[Any]
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
        if not found:
            raise WorkflowError(f"{path}: the folder is empty. Give one with workflow files.")
        workflows = [decoded_file(one) for one in found]
    elif path.exists() or path.suffix:
        workflows = [decoded_file(path)]
    else:
        workflows = [options.workflow]
    rows = [{}] if options.csv is None else list(read_rows(options.csv))
    jobs = [
        (workflow, {**common, **row, "set": {**common["set"], **row.get("set", {})}, "id": os.urandom(16).hex()})
        for workflow in workflows
        for row in rows
    ]
    if len(jobs) == 1:
        yield "/jobs", {"workflow": jobs[0][0], **jobs[0][1]}
        return
    name = f"{path.stem[:60]}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    # A workflow that all jobs share is sent once.
    for part in _parts(jobs, shared=len(workflows) == 1):
        if len(workflows) == 1:
            yield "/batches", {"name": name, "workflow": workflows[0], "jobs": [job for _, job in part]}
        else:
            yield "/batches", {"name": name, "jobs": [{"workflow": workflow, **job} for workflow, job in part]}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the values of each row of a CSV file, whose header names what they are for; empty cells set nothing.

    Raises:
        PiyingError: the file cannot be read, has no rows, or a row or a column cannot be used.
    """
    doing = f"--csv {path}: cannot read it"
    try:
        with explain_os_errors(doing), path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise PiyingError(f"{doing} ({error}). Save it as CSV in UTF-8.") from error
    except ValueError as error:
        raise PiyingError(f"--csv {path}: is empty. Its first row names inputs, such as 5.seed.") from error
    for name in header:
        if name not in OWN_COLUMNS and "." not in name:
            raise PiyingError(f"--csv {path}: the column {name!r} is neither NODE.INPUT, prompt nor seed.")
        if header.count(name) > 1:
            raise PiyingError(f"--csv {path}: two columns are called {name!r}. Leave one out.")
    rows = [row for row in rows if any(row)]
    if not rows:
        raise PiyingError(f"--csv {path}: has no row below its header. Each row is a job.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise PiyingError(f"--csv {path}: row {number} has {len(row)} cells, the header {len(header)}.")
        yield _row_values({name: value for name, value in zip(header, row, strict=True) if value}, path, number)


def _row_values(cells: dict[str, str], path: Path, number: int) -> dict[str, Any]:
    """Return the values of a row as a request has them."""
    found: dict[str, Any] = {name: cells.pop(name) for name in OWN_COLUMNS if name in cells}
    if "seed" in found:
        try:
            found["seed"] = int(found["seed"])
        except ValueError as error:
            raise PiyingError(f"--csv {path}: row {number}: seed is {found['seed']!r}, no whole number.") from error
    return {**found, "set": cells}


def _parts(
    jobs: Sequence[tuple[Any, dict[str, Any]]], *, shared: bool
) -> Iterator[Sequence[tuple[Any, dict[str, Any]]]]:
    """Yield jobs in parts that one request can hold."""
    begin, size = 0, 0
    for index, (workflow, job) in enumerate(jobs):
        own = len(json.dumps(job)) + (0 if shared else len(json.dumps(workflow)))
        if index > begin and (index - begin == MOST_JOBS or size + own > MOST_BYTES):
            yield jobs[begin:index]
            begin, size = index, 0
        size += own
    yield jobs[begin:]


def _print_with_job(out: Output, job_id: str, event: dict[str, Any]) -> None:
    print_json(out, {**event, "job": job_id})


def _followed(client: Client, job_id: str, folder: Path, display: Display) -> int:
    """Show what happens to a job until it is over, fetch its results into a folder, and return its exit code."""
    player, seconds = _Player(display), 0.0
    for event in client.events(job_id):
        if event["event"] == "error":
            display.failed(str(event["message"]), int(event["exit_code"]), event.get("node"))
            return int(event["exit_code"])
        if event["event"] == "done":
            seconds = float(event["seconds"])
        else:
            player.play(event)
    for file in result_files(client.show(job_id)["files"]):
        display.saved(client.fetch(job_id, file, folder))
    display.done(seconds)
    return DONE


class _Player:
    """Shows the events of another machine's run as if it were here."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._nodes: dict[str, Node] = {}
        self._phase: tuple[Any, ...] = ()
        self._progress: Progress | None = None

    def play(self, event: dict[str, Any]) -> None:
        """Show an event; one that this version does not know is passed over."""
        kind, node_id = event["event"], str(event.get("node"))
        if kind == "node":
            node = Node(node_id, str(event["class_type"]), {}, str(event["title"]))
            self._nodes[node_id] = node
            self._display.node_started(node)
        elif kind == "executed" and node_id in self._nodes:
            self._display.node_finished(self._nodes[node_id], event["output"], bool(event["cached"]))
        elif kind == "progress":
            phase = (node_id, event["phase"], event["max"])
            if self._progress is None or self._phase != phase:
                self._phase, self._progress = phase, self._display.progress(str(event["phase"]), int(event["max"]))
            self._progress.step(int(event["value"]))
        elif kind == "text" and self._progress is not None:
            self._progress.text(str(event["text"]))
        elif kind == "message":
            self._display.message(str(event["text"]), str(event["level"]).upper())
        elif kind == "started":
            again = "" if event["attempt"] == 1 else f", attempt {event['attempt']}"
            self._display.message(f"Running on {event['worker']}{again}", "INFO")


def _token(file: Path | None) -> str | None:
    """Return the token of a file, or that of the environment."""
    if file is None:
        return os.environ.get(TOKEN)
    with explain_os_errors(f"--token-file {file}: cannot read it"):
        words = file.read_text(encoding="utf-8", errors="replace").split()
    if len(words) != 1:
        raise PiyingError(f"--token-file {file}: has {len(words)} words. Write the token alone into it.")
    return words[0]
