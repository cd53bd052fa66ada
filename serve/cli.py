"""Command line of a server: `python -m runner serve`, its options and exit codes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import PiyingError, escaped, explain_os_errors, readable
from ..core.http import is_loopback
from ..core.process import CANCELLED, DONE, WRONG, Interruption, checked_output, exit_code, standard_outputs
from ..runner.cli import gigabytes
from ..runner.errors import WorkflowError
from .audit import AuditLog
from .journal import Journal
from .limits import Limits, read_tokens
from .results import result_store
from .settings import Folders, Settings

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "PIYING_TOKEN"
NEEDED = ("ray", "fastapi", "uvicorn", "prometheus_client")
APPLICATION = "piying"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parse = argparse.ArgumentParser(
        prog="python -m runner serve",
        description="Take workflows over HTTP and run them on the cards of one machine or of a Ray cluster.",
        epilog="Exit codes: 0 stopped, 1 the server failed, 2 the options are wrong, 130 stopped by a signal.",
    )
    folder: dict[str, Any] = {"metavar": "DIR"}
    many: dict[str, Any] = {"action": "append", "default": []}
    count: dict[str, Any] = {"type": _count, "metavar": "N"}

    group = parse.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1; another one needs a token")
    group.add_argument("--port", default=8190, type=int, help="default: 8190")
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"a token a line, or NAME TOKEN; {TOKEN} is one"
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate in PEM, for HTTPS")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")

    group = parse.add_argument_group("places, the same on each machine")
    group.add_argument("--input", default="input", help="where workflows may read files", **folder)
    group.add_argument("--output", default="output", help="a folder for results, or an address for fsspec", **folder)
    group.add_argument("--models", help="a folder of models; may be repeated", **folder, **many)
    group.add_argument("--workflows", help="workflows that can be named (default: Piying's)", **folder, **many)
    group.add_argument("--state", default="queue", help="journal, audit log and log, on this machine", **folder)
    group.add_argument("--cache", help="finished windows of long videos; shared, another machine goes on", **folder)
    group.add_argument("--custom-nodes", help="a pack, or a folder of packs; may be repeated", **folder, **many)
    group.add_argument("--comfyui", help="a ComfyUI checkout that such packs may import from", **folder)
    group.add_argument(
        "--prompt-server", metavar="URL", help="a server that workflows may ask; may be repeated", **many
    )

    group = parse.add_argument_group("workers")
    group.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster to use, or auto; default: this machine alone")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, xpu, mps (default: auto)")
    group.add_argument("--vram-gb", type=gigabytes, metavar="GB", help="use so much of each card")
    group.add_argument("--retries", default=1, help="workers that a job may lose and be tried again", **count)

    group = parse.add_argument_group("limits of each token")
    group.add_argument("--max-queued", default=1000, help="jobs that wait (default: 1000)", **count)
    group.add_argument("--max-running", default=100, help="jobs that run at once (default: 100)", **count)
    group.add_argument("--per-minute", default=600, help="jobs submitted in a minute (default: 600)", **count)
    group.add_argument("--keep", default=10_000, help="finished jobs to keep, with results (default: 10000)", **count)
    return parse


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 999999999.")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    interruption = Interruption()
    with interruption.caught(), standard_outputs() as (out, err):
        try:
            code = _serve(parser().parse_args(arguments))
        except SystemExit as end:  # from argparse
            code = exit_code(end)
        except (WorkflowError, PiyingError) as error:
            print(f"error: {escaped(readable(str(error)))}", file=err)
            code = WRONG
        except KeyboardInterrupt:
            code = interruption.exit_code or CANCELLED
        interruption.end()
        return checked_output(code, out, err)


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that options say, checked as far as this machine can tell.

    Raises:
        PiyingError, WorkflowError: a folder or a token cannot be used, or the address needs a token.
    """
    tokens = read_tokens(options.token_file, os.environ.get(TOKEN))
    if not is_loopback(options.host) and not tokens.by_name:
        raise PiyingError(
            f"--host {options.host}: can be reached from other machines, so a token is needed. Set {TOKEN}, or give "
            "--token-file FILE."
        )
    for address in options.prompt_server:
        if urlsplit(address).scheme not in ("http", "https"):
            raise PiyingError(f"--prompt-server {address}: is no address that begins with http:// or https://.")
    # The default of --input need not be there: workflows without input files do without it.
    for option in ("workflows", "input"):
        named = options.workflows if option == "workflows" else [options.input] * (options.input != "input")
        for folder in named:
            if not Path(folder).is_dir():
                raise PiyingError(f"--{option} {folder}: there is no such folder.")
    # Workers have working folders of their own.
    absolute = {
        name: str(Path(value).absolute()) if value and "://" not in value else value
        for name, value in (("output", options.output), ("cache", options.cache), ("comfyui", options.comfyui))
    }
    folders = Folders(
        input=str(Path(options.input).absolute()),
        models=tuple(str(Path(one).absolute()) for one in options.models),
        results=absolute["output"],
        cache=absolute["cache"],
        custom_nodes=tuple(str(Path(one).absolute()) for one in options.custom_nodes),
        comfyui=absolute["comfyui"],
    )
    return Settings(
        state=str(Path(options.state).absolute()),
        folders=folders,
        workflows=tuple(str(Path(one).absolute()) for one in options.workflows or [ROOT / "workflows"]),
        servers=tuple(options.prompt_server),
        tokens=tokens,
        limits=Limits(options.max_queued, options.max_running, options.per_minute),
        retries=options.retries,
        keep=options.keep,
    )


def _check(settings: Settings, has_cluster: bool) -> None:
    """Try what the server will use: an error in another process would be told in that one's log alone."""
    AuditLog(Path(settings.state) / "audit.jsonl")
    # Of a server that was killed on a cluster that lives on it is still open there.
    if not has_cluster:
        Journal(Path(settings.state) / "jobs.sqlite").close()
    store = result_store(settings.folders.results)
    store.discard(store.attempt_folder("check", 0))
    settings.folders.session(Path(settings.state), device="cpu").close()


def _serve(options: argparse.Namespace) -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise PiyingError(
            f"{sys.executable} lacks {', '.join(missing)}, which a server needs. Run {sys.executable} -m pip install "
            '"ray[serve]>=2.60".'
        )
    settings, tls = settings_of(options), _tls(options)
    _check(settings, has_cluster=options.ray is not None)
    listening = _listening(options.host, options.port)  # before a cluster is started for nothing
    worker_options = {"device": options.device, "vram": options.vram_gb}
    # Not at the top: it takes a second, and what was wrong so far is told at once.
    from .cluster import running_queue

    with running_queue(settings, worker_options, options.ray) as port:
        scheme = "http" if tls is None else "https"
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(
            f"Listening on {scheme}://{host}:{options.port}; routes: {scheme}://{host}:{options.port}/docs", flush=True
        )
        asyncio.run(_listen(listening, port, tls))
    return DONE


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket at an address; that it is taken is told before a cluster is started."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PiyingError(f"--host {host} --port {port}: cannot be used ({reason}). Choose another one.") from error


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.tls_cert is None and options.tls_key is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise PiyingError("--tls-cert and --tls-key go together.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with explain_os_errors(f"--tls-cert {options.tls_cert}, --tls-key {options.tls_key}: cannot be used"):
        context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


async def _listen(listening: socket.socket, port: int, tls: ssl.SSLContext | None) -> None:
    """Pass requests on until the process is stopped."""
    from .front import Front

    # Each idle client takes a descriptor, and a shell allows a process 1024 as a rule.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with await Front("127.0.0.1", port).listen(listening, tls) as server:
        await server.serve_forever()
