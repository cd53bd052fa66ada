"""A host with folders of its own for every test."""

from __future__ import annotations

import pytest
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost


@pytest.fixture
def host(tmp_path):
    """Input, output and temp folders; the nodes find them through the host."""
    host = HeadlessHost(input=tmp_path / "input", output=tmp_path / "output", temp=tmp_path / "temp")
    for folder in (host.input, host.output, host.temp):
        folder.mkdir()
    set_host(host)
    yield host
    set_host(None)
