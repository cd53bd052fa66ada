"""The extension's scripts are checked by TypeScript and ESLint, where PIYING_NODE_MODULES names a folder with both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from piying.tests.web.node import ROOT, node_or_skip

# What ComfyUI's frontend gives to an extension; its own types are in no package that could be installed beside it.
GIVEN = {
    "scripts/app.js": "/** @type {any} */\nexport const app = null;\n",
    "scripts/api.js": "/** @type {any} */\nexport const api = null;\n",
    "globals.d.ts": "interface Window { LiteGraph: any; }\n",
    "tsconfig.json": json.dumps(
        {
            "compilerOptions": {
                "allowJs": True,
                "checkJs": True,
                "noEmit": True,
                "strict": True,
                "useUnknownInCatchVariables": False,
                "target": "es2022",
                "module": "es2022",
                "moduleResolution": "bundler",
                "lib": ["es2023", "dom", "dom.iterable"],
                "types": [],
            },
            "include": ["**/*.js", "globals.d.ts"],
        }
    ),
    "eslint.config.mjs": """
        import js from "@eslint/js";
        const browser = ["window", "document", "navigator", "console", "URL", "URLSearchParams"];
        const timers = ["setTimeout", "clearTimeout", "setInterval", "clearInterval"];
        const globals = Object.fromEntries([...browser, ...timers].map((name) => [name, "readonly"]));
        export default [{ ...js.configs.recommended, languageOptions: { globals, sourceType: "module" } }];
    """,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder as ComfyUI serves it, and the tools."""
    node_or_skip()
    modules = os.environ.get("PIYING_NODE_MODULES")
    if modules is None:
        pytest.skip("PIYING_NODE_MODULES names no folder with typescript, eslint and @eslint/js")
    folder = tmp_path_factory.mktemp("served")
    for name in ("piying.js", "lib"):
        source, target = ROOT / "web" / name, folder / "extensions/Piying" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    for name, text in GIVEN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "node_modules").symlink_to(Path(modules).resolve(), target_is_directory=True)
    return folder


@pytest.mark.parametrize("command", [["typescript/bin/tsc", "-p", "."], ["eslint/bin/eslint.js", "extensions"]])
def test_scripts_are_without_mistakes(served, command):
    tool, *arguments = command
    run = ["node", f"node_modules/{tool}", *arguments]
    done = subprocess.run(run, cwd=served, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
