"""Workflow files of any kind: read into the API form that runs, given values, written."""

from __future__ import annotations

import copy
import difflib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..core.atomic_write import write_text
from ..core.errors import PiyingError, explain_os_errors
from ..core.media.metadata import read_workflow
from .definitions import ObjectInfo, declared_inputs
from .errors import WorkflowError
from .graph import Assignment, Graph, Link, find_node, parse_graph
from .placeholders import NamedNode, filled, named_nodes
from .validate import NumberTooLargeError, converted

log = logging.getLogger("piying")

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 100
MAX_ENCODINGS = 3  # of a text in a text
SPACE = "\0\x1a\ufeff \t\r\n"  # around JSON, with what fills blocks, ends files in DOS and marks UTF-8
JSON_STARTS = ("{", "[", '"')
FROZEN = "frozen_prompt"  # of Expand Prompt: what it gives in place of a new prompt
SEED_NAMES = ("seed", "noise_seed")


@dataclass(frozen=True)
class Workflow:
    """What runs, and what is embedded in the files it makes.

    Attributes:
        api: the API form.
        extra_pnginfo: `{"workflow": UI form}` where the file had one, else empty.
        named: the nodes of a UI form that placeholders may speak of; those of an API form are all in it.
    """

    api: dict[str, Any]
    extra_pnginfo: dict[str, Any]
    named: list[NamedNode] = field(default_factory=list)

    def graph(self, titles: dict[str, str]) -> Graph:
        """Return the graph to run.

        Raises:
            WorkflowError: the API form is malformed.
        """
        return parse_graph(self.api, titles)

    def inside_instances(self, values: Mapping[str, Any], info: ObjectInfo, titles: dict[str, str]) -> dict[str, Any]:
        """Return {"NODE.INPUT": value} with inputs of subgraph instances replaced by those inside that they feed.

        The API form has no instances: what names a node of it stays as it is.

        Raises:
            WorkflowError: the UI form is malformed.
        """
        graph, ui = self.graph(titles), self.extra_pnginfo.get("workflow")
        names = {*graph, *(node.title for node in graph.values()), *(node.class_type for node in graph.values())}
        outer = {target: target.rpartition(".") for target in values if target.rpartition(".")[0] not in names}
        if not outer or ui is None:
            return dict(values)
        # Not at the top: see `with_values`.
        from .ui_edit import instance_inputs

        known = instance_inputs(ui, info)
        found: dict[str, Any] = {}
        for target, value in values.items():
            node, _, name = outer.get(target, ("", "", ""))
            inner = [f"{one}.{own}" for one, own in known.get((node, name), ()) if one in graph]
            found |= dict.fromkeys(inner or [target], value)
        return found

    def with_values(self, assignments: list[Assignment], info: ObjectInfo) -> Workflow:
        """Return the workflow with values of the command line written into both of its forms.

        Placeholders in file names are filled in afterwards, so those of the values and those that speak of them are
        too. Where the UI form cannot say the same as the API form, it is left out.

        Raises:
            WorkflowError: a value is not of the input's type.
        """
        api, typed = copy.deepcopy(self.api), []
        for node_id, name, value in assignments:
            node = api[node_id]
            known = node["class_type"] in info
            kind, options = declared_inputs(info[node["class_type"]])[name][:2] if known else ("STRING", {})
            try:
                typed.append((node_id, name, converted(value, kind)))
            except NumberTooLargeError as error:
                raise WorkflowError(f"{name} is {value}. {error.remedy(options)}") from error
            except (ValueError, OverflowError) as error:
                wanted = {"INT": "a whole number", "FLOAT": "a finite number"}.get(str(kind), str(kind))
                raise WorkflowError(f"{name} is {value!r}, which is not {wanted}.") from error
        for node_id, name, value in typed:
            api[node_id].setdefault("inputs", {})[name] = value
        extra = dict(self.extra_pnginfo)
        if typed and "workflow" in extra:
            # Not at the top: few runs set values in a UI workflow, and every start would pay for the import.
            from .ui_edit import with_values

            ui = with_values(extra.pop("workflow"), info, typed)
            extra |= {} if ui is None else {"workflow": ui}
        given: dict[str, dict[str, Any]] = {}
        for node_id, name, value in typed:
            given.setdefault(node_id, {})[name] = value
        named = [replace(node, values=node.values | given.get(node.id, {})) for node in self.named]
        return Workflow(filled(api, named or named_nodes(api), datetime.now()), extra, named)


def workflow_text(workflow: dict[str, Any]) -> str:
    """Return what a file of a workflow of either form holds."""
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"


def write_workflow(path: Path, workflow: dict[str, Any], option: str) -> None:
    """Write a workflow of either form; a file that is there stays whole until the new one is. Links are followed.

    Raises:
        PiyingError: the file, which `option` of the command line names, cannot be written.
        WorkflowError: it is a folder, a pipe or a device, in whose place a file would come.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise WorkflowError(f"{option} {path}: is there already and is not a file. Name a file to write.")
    text = workflow_text(workflow)
    with explain_os_errors(f"{option} {path}: cannot write it"):
        write_text(path, text)


def read_workflow_file(path: Path, info: ObjectInfo, keep_unknown: bool = False) -> Workflow:
    """Return the workflow of a JSON file (UI or API form), or of a PNG, WEBP, MP4 or WEBM that carries one.

    Args:
        path: the file.
        info: node definitions.
        keep_unknown: keep nodes of classes that are not in `info`, those of a UI form with their links alone.

    Raises:
        WorkflowError: the file is not there, or holds no workflow that can be read.
    """
    return workflow_from_json(decoded_file(path), str(path), info, keep_unknown)


def decoded_file(path: Path) -> Any:
    """Return what a workflow file of any kind holds, as `workflow_from_json` takes it.

    Raises:
        WorkflowError: the file is not there, or holds neither JSON nor metadata with a workflow.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device could be read for ever
            raise WorkflowError(f"{path}: is not a file. Give a workflow file.")
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise WorkflowError(f"{path}: cannot be read ({error.strerror}). Give a workflow file.") from error
    # By content: browsers and chats rename what they pass on.
    encoding = json.detect_encoding(head)
    if not head.decode(encoding, "ignore").lstrip(SPACE).startswith(JSON_STARTS):
        try:
            texts = read_workflow(path)
        except PiyingError as error:
            raise WorkflowError(str(error)) from error
        return {key: _decoded(texts[key], f"{path}, {key}") for key in ("prompt", "workflow") if key in texts}
    if path.stat().st_size > MAX_BYTES:
        raise WorkflowError(f"{path}: a workflow of {path.stat().st_size} bytes; at most {MAX_BYTES} are read.")
    try:
        text = path.read_text(encoding=encoding)
    except (OSError, UnicodeError) as error:
        raise WorkflowError(f"{path}: cannot be read as text ({error}).") from error
    return _decoded(text, str(path))


def workflow_from_json(decoded: Any, origin: str, info: ObjectInfo, keep_unknown: bool = False) -> Workflow:
    """Return the workflow of decoded JSON; `origin` names it in messages.

    Beside the two forms it may be what holds them: the body of a request to /prompt, the result of the browser's
    graphToPrompt, or the metadata of a media file.

    Raises:
        WorkflowError: it holds no workflow of either form.
    """
    # Not at the top: the command line should answer at once, and most of its answers need no conversion.
    from .ui_format import is_ui_format, unfilled

    # Copies and comparisons of what follows go as deep as the data, which Python's stack would not survive.
    level: list[Any] = [decoded]
    for _ in range(MAX_DEPTH):
        containers = [value for value in level if isinstance(value, dict | list)]
        level = [inner for each in containers for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            break
    else:
        raise WorkflowError(f"{origin}: nested too deeply to be a workflow.")
    if not isinstance(decoded, dict):
        raise WorkflowError(f"{origin}: a workflow is a JSON object, this is a {type(decoded).__name__}.")
    api, ui = (None, decoded) if is_ui_format(decoded) else _unpacked(decoded, origin)
    extra = {"workflow": ui} if ui else {}
    # The API form, not the UI form beside it: it is what ran, values of the command line included.
    if api is not None:
        return Workflow(api, extra)
    if not is_ui_format(ui):
        raise WorkflowError(f"{origin}: its workflow has no nodes and links, so it is not what the browser saves.")
    api, named = unfilled(ui, info, keep_unknown)
    return Workflow(api, extra, named)


def prepared_workflow(
    source: str | Path | Mapping[str, Any],
    info: ObjectInfo,
    titles: dict[str, str],
    *,
    values: Mapping[str, Any],
    prompt: str | None,
    seed: int | str | None,
) -> Workflow:
    """Return a workflow with values written into it.

    Args:
        source: a workflow file of any kind, or decoded JSON of either form.
        info: node definitions.
        titles: display names by class, for nodes without a title of their own.
        values, prompt, seed: see `find_assignments`.

    Raises:
        WorkflowError: the file cannot be read, or a value has no place to go.
    """
    if isinstance(source, Mapping):
        # Through JSON and back: the caller's objects are not changed, and tuples become the lists that links are.
        workflow = workflow_from_json(json.loads(json.dumps(source)), "the workflow", info)
    else:
        workflow = read_workflow_file(Path(source), info)
    graph = workflow.graph(titles)
    inside = workflow.inside_instances(values, info, titles)
    return workflow.with_values(find_assignments(graph, info, values=inside, prompt=prompt, seed=seed), info)


def _unpacked(found: dict[str, Any], origin: str) -> tuple[dict[str, Any] | None, Any]:
    """Return the API form and the UI form that an object holds, either of them None; a bare API form holds itself."""

    def graph(key: str) -> Any:
        value = found.get(key)
        # Metadata that was copied by hand has graphs as texts.
        if isinstance(value, str) and value.lstrip(SPACE).startswith(("{", '"{')):
            value = _decoded(value, f"{origin}, {key}")
        # In a bare API form the keys are ids of nodes, which may have any name.
        return value if isinstance(value, dict) and "class_type" not in value else None

    extra = found.get("extra_data")
    embedded = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
    ui = graph("workflow") or (embedded.get("workflow") if isinstance(embedded, dict) else None)
    for key in ("prompt", "output"):
        if (api := graph(key)) is not None and (api or not ui):
            return api, ui
    return (None, ui) if ui else (found, None)


# Backslashes that are a text's own, pairs of surrogates, and halves of them: what JavaScript leaves of a cut text.
_ESCAPES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _without_halves(text: str, origin: str) -> str:
    """Return a text in JSON with halves of surrogate pairs, which nothing can encode, replaced by U+FFFD."""
    if "\\ud" not in text and "\\uD" not in text:
        return text
    halves = 0

    def whole(found: re.Match[str]) -> str:
        nonlocal halves
        halves += found["half"] is not None
        return found[0] if found["half"] is None else "\\ufffd"

    text = _ESCAPES.sub(whole, text)
    if halves:
        log.warning("%s: %d halves of characters, of texts that were cut, become \ufffd.", origin, halves)
    return text


def _decoded(text: str, origin: str) -> Any:
    """Return the value of a text in JSON; one that is itself a text in JSON is decoded once more."""
    value: Any = text
    try:
        for _ in range(MAX_ENCODINGS):
            if value is not text and not (isinstance(value, str) and value.lstrip(SPACE).startswith(JSON_STARTS)):
                break
            value = json.loads(_without_halves(value.strip(SPACE), origin), object_pairs_hook=_unique_keys)
        return value
    except RecursionError as error:
        raise WorkflowError(f"{origin}: nested too deeply to be a workflow.") from error
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise WorkflowError(f"{origin}: not valid JSON ({error}).") from error
        rest = error.doc[error.pos :][:20]
        raise WorkflowError(
            f"{origin}: its JSON ends in line {error.lineno}, and more follows it: {rest!r}. Remove what follows."
        ) from error
    except ValueError as error:
        raise WorkflowError(f"{origin}: not valid JSON ({error}).") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two entries of one name: only one of two nodes with the same id would run."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"two entries are called {name!r}")
        found[name] = value
    return found


# Values from outside: --set, --prompt, --seed


def split_set(text: str) -> tuple[str, str]:
    """Return target and value of `NODE.INPUT=VALUE`.

    Raises:
        WorkflowError: the text has another form.
    """
    target, equals, value = text.partition("=")
    if not equals or "." not in target:
        raise WorkflowError(f"--set {text!r}: write it as NODE.INPUT=VALUE, such as 5.seed=7.")
    return target, value


def find_assignments(
    graph: Graph, info: ObjectInfo, *, values: Mapping[str, Any], prompt: str | None, seed: int | str | None
) -> list[Assignment]:
    """Return what to write where.

    Args:
        graph: the workflow's nodes.
        info: their definitions.
        values: {"NODE.INPUT": value}; NODE is an id, a title or a class.
        prompt: for the one node that takes a prompt of its own.
        seed: for every seed that is not linked.

    Raises:
        WorkflowError: a value has no place to go, or several.
    """
    found: list[Assignment] = []
    if prompt is not None:
        node = graph[_prompt_node(graph)]
        found.append((node.id, "prompt", prompt))
        frozen = node.inputs.get(FROZEN)
        if isinstance(frozen, str) and frozen.strip():
            log.warning("--prompt: %s has a %s, which is emptied: it would stand for every prompt.", node, FROZEN)
            found.append((node.id, FROZEN, ""))
    if seed is not None:
        seeds = [
            (node.id, name, seed)
            for node in graph.values()
            for name in SEED_NAMES
            if name in node.inputs and not isinstance(node.inputs[name], Link)
        ]
        if not seeds:
            raise WorkflowError("--seed: no node of the workflow has a seed of its own.")
        found += seeds
    # Last, since they are the most exact: they win over --prompt and --seed.
    for target, value in values.items():
        name, _, input_name = target.rpartition(".")
        node = find_node(name, graph)
        if node.class_type in info and input_name not in (declared := declared_inputs(info[node.class_type])):
            near = difflib.get_close_matches(input_name, declared, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise WorkflowError(f"{target}: {node} has no input {input_name!r}.{hint} It has: {', '.join(declared)}.")
        found.append((node.id, input_name, value))
    return found


def _prompt_node(graph: Graph) -> str:
    nodes = [node for node in graph.values() if isinstance(node.inputs.get("prompt"), str)]
    if len(nodes) == 1:
        return nodes[0].id
    if not nodes:
        raise WorkflowError("--prompt: no node of the workflow takes a prompt of its own. Use --set NODE.INPUT=TEXT.")
    listed = ", ".join(f'--set {node.id}.prompt="…" ({node.title})' for node in nodes)
    raise WorkflowError(f"--prompt: several nodes take a prompt. Say which: {listed}.")
