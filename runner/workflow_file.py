"""A workflow file of any kind → the API form that runs, and the UI form where there is one."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import PiyingError
from ..core.media.metadata import read_workflow
from .definitions import ObjectInfo, declared_inputs
from .errors import WorkflowError
from .graph import Graph, parse_graph
from .overrides import Assignment
from .validate import converted

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 100


@dataclass(frozen=True)
class Workflow:
    """What runs, and what is embedded in the files it makes.

    Attributes:
        api: the API form.
        extra_pnginfo: `{"workflow": UI form}` where the file had one, else empty.
    """

    api: dict[str, Any]
    extra_pnginfo: dict[str, Any]

    def graph(self, titles: dict[str, str]) -> Graph:
        """Return the graph to run.

        Raises:
            WorkflowError: the API form is malformed.
        """
        return parse_graph(self.api, titles)

    def with_values(self, assignments: list[Assignment], info: ObjectInfo) -> Workflow:
        """Return the workflow with values of the command line written into both of its forms.

        Where the UI form cannot say the same as the API form, it is left out.

        Raises:
            WorkflowError: a value is not of the input's type.
        """
        api = copy.deepcopy(self.api)
        typed = [(node_id, name, _typed(api[node_id], name, text, info)) for node_id, name, text in assignments]
        for node_id, name, value in typed:
            api[node_id].setdefault("inputs", {})[name] = value
        extra = dict(self.extra_pnginfo)
        if typed and "workflow" in extra:
            from .ui_edit import with_values

            ui = with_values(extra.pop("workflow"), info, typed)
            extra |= {} if ui is None else {"workflow": ui}
        return Workflow(api, extra)


def _typed(node: dict[str, Any], name: str, text: Any, info: ObjectInfo) -> Any:
    kind = declared_inputs(info[node["class_type"]])[name][0] if node["class_type"] in info else "STRING"
    try:
        return converted(text, kind)
    except (ValueError, OverflowError) as error:
        wanted = {"INT": "a whole number", "FLOAT": "a finite number"}.get(str(kind), str(kind))
        raise WorkflowError(f"{name} is {text!r}, which is not {wanted}.") from error


def read_workflow_file(path: Path, info: ObjectInfo) -> Workflow:
    """Return the workflow of a JSON file (UI or API form), or of a PNG, WEBP, MP4 or WEBM that carries one.

    Raises:
        WorkflowError: the file is not there, or holds no workflow that can be read.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device could be read for ever
            raise WorkflowError(f"{path}: is not a file. Give a workflow file.")
        with path.open("rb") as file:
            head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        raise WorkflowError(f"{path}: cannot be read ({error.strerror}). Give a workflow file.") from error
    if head[:1] in (b"{", b"["):
        return workflow_from_json(_decoded(_text(path), str(path)), str(path), info)
    return _from_media(path)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise WorkflowError(f"{path}: a workflow of {path.stat().st_size} bytes; at most {MAX_BYTES} are read.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkflowError(f"{path}: cannot be read as text ({error}).") from error


def _decoded(text: str, origin: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError as error:
        raise WorkflowError(f"{origin}: nested too deeply to be a workflow.") from error
    except ValueError as error:
        raise WorkflowError(f"{origin}: not valid JSON ({error}).") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two entries of one name: only one of two nodes with the same id would run."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two entries are called {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _check_depth(decoded: Any, origin: str) -> None:
    level: list[Any] = [decoded]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level if isinstance(value, dict | list) for inner in _inside(value)]
        if not level:
            return
    raise WorkflowError(f"{origin}: nested too deeply to be a workflow.")


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def workflow_from_json(decoded: Any, origin: str, info: ObjectInfo) -> Workflow:
    """Return the workflow of decoded JSON; `origin` names it in messages.

    Raises:
        WorkflowError: it is no workflow of either form.
    """
    # Not at the top: the command line should answer at once, and most of its answers need no conversion.
    from .ui_format import is_ui_format, to_api

    _check_depth(decoded, origin)
    if is_ui_format(decoded):
        return Workflow(to_api(decoded, info), {"workflow": decoded})
    if not isinstance(decoded, dict):
        raise WorkflowError(f"{origin}: a workflow is a JSON object, this is a {type(decoded).__name__}.")
    return Workflow(decoded, {})


def _from_media(path: Path) -> Workflow:
    """Take the API form: it is what ran, values of the command line included."""
    try:
        texts = read_workflow(path)
    except PiyingError as error:
        raise WorkflowError(str(error)) from error
    if "prompt" not in texts:
        raise WorkflowError(f"{path}: carries no prompt, the API form of the graph that made it, so it cannot be run.")
    extra = {name: _decoded(texts[name], f"{path}, {name}") for name in ("workflow",) if name in texts}
    return Workflow(_decoded(texts["prompt"], f"{path}, prompt"), extra)
