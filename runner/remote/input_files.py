"""Input files of a workflow: which of its values name one, where it is, and what it is called on a server."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import explain_os_errors
from ...core.samples import INPUT_FILES
from ..definitions import ObjectInfo, combo_choices, declared_inputs
from ..errors import NodeError
from ..graph import Graph, Node

# A name's ending says which folder it is in; the server's own outputs and previews stay there.
ELSEWHERE = (" [output]", " [temp]")
MEDIA = ("image", "video", "audio")
MAX_LISTED = 20
_UNSAFE = re.compile(r"[^\w. ()-]")  # \w has the letters and digits of all scripts


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


def input_files(graph: Graph, info: ObjectInfo, folder: Path) -> Iterator[InputFile | NodeError]:
    """Yield the files that the nodes of a graph read, and what is wrong with the names of others.

    Args:
        graph: the workflow's nodes.
        info: definitions of a server.
        folder: where input files are here.
    """
    for node in graph.values():
        for name, (kind, options, _) in declared_inputs(info[node.class_type]).items():
            choices, value = combo_choices(kind, options), node.inputs.get(name)
            if choices is None or not isinstance(value, str) or value.endswith(ELSEWHERE):
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
