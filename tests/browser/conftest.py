"""A ComfyUI with the pack, and its frontend in headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from piying.tests.browser.tools import Outcome, Tools, find_tools
from piying.tests.comfyui.server import Server, running_server

Drive = Callable[[list[dict[str, Any]]], Outcome]


@pytest.fixture(scope="session")
def tools() -> Tools:
    found = find_tools()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def comfyui(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture(scope="session")
def drive(tools: Tools, comfyui: Server) -> Drive:
    """Perform actions in a fresh browser on the frontend."""
    return lambda actions: tools.drive(comfyui.url, actions)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: the folder PIYING_SCREENSHOTS names, else one that pytest cleans up."""
    named = os.environ.get("PIYING_SCREENSHOTS")
    folder = Path(named).resolve() if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
