"""Finds Node.js, playwright-core and Chromium, and runs scripts of drive.mjs with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("drive.mjs")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Outcome:
    """What a script gave: a result per action, the page's events, its console, the first error."""

    results: list[Any]
    events: list[dict[str, Any]]
    console: list[dict[str, str]]
    error: str | None

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [event["detail"] for event in self.events if event["type"] == kind]

    def errors_of_ours(self) -> list[dict[str, str]]:
        """The console's errors that name the pack: its files, its nodes or its routes.

        The frontend looks for a help page in English by a name of its own, before it takes the one that is.
        """
        bad = [said for said in self.console if said["type"] in ("error", "pageerror")]
        ours = [said for said in bad if "piying" in json.dumps(said).lower()]
        return [said for said in ours if not said["at"].endswith("/en.md")]


@dataclass(frozen=True)
class Tools:
    """What a browser test needs on the machine."""

    node: str
    playwright: str
    chromium: str

    def drive(self, url: str, actions: list[dict[str, Any]], timeout: float = 900) -> Outcome:
        script = {"url": url, "playwright": self.playwright, "chromium": self.chromium, "actions": actions}
        done = subprocess.run(
            [self.node, str(DRIVER)],
            input=json.dumps(script),
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
        )
        assert done.stdout, done.stderr
        outcome = Outcome(**json.loads(done.stdout))
        assert outcome.error is None, f"{outcome.error}\n{json.dumps(outcome.console, indent=1)}"
        return outcome


def find_tools() -> Tools | str:
    """The tools, or what is missing."""
    node = shutil.which("node")
    if node is None:
        return "Node.js is not on the PATH"
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        return "no Chromium on the PATH, and CHROMIUM names none"
    playwright = _playwright(node)
    return Tools(node, playwright, chromium) if playwright else "PLAYWRIGHT_CORE does not name playwright-core"


def _playwright(node: str) -> str | None:
    named = os.environ.get("PLAYWRIGHT_CORE")
    if named is None:
        return _resolved_by_node(node)
    folders = [Path(named), Path(named) / "playwright-core"]
    return next((str(folder) for folder in folders if (folder / "package.json").is_file()), None)


def _resolved_by_node(node: str) -> str | None:
    command = [node, "-p", "require('path').dirname(require.resolve('playwright-core/package.json'))"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    return done.stdout.strip() if done.returncode == 0 else None
