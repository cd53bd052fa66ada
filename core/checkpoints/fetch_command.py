"""What `install.py --models`, `--list`, `--verify` and `--print-files` do, for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import PiyingError
from .fetch import Hubs, check_disk, fetch, is_there, jobs_of
from .fetch_hubs import AUTO
from .fetch_proof import Ledger
from .fetch_text import Console, model_table, size_text
from .fetch_verify import file_list, presence, read_file_list, verify
from .manifest import Listed, files_of, find_listed, listed_models

DONE, FAILED, WRONG_OPTIONS = 0, 1, 2


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        task: `check`, `fetch`, `plan`, `list`, `verify` or `files`.
        ids: models by id.
        root: the models folder.
        source: `huggingface`, `modelscope` or `auto`.
        carried: for `verify`, a list of files made with `files`, or None.
    """

    task: str
    ids: Sequence[str]
    root: Path
    source: str = AUTO
    carried: Path | None = None


def run(request: Request, write: Callable[[str], None], is_terminal: bool) -> int:
    """Do what is asked and return the exit code: 0 done, 1 not, 2 where there is no such model."""
    console = Console(write, is_terminal)
    try:
        models = find_listed(request.ids)
    except PiyingError as error:
        console.say(str(error))
        return WRONG_OPTIONS
    try:
        return TASKS[request.task](request, models, console)
    except PiyingError as error:
        console.say(str(error))
        return FAILED


def _check(request: Request, models: list[Listed], console: Console) -> int:
    del request, models, console
    return DONE


def _fetch(request: Request, models: list[Listed], console: Console) -> int:
    for model in models:
        console.say(f"{model.title}, licence: {model.licence}")
    fetch(models, request.root, request.source, console)
    return DONE


def _plan(request: Request, models: list[Listed], console: Console) -> int:
    """Say what would be fetched."""
    hubs, ledger = Hubs(request.source), Ledger.read(request.root)
    jobs = [job for file in files_of(models) for job in jobs_of(file, hubs, request.root, ledger)]
    missing = [job for job in jobs if not is_there(job, request.root, ledger)]
    check_disk(missing, request.root)
    for job in missing:
        console.say(f"Would fetch {request.root / job.path}, {size_text(job.bytes)}")
    if not missing:
        console.say(f"Nothing to fetch: all is in {request.root}.")
    return DONE


def _list(request: Request, models: list[Listed], console: Console) -> int:
    for line in model_table(models or listed_models(), request.root):
        console.say(line)
    console.say(f"here: in {request.root}. A size of ? is asked from the hub before anything is fetched.")
    return DONE


def _verify(request: Request, models: list[Listed], console: Console) -> int:
    ledger = Ledger.read(request.root)
    chosen = models or [model for model in listed_models() if presence(model, request.root, ledger) != "no"]
    carried = read_file_list(request.carried) if request.carried else []
    verdicts = verify(chosen, request.root, console, carried)
    for verdict in verdicts:
        console.say(f"{verdict.path}: {verdict.word}")
    bad = [verdict for verdict in verdicts if not verdict.is_good]
    if not verdicts:
        console.say(f"None of the listed models is in {request.root}.")
    elif bad:
        console.say(
            f"{len(bad)} of {len(verdicts)} files are not right. Remove the wrong ones, then run: python install.py "
            f"--models {' '.join(model.id for model in chosen)}"
        )
    return FAILED if bad else DONE


def _files(request: Request, models: list[Listed], console: Console) -> int:
    for line in file_list(models, Hubs(request.source)):
        console.say(line)
    return DONE


TASKS: dict[str, Callable[[Request, list[Listed], Console], int]] = {
    "check": _check,
    "fetch": _fetch,
    "plan": _plan,
    "list": _list,
    "verify": _verify,
    "files": _files,
}
