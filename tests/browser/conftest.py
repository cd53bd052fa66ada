"""A ComfyUI with the pack, and its frontend in headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from piying.tests.browser.tools import Outcome, Tools, find_tools
from piying.tests.comfyui.server import Server, running_server
from piying.tests.install.hub import Hub, running_hub

Drive = Callable[[list[dict[str, Any]]], Outcome]


@pytest.fixture(scope="session")
def tools() -> Tools:
    found = find_tools()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def comfyui(tools: Tools, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI whose Hugging Face is the hub of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        with running_server(tmp_path_factory.mktemp("comfyui")) as server:
            yield server


@pytest.fixture(scope="session")
def drive(tools: Tools, comfyui: Server) -> Drive:
    """Perform actions in a fresh browser on the frontend; an error of ours on its console fails the test."""

    def driven(actions: list[dict[str, Any]]) -> Outcome:
        outcome = tools.drive(comfyui.url, actions)
        assert outcome.errors_of_ours() == []
        return outcome

    return driven


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: the folder PIYING_SCREENSHOTS names, else one that pytest cleans up."""
    named = os.environ.get("PIYING_SCREENSHOTS")
    folder = Path(named).resolve() if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
