"""Scripts that several browser tests have the page run."""

from __future__ import annotations

from typing import Any

from piying.tests.comfyui.convert import WORKFLOWS

PANELS = "[...document.querySelectorAll('.piying-panel')].map((panel) => panel.innerText)"


def opened(name: str) -> dict[str, Any]:
    return {"do": "load_graph", "file": str(WORKFLOWS / f"{name}.json")}


def evaluate(script: str) -> dict[str, Any]:
    return {"do": "evaluate", "script": script}


def until(script: str, timeout: float = 60) -> dict[str, Any]:
    """Wait until a script gives something that is true; the answer is that."""
    return {"do": "until", "script": script, "timeout_s": timeout}


def set_widgets(node: str, **values: Any) -> list[dict[str, Any]]:
    return [{"do": "set_widget", "node": node, "name": name, "value": value} for name, value in values.items()]


def click(selector: str, text: str | None = None) -> dict[str, Any]:
    return {"do": "click", "selector": selector, **({} if text is None else {"text": text})}


def picture(file: Any, fit: bool = False) -> dict[str, Any]:
    return {"do": "screenshot", "file": str(file), "fit": fit}
