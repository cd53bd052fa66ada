"""Memory Plan: what a run would need, before it runs."""

from __future__ import annotations

from typing import Any

from ..core.catalog.selection import ModelHandle
from ..core.host.current import get_host
from ..core.image_sizes import MULTIPLE
from ..core.wan import request as vace
from .shared import CATEGORY

MAX_REFERENCES = 16


class PiyingMemoryPlan:
    """Models and a size → where everything would go, how much it takes, and why."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Shows what a run would need before it runs: what would be on the card, in which number type, how much "
        "memory and about how long, and why. Connect the models you want to know about. Nothing is loaded."
    )
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("plan",)
    OUTPUT_TOOLTIPS = ("The plan as text.",)
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets and one socket for each kind of model."""
        return {
            "required": {
                "width": ("INT", _side(vace.DEFAULT_WIDTH, "Width")),
                "height": ("INT", _side(vace.DEFAULT_HEIGHT, "Height")),
                "num_frames": (
                    "INT",
                    {
                        "default": vace.DEFAULT_FRAMES,
                        "min": vace.MIN_FRAMES,
                        "max": vace.MAX_FRAMES,
                        "step": vace.FRAME_STEP,
                        "tooltip": "Length of the video, 4n+1 frames. Without effect on images.",
                    },
                ),
                "references": (
                    "INT",
                    {"default": 0, "min": 0, "max": MAX_REFERENCES, "tooltip": "Reference pictures of the video."},
                ),
                "cfg": (
                    "FLOAT",
                    {
                        "default": vace.DEFAULT_CFG,
                        "min": 1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "Above 1 every step predicts twice.",
                    },
                ),
                "steps": (
                    "INT",
                    {"default": vace.DEFAULT_STEPS, "min": 1, "max": 1000, "tooltip": "Denoising steps."},
                ),
            },
            "optional": {
                "wan_vace": ("WAN_VACE", {"tooltip": "From Load Wan VACE."}),
                "hunyuan_dit": ("HUNYUAN_DIT", {"tooltip": "From Load Hunyuan-DiT."}),
                "prompt_model": ("PROMPT_MODEL", {"tooltip": "From Load Prompt Model."}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        """Run every time: the answer depends on what is free now."""
        del inputs
        return float("nan")

    def show(
        self,
        width: int,
        height: int,
        num_frames: int,
        references: int,
        cfg: float,
        steps: int,
        wan_vace: ModelHandle | None = None,
        hunyuan_dit: ModelHandle | None = None,
        prompt_model: Any = None,
    ) -> dict[str, Any]:
        """Return the plans of the connected models as text, which ComfyUI also shows on the node."""
        from ..core.hunyuan_dit.estimate import ask as ask_image
        from ..core.prompting.estimate import ask as ask_prompt
        from ..core.wan.estimate import ask as ask_video

        host, answers = get_host(), []
        if isinstance(prompt_model, ModelHandle):
            answers.append(ask_prompt(prompt_model, host))
        if hunyuan_dit is not None:
            answers.append(ask_image(hunyuan_dit, host, width, height, cfg, steps))
        if wan_vace is not None:
            request = vace.VACERequest("", width=width, height=height, num_frames=num_frames, cfg=cfg, steps=steps)
            answers.append(ask_video(wan_vace, host, request, references))
        text = "\n\n".join(answer.to_text() for answer in answers)
        text = text or "Connect a model on this machine to see what it would need."
        return {"ui": {"text": [text]}, "result": (text,)}


def _side(default: int, name: str) -> dict[str, Any]:
    return {
        "default": default,
        "min": vace.MIN_SIDE,
        "max": vace.MAX_SIDE,
        "step": MULTIPLE,
        "tooltip": f"{name} in pixels.",
    }
