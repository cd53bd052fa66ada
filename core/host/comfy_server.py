"""ComfyUI's web server: our questions answered there, and news of a run sent to the tabs that asked for them.

Nothing is opened here: ComfyUI's own server listens, and its settings say for whom.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from aiohttp.web import Request, Response


Answer = Callable[[dict[str, Any]], dict[str, Any]]
MAX_BODY = 64 * 1024  # bytes of a question
MAX_TABS = 64  # browser tabs that are told how a run goes
PREFIX = "/piying"


def comfy_server() -> Any | None:
    """Return ComfyUI's server; None where the pack does not run inside one."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(server, "instance", None)


def models_root() -> Path:
    """Return ComfyUI's models folder."""
    import folder_paths

    return Path(folder_paths.models_dir)


def add_routes(answers: Mapping[str, Answer]) -> None:
    """Have ComfyUI's server answer POST /piying/NAME; nothing happens where there is no server.

    Args:
        answers: for each name what turns a JSON object into another, or raises PiyingError. It runs in a thread
            of its own, one question at a time.
    """
    server = comfy_server()
    if server is None:
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="piying")
    for name, answer in answers.items():
        server.routes.post(f"{PREFIX}/{name}")(_handler(answer, pool))


def offer_help(pack: Path) -> None:
    """Serve a pack's help pages where the page asks for them.

    It asks under the folder's name up to the first dot or @, ComfyUI serves the whole name.
    """
    server = comfy_server()
    asked_for = re.split("[.@]", pack.name)[0]
    if server is not None and asked_for not in ("", pack.name):
        server.routes.static(f"/extensions/{asked_for}/docs", pack / "web" / "docs")


def _handler(answer: Answer, pool: ThreadPoolExecutor) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        import asyncio

        from aiohttp.web import json_response

        refused = refusal(request.headers)
        if refused:
            return json_response({"error": refused}, status=403)
        try:
            question = parse(await _read(request))
            found = await asyncio.get_running_loop().run_in_executor(pool, answer, question)
        except PiyingError as error:
            return json_response({"error": str(error)}, status=400)
        return json_response(found)

    return handle


def refusal(headers: Mapping[str, str]) -> str | None:
    """Return why a question is not answered: only ComfyUI's own pages, and programs that are no browser, may ask."""
    from urllib.parse import urlsplit

    content, _, _ = headers.get("Content-Type", "").partition(";")
    if content.strip().lower() != "application/json":
        return "Send JSON, with the header Content-Type: application/json."
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return None if site == "same-origin" else "Other websites may not ask this."
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("Host", "").lower():
        return "Other websites may not ask this."
    return None


async def _read(request: Request) -> bytes:
    data = b""
    while chunk := await request.content.read(MAX_BODY + 1 - len(data)):
        data += chunk
        if len(data) > MAX_BODY:
            raise PiyingError(f"The question is longer than {MAX_BODY} bytes.")
    return data


def parse(data: bytes) -> dict[str, Any]:
    """Return a question.

    Raises:
        PiyingError: it is no JSON object.
    """
    try:
        question = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PiyingError("The question is no JSON.") from error
    if not isinstance(question, dict):
        raise PiyingError("The question is no JSON object.")
    return question


class Tabs:
    """The browser tabs that want to hear how a run goes; ComfyUI drops messages to tabs that are gone."""

    def __init__(self) -> None:
        self._moving: dict[str, bool] = {}

    def join(self, client: str, moving: bool) -> None:
        """Tell this tab from now on, with moving previews or without."""
        self._moving.pop(client, None)
        while len(self._moving) >= MAX_TABS:
            del self._moving[next(iter(self._moving))]
        self._moving[client] = moving

    def current(self) -> str | None:
        """Return the tab that started what runs now, where it asked to be told."""
        client = getattr(comfy_server(), "client_id", None)
        return client if client in self._moving else None

    def wants_motion(self) -> bool:
        """Return whether the tab of the current run wants moving previews."""
        return self._moving.get(self.current() or "", False)

    def tell(self, kind: str, news: dict[str, Any]) -> None:
        """Send news on the running node to the tab of the current run; a tab that has not asked hears nothing."""
        client, server = self.current(), comfy_server()
        if client is not None and server is not None:
            server.send_sync(kind, {"node": server.last_node_id, **news}, client)


tabs = Tabs()
