"""ComfyUI's web server and model folders: the pack's routes, and events of a run sent to the tabs that asked for them.

Nothing listens here: ComfyUI's own server does, and its settings say for whom.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PiyingError
from ..files.json_file import parse_json
from ..samples import place_clips
from .base import MODEL_CATEGORIES
from .model_folders import ModelFolders

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from aiohttp.web import FileResponse, Request, Response


Handler = Callable[[dict[str, Any]], dict[str, Any]]
MAX_BODY = 64 * 1024  # bytes of a request
MAX_TABS = 64  # browser tabs that are sent events
PREFIX = "/piying"


def comfy_server() -> Any | None:
    """Return ComfyUI's server; None where the pack does not run inside one."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(server, "instance", None)


def category_folders(category: str) -> tuple[Path, ...]:
    """Return ComfyUI's folders of a category, `extra_model_paths.yaml` included, in the order of `model_folders`."""
    import folder_paths

    models, own = Path(folder_paths.models_dir), Path(folder_paths.models_dir) / category
    known = folder_paths.get_folder_paths(category) if category in folder_paths.folder_names_and_paths else []
    paths = [Path(path) for path in known]
    # What stands before ComfyUI's own folders was put there by `is_default`.
    count = next((number for number, path in enumerate(paths) if path.is_relative_to(models)), 0)
    return tuple(dict.fromkeys([*paths[:count], own, *paths]))


def models_root() -> ModelFolders:
    """Return ComfyUI's models folder, with the folders that models of each category are looked for in and go to."""
    import folder_paths

    return ModelFolders(
        Path(folder_paths.models_dir), {category: category_folders(category) for category in MODEL_CATEGORIES}
    )


def add_routes(handlers: Mapping[str, Handler]) -> None:
    """Have ComfyUI's server answer POST /piying/NAME; nothing happens where there is no server.

    Args:
        handlers: for each name a function from one JSON object to another, or raising PiyingError. All of them run
            in one thread of their own, one request at a time.
    """
    server = comfy_server()
    if server is None:
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="piying")
    for name, handler in handlers.items():
        server.routes.post(f"{PREFIX}/{name}")(_route(handler, pool))


def offer_files(pack: Path) -> None:
    """Serve a pack's scripts, help pages and example workflows where the page asks for them and ComfyUI does not.

    aiohttp compares the path of a static route, percent-encoded, with that of a request, decoded: what lies in a
    folder with a space or a Chinese character in its name is not found. And the page asks for help under the folder's
    name up to the first dot or @.
    """
    server = comfy_server()
    if server is None:
        return
    from urllib.parse import quote

    offered = [("/extensions", pack.name, "", "web"), ("/workflow_templates", pack.name, "", "workflows")]
    if quote(pack.name) == pack.name:
        offered = []
    asked_for = re.split("[.@]", pack.name)[0]
    if asked_for not in ("", pack.name):
        offered.append(("/extensions", asked_for, "/docs", "web/docs"))
    for place, name, below, folder in offered:
        # By a pattern, which is compared with a request's path as it is; aiohttp's versions differ in how that is.
        forms = dict.fromkeys((name, name.replace("%", "%25"), quote(name)))
        pattern = re.sub(r"\\?[{}]", ".", "|".join(map(re.escape, forms)))  # aiohttp takes braces for its own
        server.routes.get(f"{place}/{{pack:{pattern}}}{below}/{{file:.+}}")(_files((pack / folder).resolve()))


def offer_clips() -> None:
    """Put the pack's clips into ComfyUI's input folder, so that its Load Video lists what the templates begin with."""
    if comfy_server() is None:
        return
    import folder_paths

    place_clips(Path(folder_paths.get_input_directory()))


def _files(folder: Path) -> Callable[[Request], Any]:
    async def handle(request: Request) -> FileResponse:
        from aiohttp.web import FileResponse, HTTPNotFound

        name = request.match_info["file"]
        file = folder if "\0" in name else (folder / name).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise HTTPNotFound
        return FileResponse(file)

    return handle


def _route(handler: Handler, pool: ThreadPoolExecutor) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        import asyncio

        from aiohttp.web import json_response

        refused = refusal(request.headers)
        if refused:
            return json_response({"error": refused}, status=403)
        try:
            body = parse(await _read(request))
            found = await asyncio.get_running_loop().run_in_executor(pool, handler, body)
        except PiyingError as error:
            return json_response({"error": str(error)}, status=400)
        return json_response(found)

    return handle


def refusal(headers: Mapping[str, str]) -> str | None:
    """Return why a request is refused: only ComfyUI's own pages, and programs that are no browser, may send one."""
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
    """Return the JSON object of a request's body.

    Raises:
        PiyingError: it is no JSON object.
    """
    try:
        body = parse_json(data)
    except ValueError as error:
        raise PiyingError("The question is no JSON.") from error
    if not isinstance(body, dict):
        raise PiyingError("The question is no JSON object.")
    return body


class Tabs:
    """The browser tabs, and programs, that are sent events of a run; ComfyUI drops messages to those that are gone."""

    def __init__(self) -> None:
        self._moving: dict[str, bool] = {}
        self._programs: set[str] = set()

    def join(self, client: str, moving: bool, is_page: bool = True) -> None:
        """Send events to this tab from now on, with moving previews or without.

        A program, which is no page, shows progress and nothing of what nodes made.
        """
        self._moving.pop(client, None)
        while len(self._moving) >= MAX_TABS:
            del self._moving[next(iter(self._moving))]
        self._moving[client] = moving
        self._programs = (self._programs & self._moving.keys()) - {client}
        if not is_page:
            self._programs.add(client)

    def current(self) -> str | None:
        """Return the tab that started what runs now, where it has joined."""
        client = getattr(comfy_server(), "client_id", None)
        return client if client in self._moving else None

    def has_page(self) -> bool:
        """Return whether the tab that started what runs now is a page that has joined."""
        client = self.current()
        return client is not None and client not in self._programs

    def wants_motion(self) -> bool:
        """Return whether the tab of the current run wants moving previews."""
        return self._moving.get(self.current() or "", False)

    def send(self, kind: str, event: dict[str, Any]) -> None:
        """Send an event of the running node to the tab of the current run, where that tab has joined."""
        client, server = self.current(), comfy_server()
        if client is not None and server is not None:
            server.send_sync(kind, {"node": server.last_node_id, **event}, client)


tabs = Tabs()
