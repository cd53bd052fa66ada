"""A base folder for ComfyUI: its input, output and user folders, and this pack among its custom nodes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The dot and the hyphen are characters that a user's folder has and a Python module name has not.
FOLDER = "ComfyUI-Piying.test"
# Without these the first visit opens the template browser and the minimap over the graph, and a busy machine takes
# longer between two clicks than a person.
SETTINGS = {
    "Comfy.Pointer.DoubleClickTime": 1000,
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Notification.ShowVersionUpdates": False,
}


def make_base(base: Path, folder: str = FOLDER) -> None:
    """COMFYUI_SETTINGS holds further settings of the frontend as JSON, such as `{"Comfy.VueNodes.Enabled": true}`."""
    for name in ("custom_nodes", "input", "output", "temp", "user/default"):
        (base / name).mkdir(parents=True, exist_ok=True)
    settings = SETTINGS | json.loads(os.environ.get("COMFYUI_SETTINGS", "{}"))
    (base / "user/default/comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
    install_pack(base / "custom_nodes" / folder)


def install_pack(target: Path) -> None:
    """A link, or a copy on Windows, where making links needs a right that few accounts have."""
    if os.name == "nt":
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    else:
        target.symlink_to(ROOT, target_is_directory=True)
