"""Job: a workflow with its values and input files, made ready for one server and judged by its definitions."""

from __future__ import annotations

import functools
import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...core.errors import explain_os_errors
from ...core.samples import INPUT_FILES
from ..definitions import ObjectInfo, combo_choices, declared_inputs
from ..errors import InvalidGraph, NodeError, UnknownClassesError
from ..graph import Graph, Node
from ..session import CLASSES
from ..validate import validate_graph
from ..workflow_file import Workflow, prepared_workflow
from .answers import Refusal

# A name's ending says which folder it is in; the server's own outputs and previews stay there.
ELSEWHERE = (" [output]", " [temp]")
MEDIA = ("image", "video", "audio")
MAX_LISTED = 20
_UNSAFE = re.compile(r"[^\w. ()-]")  # \w has the letters and digits of all scripts
# What a class may check itself, in place of ComfyUI: of one that is not known here only the server can tell.
VALUE_ERRORS = ("value_not_in_list", "value_smaller_than_min", "value_bigger_than_max")


@dataclass(frozen=True)
class InputFile:
    """A file that a node reads.

    Attributes:
        node, input: where it is named.
        path: here; None where the server has it already.
        name: as the workflow has it.
    """

    node: Node
    input: str
    path: Path | None
    name: str

    @property
    def name_there(self) -> str:
        """The name to ask a server for, with its subfolders, of characters that every server takes."""
        parts = self.name.removesuffix(" [input]").replace("\\", "/").split("/")
        return "/".join(_UNSAFE.sub("_", part) for part in parts if part not in ("", ".", ".."))


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """A workflow to run on a server.

    Attributes:
        source: a workflow file of any kind, or decoded JSON of either form.
        values: {"NODE.INPUT": value}; NODE is an id, a title or a class.
        prompt: for the one node that takes a prompt of its own.
        seed: for every seed.
        partial: whether to run the outputs that are valid even where others are not.
        input: the folder that input files are looked for in.
        output: the folder that results go to.
    """

    source: str | Path | Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    seed: int | str | None = None
    partial: bool = False
    input: Path = Path("input")
    output: Path = Path("output")

    def for_server(self, info: ObjectInfo, server: str) -> ServerJob:
        """Return the job as it is for a server with these node definitions.

        Raises:
            WorkflowError: the workflow cannot be read, or a value has no place to go.
            UnknownClassesError: the server lacks node classes.
        """
        titles = {name: str(each.get("display_name") or name) for name, each in info.items()}
        try:
            workflow = prepared_workflow(
                self.source, info, titles, values=self.values, prompt=self.prompt, seed=self.seed
            )
            graph = workflow.graph(titles)
            used = {node.class_type for node in graph.values()} & info.keys()
            stand_ins = {name: _stand_in(info[name], CLASSES.get(name)) for name in used}
            validation = validate_graph(graph, info, stand_ins)
        except UnknownClassesError as error:
            raise UnknownClassesError(error.nodes, server) from error
        named = list(_input_files(graph, info, self.input))
        files = [each for each in named if isinstance(each, InputFile)]
        missing = [each for each in named if isinstance(each, NodeError)]
        looked_for = {(each.node.id, each.input) for each in files} | {(each.node_id, each.input) for each in missing}
        errors = [error for error in validation.errors if (error.node_id, error.input) not in looked_for]
        return ServerJob(workflow, graph, info, [*errors, *missing], files, self.partial and bool(validation.roots))


@dataclass(frozen=True)
class ServerJob:
    """A job for one server.

    Attributes:
        workflow, graph: with the values of the job, and the names that input files have here.
        info: the server's node definitions.
        errors: what is wrong with it, by these definitions.
        files: the input files that it names.
        partial: whether the outputs that are valid may run alone, and there are any.
    """

    workflow: Workflow
    graph: Graph
    info: ObjectInfo
    errors: list[NodeError]
    files: list[InputFile]
    partial: bool

    def check(self, is_strict: bool) -> None:
        """Check the job.

        Args:
            is_strict: whether values that only the server can judge count too.

        Raises:
            InvalidGraph: something is wrong.
        """
        if self.errors and not self.partial and (is_strict or not all(map(self._is_for_server, self.errors))):
            raise InvalidGraph(self.errors)

    def with_files(self, upload: Callable[[Path, str], str]) -> Workflow:
        """Return the workflow with the names that `upload` gives files on the server, from path and name."""
        given = [(each, upload(each.path, each.name_there)) for each in self.files if each.path is not None]
        renamed = [(file.node.id, file.input, name) for file, name in given if name != file.name]
        return self.workflow.with_values(renamed, self.info) if renamed else self.workflow

    def refused(self, refusal: Refusal) -> list[NodeError]:
        """Return what a server has against nodes, in this runner's words where it has found the same."""
        own = {(error.node_id, error.input, error.type): error for error in self.errors}
        found = []
        for node_id, errors in refusal.nodes.items():
            node = self.graph.get(node_id)
            title = str(node) if node else f"node {node_id}"
            for error in errors:
                extra, kind = error.get("extra_info"), str(error.get("type"))
                name = str(extra["input_name"]) if isinstance(extra, dict) and extra.get("input_name") else None
                texts = [str(error.get(each) or "") for each in ("message", "details")]
                if kind == "custom_validation_failed":
                    # The node's own sentence, which ComfyUI repeats for each input that the node checks.
                    texts, name = [texts[1].removeprefix(f"{name} - ")], None
                text = ": ".join(filter(None, texts)).rstrip(".") + "."
                known = own.get((node_id, name, kind))
                found.append(known or NodeError(kind, title, text, node_id, name))
        return list(dict.fromkeys(found))

    def _is_for_server(self, error: NodeError) -> bool:
        foreign = self.graph[error.node_id].class_type not in CLASSES
        if not foreign or error.type not in VALUE_ERRORS or error.input is None:
            return False
        # What a loader names was looked for; what is in no list otherwise may be a path that the class knows.
        options = declared_inputs(self.info[self.graph[error.node_id].class_type])[error.input][1]
        return _is_open(options) or not any(key.endswith("_upload") for key in options)


def _stand_in(definition: dict[str, Any], known: Any) -> Any:
    """Return what stands for a class of a server in the validation.

    Of a class that is known here too, it is known which inputs it checks itself; any other may take inputs that it
    does not declare, as those that the page adds.
    """
    given: dict[str, Any] = {"RETURN_TYPES": definition.get("output", [])}
    if known is None:
        return SimpleNamespace(**given, ACCEPT_ALL_INPUTS=True)
    check = getattr(known, "VALIDATE_INPUTS", None)
    if check is not None:
        # The server runs it, among its own files and models; here its names are wanted alone.
        given["VALIDATE_INPUTS"] = functools.wraps(check)(lambda **_: True)
    return SimpleNamespace(**given)


def _input_files(graph: Graph, info: ObjectInfo, folder: Path) -> Iterator[InputFile | NodeError]:
    """Yield the files that the nodes of a graph read, and what is wrong with the names of others.

    Args:
        graph: the workflow's nodes.
        info: definitions of a server.
        folder: where input files are here.
    """
    for node in graph.values():
        for name, (kind, options, _) in declared_inputs(info[node.class_type]).items():
            choices, value = combo_choices(kind, options), node.inputs.get(name)
            if choices is None or not isinstance(value, str) or value.endswith(ELSEWHERE) or _is_open(options):
                continue
            is_loader = any(key.endswith("_upload") and allowed for key, allowed in options.items())
            if not is_loader and (value in choices or not _is_media(value)):
                continue
            path = _found(value, folder)
            if path is not None or value in choices:
                yield InputFile(node, name, path, value)
            # What lies in a subfolder there is in no list; the server looks itself.
            elif is_loader and "/" not in value and "\\" not in value:
                yield _missing(node, name, choices, folder)


def _is_open(options: dict[str, Any]) -> bool:
    """Return whether the page asks for an input's choices elsewhere, such as the files of the output folder."""
    return "remote" in options or options.get("image_folder", "input") != "input"


def _is_media(name: str) -> bool:
    kind = "image/webp" if name.endswith(".webp") else mimetypes.guess_type(name, False)[0]
    return kind is not None and kind.partition("/")[0] in MEDIA


def _found(name: str, folder: Path) -> Path | None:
    """Return the path of an input file here, None where there is none inside the folder, links followed."""
    bare = name.removesuffix(" [input]").replace("\\", "/")
    try:
        root = folder.resolve()
        path = (root / bare).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return INPUT_FILES.get(bare)
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a circle of links
        return None
    with explain_os_errors(f"{path} cannot be read"):
        path.open("rb").close()
    return path


def _missing(node: Node, name: str, choices: list[Any], folder: Path) -> NodeError:
    listed = ", ".join(map(str, choices[:MAX_LISTED])) or "none"
    rest = f", … ({len(choices) - MAX_LISTED} more)" if len(choices) > MAX_LISTED else ""
    message = (
        f"{name} is {node.inputs[name]!r}, which is neither in {folder.absolute()} nor on the server. Put it there, "
        f"use --input DIR, or name one of the server's: {listed}{rest}."
    )
    return NodeError("value_not_in_list", str(node), message, node.id, name)
