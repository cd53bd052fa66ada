"""Cluster: Ray started or joined for a server, with Ray Serve in front of its queue, and stopped with it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import PiyingError, short_text
from ..core.http import HttpClient, HttpError, Request, RetryableError
from .journal import Journal
from .server_process import ServerProcess
from .settings import Settings

log = logging.getLogger("piying.serve")

LOOPBACK = "127.0.0.1"
APPLICATION = "piying"
START_SECONDS = 120.0  # until the routes have to answer


@contextlib.contextmanager
def running_queue(settings: Settings, options: dict[str, Any], address: str | None) -> Iterator[int]:
    """Run a server's queue and workers in the block, and yield the port on this machine that its routes are at.

    Args:
        settings: see `Settings`.
        options: of the workers, see `JobRunner`.
        address: of a Ray cluster whose first machine this is, or `auto`; None starts one of this machine alone.

    Raises:
        PiyingError: the cluster cannot be reached, this is another one of its machines, or the queue does not start.
    """
    # Read when Ray is imported: nothing is sent to anybody, and nothing is asked of a terminal.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own ports are open to other machines, and give whoever may use them all that this account can do.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    import ray

    from .ray_pool import HEAD

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        # Ray takes SIGTERM for itself, and would end this process without ours.
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=address or "local", log_to_driver=False, logging_level="warning", **own)
        signal.signal(signal.SIGTERM, handler)
    except Exception as error:  # Ray's own, where one of its processes does not start in time
        told = "Ray does not start" if address is None else f"--ray {address}: no cluster can be reached"
        advice = "Try again when this machine has less to do" if address is None else "Start one with ray start --head"
        raise PiyingError(f"{told} ({short_text(error)}). {advice}.") from error
    try:
        here = ray.get_runtime_context().get_node_id()
        if not any(node["NodeID"] == here and HEAD in node["Resources"] for node in ray.nodes()):
            raise PiyingError(f"--ray {address}: this is not the first machine of the cluster. Run the server there.")
        if address is not None:
            _end_left_over(address)
            Journal(Path(settings.state) / "jobs.sqlite").close()  # an error elsewhere would be told in a log alone
        with _application(settings, options, alone=address is None) as port:
            yield port
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _application(settings: Settings, options: dict[str, Any], *, alone: bool) -> Iterator[int]:
    """Run the queue on the cluster that this process belongs to, and yield its port.

    Args:
        alone: whether the cluster ends with this process.
    """
    from ray import serve

    from .ray_pool import deployment

    # Of this machine alone, and another one at each start: clients come by the front.
    with socket.create_server((LOOPBACK, 0)) as found:
        port = int(found.getsockname()[1])
    try:
        serve.start(
            http_options={"host": LOOPBACK, "port": port, "keep_alive_timeout_s": 5}, proxy_location="HeadOnly"
        )
        try:
            serve.run(deployment(settings, options, ServerProcess.this()), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise PiyingError(f"The queue does not start: {short_text(error)}. Ray's logs say more.") from error
        _wait_until_it_answers(port)
        yield port
    finally:
        with contextlib.suppress(RuntimeError):
            _end_application(alone)


def _end_application(alone: bool) -> None:
    """Delete the queue's application, and end Ray Serve where nothing else uses it: the next one has another port."""
    from ray import serve

    serve.delete(APPLICATION)
    if alone or not serve.status().applications:
        serve.shutdown()


def _end_left_over(address: str) -> None:
    """Delete the application of a server that was killed, which lives on with its cluster, and has the journal.

    Raises:
        PiyingError: it is that of a server that runs.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    if APPLICATION not in serve.status().applications:
        return
    try:
        server = ServerProcess(**serve.get_app_handle(APPLICATION).server.remote().result(timeout_s=START_SECONDS))
    except (RayServeException, RayError, TimeoutError) as error:
        log.warning("--ray %s: its queue does not answer (%s), and is started anew.", address, short_text(error))
    else:
        if server.is_running():
            raise PiyingError(
                f"--ray {address}: has a server already, the process {server.pid}. Stop that one, or send jobs to it."
            )
    _end_application(alone=False)


def _wait_until_it_answers(port: int) -> None:
    deadline, url = time.monotonic() + START_SECONDS, f"http://{LOOPBACK}:{port}/health"
    while True:
        try:
            with HttpClient(redirects=False, proxies=False).open(Request(url), 10.0) as response:
                if response.status == 200:
                    return
        except (RetryableError, HttpError):
            pass
        if time.monotonic() > deadline:
            raise PiyingError(
                f"The queue does not answer at {url}. If this cluster has another Ray Serve, end it: serve shutdown."
            )
        time.sleep(0.2)
