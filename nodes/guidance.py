"""Guidance: how the steps of a video are turned towards the prompt and away from the negative one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .shared import all_checked, checked
from .wan_vace import VACE, WAN
from .widgets import choice, line, number

if TYPE_CHECKING:
    from ..core.wan.guidance import Guidance


class PiyingGuidance:
    """Guidance methods → what a sampler's `guidance` takes."""

    CATEGORY = VACE
    DESCRIPTION = (
        "How steps are guided: other methods than plain CFG, cfg step by step, NAG (a negative prompt that works at "
        "cfg 1) and skip-layer guidance. As it stands it changes nothing."
    )
    SEARCH_ALIASES = [*WAN, "cfg", "cfg zero star", "apg", "tcfg", "nag", "slg", "skip layer guidance", "引导"]
    REPLACES = ("WanVideoApplyNAG", "WanVideoSLG")
    RETURN_TYPES = ("WAN_GUIDANCE",)
    RETURN_NAMES = ("guidance",)
    OUTPUT_TOOLTIPS = ("For guidance of VACE Sample or VACE Long Video.",)
    FUNCTION = "make"
    RUNS_AT_ONCE = True  # a plan may run it to learn what it gives

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the widgets."""
        from ..core.wan import guidance as wan

        return {
            "required": {
                "method": choice(
                    wan.METHODS,
                    "What is made of the predictions for prompt and negative prompt. cfg: plain. cfg_zero_star: "
                    "rescaled, and nothing in the first step. apg: without the part that saturates colours. tcfg: "
                    "the negative prediction damped. None takes longer than another.",
                ),
                "cfg_steps": line(
                    "The cfg of each step in place of one for all, such as 6, 5, 4, 1: the last one holds for the "
                    "rest. A step at 1 takes half the time. Empty: cfg of the sampler."
                ),
                "nag_scale": number(
                    1.0,
                    1.0,
                    wan.MAX_NAG,
                    0.1,
                    tooltip="Normalized attention guidance: the negative prompt works at cfg 1 too, for little time. "
                    "1: off. Try 4 to 11 with step-distilled LoRAs.",
                ),
                "nag_tau": number(
                    wan.NAG_TAU, 1.0, 10.0, 0.1, tooltip="How far NAG may enlarge what attention gives."
                ),
                "nag_alpha": number(wan.NAG_ALPHA, 0.0, 1.0, 0.05, tooltip="NAG's share of what attention gives."),
                "slg_blocks": line(
                    "Skip-layer guidance: numbers of main blocks, such as 9 or 9, 10, without which each step "
                    "predicts once more, to turn away from that. Empty: off."
                ),
                "slg_scale": number(1.0, 0.0, 10.0, 0.1, tooltip="How strongly it turns away. 0: off."),
                "slg_start": number(
                    0.1, 0.0, 1.0, 0.05, tooltip="Share of the steps after which skip-layer guidance begins."
                ),
                "slg_end": number(
                    1.0, 0.0, 1.0, 0.05, tooltip="Share of the steps after which skip-layer guidance ends."
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, cfg_steps: str | None, slg_blocks: str | None, slg_start: float | None, slg_end: float | None
    ) -> bool | str:
        """Say what is no number of a step or block, and where a range of steps is empty."""
        from ..core.wan import guidance as wan

        results = [checked(wan.parse_scales, cfg_steps or ""), checked(wan.parse_blocks, slg_blocks or "")]
        if slg_start is not None and slg_end is not None:
            results.append(checked(wan.check_range, slg_start, slg_end))
        return all_checked(results)

    def make(self, cfg_steps: str, slg_blocks: str, **widgets: Any) -> tuple[Guidance]:
        """Return the guidance."""
        from ..core.wan import guidance as wan

        wan.check_range(widgets["slg_start"], widgets["slg_end"])
        scales, blocks = wan.parse_scales(cfg_steps), wan.parse_blocks(slg_blocks)
        return (wan.Guidance(cfg_steps=scales, slg_blocks=blocks, **widgets),)


# A literal, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingGuidance": PiyingGuidance,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingGuidance": "VACE Guidance",
}
