"""Answers kept on disk: the same question to the same model is asked once.

One small JSON file each, named by the hash of everything that decides the answer. Files appear whole,
one that cannot be read or does not answer the question it is named for is passed over, and the oldest
leave when there are too many.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

VERSION = 1  # grows when the same key would give another answer
MOST_FILES = 512
LARGEST = 64 * 1024  # bytes


class AnswerCache:
    """The answers in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: dict[str, Any]) -> str | None:
        """Return the answer to `key`, None where there is none."""
        path = self._path(key)
        try:
            if path.stat().st_size > LARGEST:
                return None
            entry = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(entry, dict) or entry.get("key") != _jsonable(key):
            return None
        text = entry.get("text")
        return text if isinstance(text, str) and text else None

    def put(self, key: dict[str, Any], text: str) -> None:
        """Keep an answer; a folder that cannot be written keeps nothing."""
        data = json.dumps({"key": key, "text": text}, ensure_ascii=False, indent=1)
        # A full disk or a folder of somebody else's costs a second asking, not the run.
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(self._path(key), data)
            self._forget_oldest()

    def _path(self, key: dict[str, Any]) -> Path:
        text = json.dumps({"version": VERSION, "key": key}, ensure_ascii=False, sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def _write(self, path: Path, data: str) -> None:
        handle, beside = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(data)
            Path(beside).replace(path)
        finally:
            Path(beside).unlink(missing_ok=True)

    def _forget_oldest(self) -> None:
        files = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[: max(0, len(files) - MOST_FILES)]:
            path.unlink(missing_ok=True)


def _jsonable(value: Any) -> Any:
    """Return a value as it comes back from JSON: tuples are lists there."""
    return json.loads(json.dumps(value))
