"""ComfyUI in subprocesses: requests and responses as JSON lines and tensor files."""

from __future__ import annotations

import gc
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from speed_case import Made, Setting
from speed_ours import WHEN, Given, Ours

HERE = Path(__file__).resolve().parent
AGREEMENT = {"float32": 1e-4, "bfloat16": 5e-2}  # of two programs' predictions, relative, as a root mean square


def threads() -> dict[str, str]:
    """Return the environment of a process with as many threads as this one."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


class ComfyUI:
    """A ComfyUI that samples videos of the same model, from the same noise and embeddings."""

    def __init__(self, checkout: Path, python: str, setting: Setting, scratch: Path) -> None:
        self.checkout, self.python, self.setting, self.scratch = checkout.resolve(), python, setting, scratch
        self.dtype = "float32" if setting.device == "cpu" else "bfloat16"
        self.said = scratch / "comfyui.log"

    def __enter__(self) -> ComfyUI:
        specification = self.scratch / "comfyui.json"
        wanted = {
            "folder": str(self.setting.folder / "transformer"),
            "device": self.setting.device,
            "dtype": self.dtype,
            "steps": self.setting.steps,
            "cfg": self.setting.cfg,
            "shift": self.setting.shift,
        }
        specification.write_text(json.dumps(wanted), encoding="utf-8")
        command = [self.python, HERE / "speed_comfyui.py", self.checkout, specification]
        with self.said.open("w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                cwd=self.checkout,
                env=threads(),
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def agrees(self, given: Given) -> dict[str, Any]:
        """Return versions, and how far its prediction on the same input is from ours.

        Raises:
            SystemExit: it is further off than the number type explains; nothing it takes would be comparable.
        """
        asked = {"latents": given.noise, "control": given.control, "embeds": given.embeds}
        found, theirs = self._ask(asked | {"timestep": torch.tensor([WHEN])})
        ours = torch.cat(given.first).cpu()
        off = float((theirs - ours).norm() / ours.norm())
        if off > AGREEMENT[self.dtype]:
            raise SystemExit(
                f"ComfyUI's prediction differs from ours by {off:.2g}: not the same model, nothing to time."
            )
        return found | {"off": off}

    def video(self, given: Given, ours: Ours) -> Made:
        """Return the video of what our sampling was given last, decoded by our VAE."""
        found, latents = self._ask({"noise": given.noise, "embeds": given.embeds, "control": given.control})
        return Made(ours.frames(latents), found["seconds"], found["predictions"])

    def _ask(self, asked: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        assert self.process.stdin is not None and self.process.stdout is not None
        given, result = self.scratch / "given.pt", self.scratch / "result.pt"
        torch.save(_on_cpu(asked), given)
        self.process.stdin.write(json.dumps({"given": str(given), "result": str(result)}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("ComfyUI ended: " + _last_line(self.said.read_text(encoding="utf-8")))
        return json.loads(line), torch.load(result)


def _on_cpu(asked: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [each.float().cpu() for each in value] if isinstance(value, list) else value.float().cpu()
        for name, value in asked.items()
    }


def _last_line(text: str) -> str:
    return (text.strip() or "it said nothing").splitlines()[-1]


def comfyui_steps(
    case: Any, storage: str | None, steps: int, checkout: Path, python: str, scratch: Path, *options: str
) -> dict[str, Any]:
    """Return ComfyUI's figures of a denoising step of `wan_steps.Case`, on the same random weights and inputs.

    Args:
        storage: torch's name of the type the weights are kept in; None is that of the case.
        steps: how many are timed.
        options: of ComfyUI's command line.
    """
    gc.collect()
    if case.device.startswith("cuda"):
        torch.cuda.empty_cache()
    result, specification = scratch / "comfyui.pt", scratch / "comfyui.json"
    wanted = {
        "model": case.shape.model,
        "size": case.shape.size,
        "cap": case.cap,
        "device": case.device,
        "dtype": str(case.dtype).removeprefix("torch."),
        "storage": storage,
        "steps": steps,
        "options": options,
        "result": str(result),
    }
    specification.write_text(json.dumps(wanted), encoding="utf-8")
    command = [python, HERE / "wan_comfyui.py", checkout.resolve(), specification]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=checkout, env=threads())
    if ran.returncode:
        return {"error": _last_line(ran.stderr)}
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found if "error" in found else {**found, "error_rms": case.compare(torch.load(result))}
