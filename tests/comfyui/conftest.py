"""One ComfyUI for the session, with the pack loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from piying.tests.comfyui.server import Server, running_server


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("comfyui")) as server:
        yield server
