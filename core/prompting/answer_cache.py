"""Answer cache: expanded prompts on disk, so that one model is asked the same question once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..disk_cache import DiskCache, entry_name
from ..files.json_file import parse_json

VERSION = 1  # grows when the same key would give another answer
MOST_FILES = 512
LARGEST = 64 * 1024  # bytes


class AnswerCache:
    """The answers in one folder."""

    def __init__(self, folder: Path) -> None:
        self._cache = DiskCache(folder, ".json", max_entries=MOST_FILES, largest=LARGEST)

    def get(self, key: dict[str, Any]) -> str | None:
        """Return the answer to `key`, None where there is none."""
        data = self._cache.get(self._name(key))
        try:
            text = None if data is None else parse_json(data)
        except ValueError:
            return None
        return text if isinstance(text, str) and text else None

    def put(self, key: dict[str, Any], text: str) -> None:
        """Write an answer, and let the least recently used go."""
        self._cache.put(self._name(key), json.dumps(text, ensure_ascii=False).encode())

    @staticmethod
    def _name(key: dict[str, Any]) -> str:
        return entry_name({"version": VERSION, "key": key})
