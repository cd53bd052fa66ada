"""`--server`: a workflow of the command line on ComfyUI servers, with the options that go with them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ...core.process import DONE, WRONG
from ..display import Display
from ..session import check_writable
from ..workflow_file import split_set
from .address import read_server_address
from .event_stream import has_websockets
from .job import RemoteJob
from .pool import Pool


def run_on_servers(
    options: argparse.Namespace,
    display: Display,
    check_cancelled: Callable[[], None],
    write: Callable[[str, dict[str, Any]], None],
) -> int:
    """Do what the options say on their servers, and return the exit code.

    Args:
        write: writes a workflow into the file of an option.

    Raises:
        WorkflowError: no server that answers can run the workflow, or an option is wrong.
        NodeFailed: a node raised.
        JobFailed: no server finished the job, or not all of its files came.
    """
    pool = Pool(read_server_address(url) for url in options.server)
    job = RemoteJob(
        source=options.workflow,
        values=dict(map(split_set, options.set)),
        prompt=options.prompt,
        seed=options.seed,
        partial=options.partial,
        input=options.input,
        output=options.output,
    )
    if options.export_api:
        server, info = pool.definitions()
        made = job.for_server(info, str(server))
        write("--export-api", made.workflow.api)
        for error in made.errors:
            display.message(f"would be refused: {error}", "WARNING")
        return DONE
    if options.check:
        return _check(pool, job, display, check_cancelled)
    check_writable(options.output)
    if not has_websockets():
        display.message(
            "aiohttp is not installed here: the state of the job is asked for, and its steps are not shown. "
            "pip install aiohttp changes that.",
            "INFO",
        )
    fetched = pool.run(job, display, check_cancelled)
    if not fetched.files:
        display.message(f"{fetched.server}: no node saved a file there.", "WARNING")
    return WRONG if fetched.left_out else DONE


def _check(pool: Pool, job: RemoteJob, display: Display, check_cancelled: Callable[[], None]) -> int:
    candidates, problems = pool.check(job, check_cancelled)
    for problem in problems:
        display.message(problem, "WARNING")
    first = candidates[0].made
    for error in first.errors:
        display.message(f"left out: {error}", "WARNING")
    for file in first.files:
        if file.path is not None:
            display.message(f"{file.node}: {file.input} would be uploaded from {file.path}.", "INFO")
    found = "the outputs that are not left out can run" if first.errors else "nothing wrong"
    servers = ", ".join(f"{each.server} ({each.waiting} waiting)" for each in candidates)
    display.message(f"{job.source}: {len(first.graph)} nodes, {found} on {servers}.", "INFO")
    return WRONG if first.errors else DONE
