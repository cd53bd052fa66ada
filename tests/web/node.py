"""The extension's modules in Node.js: beside stand-ins for the two scripts of ComfyUI that they import."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
APP = "export const app = { extensionManager: { setting: { get: () => globalThis.language } } };"
API = """export const api = {
  fetchApi: async () => ({ ok: true, json: async () => globalThis.served }),
};"""


class Page:
    """A folder as ComfyUI serves it: /scripts, and the pack's files under /extensions."""

    def __init__(self, folder: Path, node: str) -> None:
        self.folder, self.node = folder, node
        (folder / "scripts").mkdir()
        (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
        (folder / "scripts/app.js").write_text(APP, encoding="utf-8")
        (folder / "scripts/api.js").write_text(API, encoding="utf-8")
        shutil.copytree(ROOT / "web/lib", folder / "extensions/Piying/lib")

    def run(self, script: str, *, language: str = "en", given: Any = None) -> Any:
        """What a script gives: the body of an async function with `lib`, to import by, and `given`."""
        served = {
            path.parent.name: json.loads(path.read_text(encoding="utf-8"))
            for path in (ROOT / "locales").glob("*/main.json")
        }
        whole = f"""
            globalThis.language = {json.dumps(language)};
            globalThis.served = {json.dumps(served)};
            const given = {json.dumps(given)};
            const lib = (name) => import(`./extensions/Piying/lib/${{name}}.js`);
            const found = await (async () => {{ {script} }})();
            console.log(JSON.stringify(found ?? null));
        """
        done = subprocess.run(
            [self.node, "--input-type=module"],
            input=whole,
            cwd=self.folder,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def node_or_skip() -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not on the PATH")
    return node
