"""JSON files: read with a limit, so that a damaged or hostile one costs an error and nothing else."""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path
from typing import Any

from ..errors import PiyingError, clipped, file_error

# The largest that models come with are vocabularies (tokenizer.json of Qwen3: 11 MB).
LARGEST_JSON = 64 << 20


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError("not in UTF-8; an editor may have saved it in another encoding") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def load_json(path: Path, limit: int = LARGEST_JSON) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it holds no JSON, or more than `limit` bytes.
    """
    # A pipe would be waited for without end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"more than {limit >> 20} MiB" if limit >> 20 else f"more than {limit} bytes")
    return parse_json(data)


def read_json(path: Path, advice: str = "Fetch it again.", limit: int = LARGEST_JSON) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        advice: what to do where the file is damaged.
        limit: bytes that it may have.

    Raises:
        PiyingError: the file cannot be read or holds no object.
    """
    try:
        value = load_json(path, limit)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise file_error(f"Cannot read {path}", error.errno, "") from error
        raise PiyingError(f"{path}: cannot be read ({clipped(str(error), 100)}). {advice}") from error
    if not isinstance(value, dict):
        raise PiyingError(f"{path}: is no table of settings. {advice}")
    return value


def read_json_or_empty(path: Path, limit: int = LARGEST_JSON) -> dict[str, Any]:
    """Return the object in a JSON file; empty where it cannot be read, is longer than `limit`, or holds no object."""
    try:
        return read_json(path, limit=limit)
    except PiyingError:
        return {}
