"""Addresses of servers and the credentials that go with them, which no message shows."""

from __future__ import annotations

import base64
import json

import pytest
from piying.runner.errors import WorkflowError
from piying.runner.remote.address import AUTHORIZATION, read_server_address
from piying.tests.runner.remote.fake_comfyui import fake_comfyui, picture_workflow

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8188", "http://127.0.0.1:8188"),
        ("HTTP://LocalHost:8188/", "http://localhost:8188"),
        ("https://example.com/comfy/", "https://example.com/comfy"),
        ("http://[::1]:8188", "http://[::1]:8188"),
        ("http://comfy_1:8188", "http://comfy_1:8188"),
    ],
)
def test_addresses(text, url):
    assert str(read_server_address(text, {})) == url


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:8188",
        "ftp://host",
        "file:///etc/passwd",
        "http://",
        "http://host:0",
        "http://host:99999",
        "http://host/a?token=s3cr3t",
        "http://host/../x",
        "http://ho st",
        "http://host\n.example",
        f"user:{SECRET}@host",
        f"http://user:{SECRET}@host:port",
        f"http://user:{SECRET}@192.168.1.5:8188",
        "http://host#x",
        "",
    ],
)
def test_what_is_no_address_is_refused_without_its_secrets(text):
    with pytest.raises(WorkflowError) as refused:
        read_server_address(text, {})
    assert SECRET not in str(refused.value) and str(refused.value).startswith("--server ")


def test_credentials():
    address = read_server_address(f"https://us%40er:{SECRET}@host", {AUTHORIZATION: "Bearer other"})
    assert address.authorization == "Basic " + base64.b64encode(f"us@er:{SECRET}".encode()).decode()
    assert SECRET not in repr(address) and SECRET not in str(address)
    assert read_server_address("https://host", {AUTHORIZATION: "Bearer key"}).authorization == "Bearer key"
    for wrong in (SECRET, f"Bearer {SECRET}\r\nX: y", f"Bearer {SECRET} more"):
        with pytest.raises(WorkflowError) as refused:
            read_server_address("https://host", {AUTHORIZATION: wrong})
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("way", ["url", "environment"])
def test_credentials_open_a_server_and_are_shown_nowhere(tmp_path, command, way, monkeypatch):
    (tmp_path / "cat.png").write_bytes(b"cat")
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(picture_workflow()))
    basic = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    with fake_comfyui(authorization=basic) as fake:
        url = fake.url
        if way == "url":
            url = url.replace("://", f"://me:{SECRET}@")
        else:
            monkeypatch.setenv(AUTHORIZATION, basic)
        ran = command(workflow, "--server", url, "--input", tmp_path, "--verbose")
        assert ran.returncode == 0, ran.stderr
        fake.authorization = "Basic another"
        refused = command(workflow, "--server", url, "--input", tmp_path, "--verbose")
    assert refused.returncode == 1 and "asks for credentials" in refused.stderr
    for text in (ran.stdout, ran.stderr, refused.stdout, refused.stderr):
        assert SECRET not in text and basic not in text and basic.removeprefix("Basic ") not in text
