"""HTTP routes of a server, with their OpenAPI page at /docs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mimetypes
import re
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.exceptions import HTTPException as FastAPIHTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..core.errors import readable
from ..core.process import WRONG
from .events import closing_events
from .intake import RefusedError
from .job import JOB_ID, OVER, Asked, Job, Problem, State, problem
from .journal import Selection
from .limits import LimitReached
from .queue import ConflictError
from .service import Service

BODY_BYTES = 16 << 20  # of a request; a batch of a thousand jobs has a few MB
MOST_JOBS = 1000  # in one batch
HEARTBEAT = 15.0  # seconds of silence after which a comment is sent: proxies close what is silent
TOO_LARGE = f"The body is larger than {BODY_BYTES >> 20} MiB. Send a smaller workflow, or fewer jobs at once."
TOKEN_ADVICE = "Send the header Authorization: Bearer TOKEN, with a token of this server."
Limit = Annotated[int, Query(ge=1, le=1000)]
JobId = Annotated[str, Path(pattern=f"^{JOB_ID.pattern}$", description="Id of a job.")]


class Values(BaseModel):
    """Values to write into a workflow."""

    model_config = ConfigDict(extra="forbid")

    set: dict[str, Any] = Field(
        default_factory=dict, description='{"NODE.INPUT": value}; NODE is an id, a title or a class.'
    )
    prompt: str | None = Field(default=None, description="For the one node that takes a prompt of its own.")
    seed: int | None = Field(default=None, description="For every seed.")
    partial: bool = Field(default=False, description="Run the outputs that are valid even where others are not.")
    id: str | None = Field(
        default=None,
        pattern=f"^{JOB_ID.pattern}$",
        description="Id for the job. A request that is sent again with it makes no second job.",
    )


class SubmittedJob(Values):
    """A workflow to run, with values written into it."""

    workflow: dict[str, Any] | str = Field(
        description="A workflow in ComfyUI's UI or API form, or the name of one that GET /workflows lists."
    )


class BatchJob(Values):
    """A job of a batch."""

    workflow: dict[str, Any] | str | None = Field(default=None, description="In place of that of the batch.")


class SubmittedBatch(BaseModel):
    """Several jobs, which are taken together or not at all."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, description="Name of the batch, to list its jobs by.")
    workflow: dict[str, Any] | str | None = Field(default=None, description="Of the jobs that have none of their own.")
    jobs: list[BatchJob] = Field(min_length=1, max_length=MOST_JOBS)


def service_of(request: Request) -> Service:
    """Return the service that the application is for."""
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]


def owner_of(service: Served, authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
    """Return who sends a request; refuses one without a token where tokens are asked for."""
    owner = service.settings.tokens.owner_of(authorization)
    if owner is None:
        raise HTTPException(401, TOKEN_ADVICE, {"WWW-Authenticate": "Bearer"})
    return owner


Owner = Annotated[str, Depends(owner_of)]
routes = APIRouter()


def build_app(service: Service) -> FastAPI:
    """Return the application for a service."""
    app = FastAPI(
        title="Piying",
        description="A queue of ComfyUI workflows. Refusals have the sentences of the command line, in `problems`.",
        version="1",
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service = service
    app.add_middleware(BodyLimit)
    app.include_router(routes)
    _add_refusals(app)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the service while the application is up."""
    service: Service = app.state.service
    service.start()
    try:
        yield
    finally:
        await run_in_threadpool(service.close)


@routes.post("/jobs", status_code=202, tags=["jobs"])
def submit_job(service: Served, owner: Owner, job: SubmittedJob) -> dict[str, Any]:
    """Submit a job."""
    return _submitted(service, owner, [(job.workflow, job)], "")[0]


@routes.post("/batches", status_code=202, tags=["jobs"])
def submit_batch(service: Served, owner: Owner, batch: SubmittedBatch) -> list[dict[str, Any]]:
    """Submit several jobs, all or none."""
    workflows = [batch.workflow if job.workflow is None else job.workflow for job in batch.jobs]
    lacking = next((number for number, found in enumerate(workflows, 1) if found is None), None)
    if lacking is not None:  # pydantic cannot say it: either of the two is enough
        raise RefusedError([problem(f"job {lacking}: has no workflow, and the batch has none.", exit_code=WRONG)])
    return _submitted(service, owner, list(zip(workflows, batch.jobs, strict=True)), batch.name)


@routes.get("/jobs", tags=["jobs"])
def list_jobs(
    service: Served,
    owner: Owner,
    *,
    state: Annotated[list[State] | None, Query(description="Only jobs in one of these states.")] = None,
    batch: Annotated[str, Query(description="Only jobs of this batch.")] = "",
    limit: Limit = 100,
    before: Annotated[str, Query(description="Only jobs submitted before the one of this id.")] = "",
) -> list[dict[str, Any]]:
    """List your jobs, the last submitted first."""
    selection = Selection(owner, tuple(state or ()), batch, limit, before)
    return [job.to_json() for job in service.queue.listed(selection)]


@routes.get("/history", tags=["jobs"])
def history(service: Served, owner: Owner, limit: Limit = 100, before: str = "") -> list[dict[str, Any]]:
    """List your jobs that are over, the last submitted first."""
    return [job.to_json() for job in service.queue.listed(Selection(owner, OVER, "", limit, before))]


@routes.get("/jobs/{job_id}", tags=["jobs"])
def show_job(service: Served, owner: Owner, job_id: JobId) -> dict[str, Any]:
    """Show a job."""
    return _found(service, owner, job_id).to_json()


@routes.delete("/jobs/{job_id}", tags=["jobs"])
def cancel_job(service: Served, owner: Owner, job_id: JobId) -> dict[str, Any]:
    """Cancel a job. One that runs stops at its next step; one that is over stays as it is."""
    job = _found(service, owner, job_id)
    return (service.cancel(job.id) or job).to_json()


@routes.get("/jobs/{job_id}/events", tags=["jobs"], response_class=StreamingResponse)
async def events(
    service: Served, owner: Owner, job_id: JobId, last_event_id: Annotated[int, Header(ge=0)] = 0
) -> StreamingResponse:
    """Follow a job: server-sent events, each with what `--json` of the command line prints, until it is over."""
    job = await run_in_threadpool(_found, service, owner, job_id)
    # nginx holds back what is streamed unless it is told not to.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_followed(service, job, last_event_id), media_type="text/event-stream", headers=headers)


@routes.get("/jobs/{job_id}/results", tags=["results"])
def results(service: Served, owner: Owner, job_id: JobId) -> list[dict[str, Any]]:
    """List the files that a job made."""
    return [dict(file) for file in _found(service, owner, job_id).files]


@routes.get("/jobs/{job_id}/results/{name:path}", tags=["results"], response_class=StreamingResponse)
def result(service: Served, owner: Owner, job_id: JobId, name: str) -> StreamingResponse:
    """Download a file that a job made."""
    job = _found(service, owner, job_id)
    data = service.read(job, name)
    if data is None:
        made = ", ".join(file["name"] for file in job.files) or "none"
        raise HTTPException(404, f"The job {job_id} has no file {name!r}; it is {job.state}. Files: {made}.")
    size = next(file["bytes"] for file in job.files if file["name"] == name)
    shown = urllib.parse.quote(name.rpartition("/")[2])
    headers = {
        "Content-Length": str(size),
        # Always to be saved: what a job made must not run as a page of this address.
        "Content-Disposition": f"attachment; filename*=UTF-8''{shown}",
        "X-Content-Type-Options": "nosniff",
    }
    kind = mimetypes.guess_type(name, strict=False)[0] or "application/octet-stream"
    return StreamingResponse(data, media_type=kind, headers=headers)


@routes.get("/workflows", tags=["workflows"])
def workflows(service: Served, owner: Owner) -> list[str]:
    """List the workflows that can be submitted by name."""
    return service.intake.names()


@routes.get("/health", tags=["server"])
def health(service: Served) -> JSONResponse:
    """Say how the server is: 200, or 503 where no jobs are given to workers any more."""
    found = service.health()
    return JSONResponse(dict(found), 200 if found["status"] == "ok" else 503)


@routes.get("/metrics", tags=["server"], response_class=Response)
def metrics(service: Served, owner: Owner) -> Response:
    """Return metrics as Prometheus reads them."""
    return Response(service.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _submitted(
    service: Service, owner: str, sent: Sequence[tuple[dict[str, Any] | str | None, Values]], batch: str
) -> list[dict[str, Any]]:
    named = {one: service.intake.named(one) for one, _ in sent if isinstance(one, str)}
    asked = [
        (job.id, Asked(named[one] if isinstance(one, str) else one or {}, job.set, job.prompt, job.seed, job.partial))
        for one, job in sent
    ]
    return [job.to_json() for job in service.submit(owner, asked, batch)]


def _found(service: Service, owner: str, job_id: str) -> Job:
    job = service.find(owner, job_id)
    if job is None:
        raise HTTPException(404, f"There is no job {job_id} of yours. GET /jobs lists them.")
    return job


async def _followed(service: Service, job: Job, number: int) -> AsyncIterator[str]:
    """Yield a job's events after a number, as they come, until its last."""
    loop, happened = asyncio.get_running_loop(), asyncio.Event()
    with service.events.listening(job.id, partial(loop.call_soon_threadsafe, happened.set)):
        while True:
            happened.clear()
            found, is_over = service.events.after(job.id, number)
            for number, event in found:
                yield f"id: {number}\ndata: {json.dumps(event, default=str)}\n\n"
            if is_over:
                return
            if not found:
                known = await run_in_threadpool(service.queue.find, job.id)
                if known is not None and known.is_over and not service.events.after(job.id, number)[0]:
                    # Its events are no longer kept.
                    for event in closing_events(known):
                        yield f"data: {json.dumps(event)}\n\n"
                    return
                yield ": waiting\n\n"
            try:
                await asyncio.wait_for(happened.wait(), HEARTBEAT)
            except asyncio.TimeoutError:
                continue


def _refusal(status: int, problems: Sequence[Problem], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"problems": list(problems)}, status, headers)


def _add_refusals(app: FastAPI) -> None:
    """Give every refusal the same form: problems with a message, a node and an input."""

    @app.exception_handler(RefusedError)
    def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _refusal(422, error.problems)

    @app.exception_handler(LimitReached)
    def limited(request: Request, error: LimitReached) -> JSONResponse:
        return _refusal(429, [problem(str(error), exit_code=WRONG)], {"Retry-After": str(error.wait)})

    @app.exception_handler(ConflictError)
    def conflict(request: Request, error: ConflictError) -> JSONResponse:
        return _refusal(409, [problem(str(error), exit_code=WRONG)])

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return _refusal(
            error.status_code, [problem(readable(str(error.detail)), exit_code=WRONG)], dict(error.headers or {})
        )

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [
            problem(readable(f"{'.'.join(map(str, one['loc']))}: {one['msg']}."), exit_code=WRONG)
            for one in error.errors()
        ]
        return _refusal(422, problems)


class BodyLimit:
    """Refuses a request whose body is larger than `BODY_BYTES`, without reading more than that of it."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if re.fullmatch(rb"[0-9]{1,18}", declared) is None or int(declared) > BODY_BYTES:
            refusal = _refusal(413, [problem(TOO_LARGE, exit_code=WRONG)], {"Connection": "close"})
            await refusal(scope, receive, send)
            return
        size = 0

        async def limited() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BODY_BYTES:
                # FastAPI's own: any other exception from here it takes for a body that is no JSON.
                raise FastAPIHTTPException(413, TOO_LARGE, {"Connection": "close"})
            return message

        await self._app(scope, limited, send)
