"""Node definitions from a file, and the API form into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.atomic_write import write_text
from ..core.errors import explain_os_errors
from .definitions import ObjectInfo
from .errors import WorkflowError


def read_object_info(path: Path) -> ObjectInfo:
    """Return the node definitions saved from a ComfyUI server's /object_info.

    Raises:
        WorkflowError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WorkflowError(f"--object-info {path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"--object-info {path}: not valid JSON ({error}).") from error
    if not isinstance(found, dict) or not all(_is_definition(each) for each in found.values()):
        raise WorkflowError(f"--object-info {path}: does not hold what a ComfyUI server answers to /object_info.")
    return found


def _is_definition(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("input"), dict)


def write_api(path: Path, api: dict[str, Any]) -> None:
    """Write the API form of a workflow; a file that is there stays whole until the new one is.

    Raises:
        PiyingError: the file cannot be written.
    """
    with explain_os_errors(f"--export-api {path}: cannot write it"):
        write_text(path, json.dumps(api, indent=2, ensure_ascii=False) + "\n")
