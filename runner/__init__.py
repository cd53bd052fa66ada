"""The headless host: runs workflow files without ComfyUI.

From Python, with this repository in a folder called `piying` on `sys.path`:

    from piying.runner import run

    finished = run("workflows/t2v.json", prompt="a fox runs in snow", set={"VACE Sample.steps": 8})
    finished.files                          # [Path("output/video/piying_t2v_00001_.mp4")]
    finished.outputs("VACE Sample")[0][0]   # its frames, a tensor [N, H, W, 3]
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `run` and `Session` when asked for: `python -m runner` loads this file before the pack has a name."""
    if name in ("run", "Session"):
        from . import session

        return getattr(session, name)
    raise AttributeError(name)
