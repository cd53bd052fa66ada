"""Results of the day with a card: one JSON file for a card, and its tables in Markdown."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from machine import ROOT, write_json

Kind = Literal["done", "failed", "timeout", "cut", "left"]
# In the order in which a call takes them up. What failed or never ended comes last: it may do so again.
ORDER: tuple[Kind, ...] = ("left", "cut", "failed", "timeout")
GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
        outcome: "left" was not begun, "cut" ended with the call, "timeout" at its own limit.
        reason: why it is not done.
        planned, seconds: estimated, and taken.
        peak_mib: of the card, all programs, by the driver; None without one.
        found: the part's own figures, those until it ended.
        said: the last lines of its output, unless it is done.
        source: of the code it ran.
    """

    name: str
    shows: str
    outcome: Kind
    reason: str
    planned: float
    seconds: float = 0.0
    peak_mib: int | None = None
    found: Any = None
    said: Sequence[str] = ()
    source: str = field(default_factory=lambda: source())


class Named(Protocol):
    """A part."""

    @property
    def name(self) -> str:
        """Return its key."""


AnyPart = TypeVar("AnyPart", bound=Named)


def source() -> str:
    """Return a checksum of the code: with other code a failed part is worth another try."""
    whole = hashlib.sha256()
    for folder in ("core", "benchmarks", "tests/gpu"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


class Results:
    """What is known of a card, kept in a file that is written after each part."""

    def __init__(self, path: Path, about: dict[str, Any], parts: dict[str, dict[str, Any]]) -> None:
        self.path, self.about, self.parts = path, about, parts
        self.page = path.with_suffix(".md")

    @classmethod
    def open(cls, path: Path, committed: Path, about: dict[str, Any]) -> Results:
        """Return those of the calls before: of `path`, or else those that came with the repository."""
        known = next((each for each in (path, committed) if each.is_file()), None)
        before = {} if known is None else cls.parse(known.read_text(encoding="utf-8"))
        return cls(path, about, before.get("parts", {}))

    @staticmethod
    def parse(text: str) -> Any:
        """Return what a file of figures holds."""
        return json.loads(text)

    def pending(self, parts: Sequence[AnyPart]) -> list[AnyPart]:
        """Return the parts that are not done: those never begun first, those that failed with this code last."""
        now = source()

        def rank(part: AnyPart) -> int:
            row = self.parts.get(part.name, {})
            failed_before = row.get("outcome") in ("failed", "timeout") and row.get("source") != now
            return 0 if not row or failed_before else ORDER.index(row["outcome"])

        waiting = [part for part in parts if self.parts.get(part.name, {}).get("outcome") != "done"]
        return sorted(waiting, key=rank)

    def forget(self, name: str) -> None:
        """Have a part run again."""
        self.parts.pop(name, None)

    def put(self, outcome: Outcome) -> None:
        """Write how a part ended. One that got less far than before leaves the figures of before."""
        row = asdict(outcome)
        before = self.parts.get(outcome.name, {})
        if row["found"] is None and before.get("found") is not None:
            row["found"] = before["found"]
        self.parts[outcome.name] = row
        write_json(self.path, {"card": self.about, "parts": self.parts})
        write_text = import_module("piying.core.atomic_write").write_text
        write_text(self.page, self.markdown())

    def leave(self, name: str, shows: str, planned: float, reason: str) -> None:
        """Note that a part is left for another call; what is known of it stays."""
        if self.parts.get(name, {}).get("outcome") not in ("cut", "failed", "timeout"):
            self.put(Outcome(name, shows, "left", reason, planned))

    def line(self, name: str) -> str:
        """Return a part's outcome in a line."""
        row = self.parts[name]
        return f"{name}: {row['outcome']} after {row['seconds']:.0f} s" + (
            f", {row['reason']}" if row["reason"] else ""
        )

    def markdown(self) -> str:
        """Return the page: the card, the parts, and each part's figures."""
        about = ", ".join(str(value) for value in self.about.values() if value)
        lines = [f"# {self.about['name']}", "", f"{about}. `bash benchmarks/gpu_day.sh run`", ""]
        overview = [["part", "outcome", "seconds", "planned", "peak GiB, by the driver"]]
        for name, row in self.parts.items():
            peak = "" if row["peak_mib"] is None else f"{row['peak_mib'] / 1024:.1f}"
            overview.append([name, row["outcome"], f"{row['seconds']:.0f}", f"{row['planned']:.0f}", peak])
        lines += table(overview)
        for name, row in self.parts.items():
            lines += ["", f"## {row['shows']}", "", f"`{name}`"]
            if row["reason"]:
                lines += ["", f"{row['outcome'].capitalize()}: {row['reason']}"]
            for title, rows in groups(row["found"]):
                lines += ["", *([f"{title}:", ""] if title else []), *table(cells(rows))]
            notes = (row["found"] or {}).get("notes", {}) if isinstance(row["found"], dict) else {}
            lines += ["", *(f"- {each}: {why}" for each, why in notes.items())] if notes else []
        return "\n".join(lines) + "\n"


def table(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown; the first row is the head."""
    head, *rest = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *rest]


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def groups(found: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the lists of rows in a part's figures, with their names; figures by name become rows."""
    if not isinstance(found, dict):
        return []
    named = {key: value for key, value in found.items() if isinstance(value, list) and value}
    kept = [(key, value) for key, value in named.items() if isinstance(value[0], dict)]
    for key, value in found.items():
        if isinstance(value, dict) and key != "notes" and value:
            rows = [
                {"name": name, **(row if isinstance(row, dict) else {"value": row})} for name, row in value.items()
            ]
            kept.append((key, rows))
    return [(key.replace("_", " ") if len(kept) > 1 else "", rows) for key, rows in kept]


def _seconds(value: Any) -> str:
    """Return a median of times, or times by phase."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {taken:.1f}" for name, taken in value.items())
    times = value if isinstance(value, list) else [value]
    return f"{statistics.median(times):.4g}" if times else "-"


def _gigabytes(value: Any) -> str:
    return f"{value / GIB:.2f}"


# What is shown of a row, in this order, and how.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "name": ("", str),
    "model": ("model", str),
    "size": ("size", str),
    "cap": ("GB", lambda value: f"{value:g}"),
    "result": ("result", str),
    "seconds": ("seconds", _seconds),
    "rate": ("operations or bytes a second", lambda value: f"{value:.3g}"),
    "first": ("first", _seconds),
    "other prompt": ("other prompt", _seconds),
    "same prompt": ("same prompt", _seconds),
    "phases": ("phases", _seconds),
    "floor": ("floor", _seconds),
    "percent of floor": ("% of floor", lambda value: f"{value:.0f}"),
    "peak": ("peak GiB", _gigabytes),
    "reserved": ("reserved GiB", _gigabytes),
    "planned": ("planned GiB", _gigabytes),
    "moved_per_step": ("moved GiB", _gigabytes),
    "stall_per_step": ("stall s", _seconds),
    "error_rms": ("error", lambda value: f"{value:.1e}"),
    "psnr": ("PSNR", lambda value: f"{value:.1f}"),
    "predictions": ("predictions", lambda value: f"{value:.0f}"),
    "value": ("", lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)),
    "plan": ("plan", str),
    "error": ("error", str),
    "why": ("why", str),
}


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return a table's cells, its head first: the known columns that any row fills."""
    shown = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    body = [["" if row.get(key) is None else COLUMNS[key][1](row[key]) for key in shown] for row in rows]
    return [[COLUMNS[key][0] for key in shown], *body]
