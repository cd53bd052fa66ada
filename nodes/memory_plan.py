"""Memory Plan: what a run would need, before it runs."""

from __future__ import annotations

from typing import Any

from ..core.catalog.selection import ModelHandle
from ..core.families.registry import planned_families
from ..core.host.current import get_host
from ..core.image_sizes import MULTIPLE
from .shared import CATEGORY

MAX_REFERENCES = 16  # more than the four of a Reference node, as several can be chained

# As wide as what any sampler makes in one piece; which numbers the chosen model takes, that sampler says.
DEFAULT_WIDTH, DEFAULT_HEIGHT, MAX_SIDE = 832, 480, 2048
DEFAULT_FRAMES, MAX_FRAMES, FRAME_STEP = 81, 241, 4
DEFAULT_STEPS, DEFAULT_CFG = 50, 5.0


class PiyingMemoryPlan:
    """Models and a size → where everything would go, how much it takes, and why."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Estimates a run before it starts: placement, number types, peak memory and time, with reasons. Connect the "
        "models you want to know about. Nothing is loaded."
    )
    SEARCH_ALIASES = ["vram", "memory", "显存"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("plan",)
    OUTPUT_TOOLTIPS = ("The plan as text.",)
    FUNCTION = "show"
    OUTPUT_NODE = True  # runs although nothing is wired to it

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets and one socket for each kind of model."""
        return {
            "required": {
                "width": ("INT", _side(DEFAULT_WIDTH, "Width")),
                "height": ("INT", _side(DEFAULT_HEIGHT, "Height")),
                "num_frames": (
                    "INT",
                    {
                        "default": DEFAULT_FRAMES,
                        "min": 1,
                        "max": MAX_FRAMES,
                        "step": FRAME_STEP,
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
                        "default": DEFAULT_CFG,
                        "min": 1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "Above 1 every step predicts twice.",
                    },
                ),
                "steps": (
                    "INT",
                    {"default": DEFAULT_STEPS, "min": 1, "max": 1000, "tooltip": "Denoising steps."},
                ),
            },
            # One optional socket per family: a V1 socket has one type, and any of them may stay empty.
            "optional": {
                family.input_name: (family.socket, {"tooltip": f"From {family.loader}."})
                for family in planned_families()
            },
        }

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        """Run every time: the answer depends on what is free now."""
        del inputs
        return float("nan")  # unequal even to itself, which is how ComfyUI's nodes ask for a run every time

    def show(self, **inputs: Any) -> dict[str, Any]:
        """Return the plans of the connected models as text, which ComfyUI also shows on the node."""
        from ..core.families.diffusion_model import estimate

        host = get_host()
        handles = [inputs.get(family.input_name) for family in reversed(planned_families())]
        answers = [
            estimate(handle, host, handle.family.work(inputs, handle))
            for handle in handles
            if isinstance(handle, ModelHandle)
        ]
        text = "\n\n".join(answer.to_text() for answer in answers)
        text = text or "Connect a model on this machine to see what it would need."
        return {"ui": {"text": [text]}, "result": (text,)}


def _side(default: int, name: str) -> dict[str, Any]:
    return {
        "default": default,
        "min": MULTIPLE,
        "max": MAX_SIDE,
        "step": MULTIPLE,
        "tooltip": f"{name} in pixels.",
    }


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingMemoryPlan": PiyingMemoryPlan,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingMemoryPlan": "Memory Plan",
}
