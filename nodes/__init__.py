"""What a creator touches: widgets, sockets, tooltips; each node is one call into `core`."""

from .aliases import ALIASES
from .controls import (
    PiyingControlDepth,
    PiyingControlEdges,
    PiyingControlFlow,
    PiyingControlGray,
    PiyingControlLayoutBox,
    PiyingControlLayoutMask,
    PiyingControlPose,
    PiyingControlScribble,
    PiyingSegment,
)
from .hunyuan_dit import PiyingHunyuanDiT
from .loaders import PiyingLoadHunyuanDiT, PiyingLoadPromptModel, PiyingLoadWanVACE
from .long_video import PiyingVACELongVideo
from .lora import PiyingHunyuanDiTLoRA, PiyingLoRA
from .memory_plan import PiyingMemoryPlan
from .missing import explain_missing
from .prompt import PiyingExpandPrompt
from .prompt_server import PiyingPromptServer
from .samples import PiyingSampleClip, PiyingSampleImage
from .timing import PiyingAlignAudio, PiyingFrameRate
from .vace_tasks import PiyingVACEExtend, PiyingVACEInpaint, PiyingVACEOutpaint, PiyingVACEReference, PiyingVACERepaint
from .wan_vace import PiyingVACESample

# Literals, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingLoadWanVACE": PiyingLoadWanVACE,
    "PiyingLoRA": PiyingLoRA,
    "PiyingVACEReference": PiyingVACEReference,
    "PiyingVACERepaint": PiyingVACERepaint,
    "PiyingVACEInpaint": PiyingVACEInpaint,
    "PiyingVACEOutpaint": PiyingVACEOutpaint,
    "PiyingVACEExtend": PiyingVACEExtend,
    "PiyingVACESample": PiyingVACESample,
    "PiyingVACELongVideo": PiyingVACELongVideo,
    "PiyingLoadHunyuanDiT": PiyingLoadHunyuanDiT,
    "PiyingHunyuanDiTLoRA": PiyingHunyuanDiTLoRA,
    "PiyingHunyuanDiT": PiyingHunyuanDiT,
    "PiyingLoadPromptModel": PiyingLoadPromptModel,
    "PiyingExpandPrompt": PiyingExpandPrompt,
    "PiyingPromptServer": PiyingPromptServer,
    "PiyingControlGray": PiyingControlGray,
    "PiyingControlEdges": PiyingControlEdges,
    "PiyingControlScribble": PiyingControlScribble,
    "PiyingControlFlow": PiyingControlFlow,
    "PiyingControlLayoutMask": PiyingControlLayoutMask,
    "PiyingControlLayoutBox": PiyingControlLayoutBox,
    "PiyingControlDepth": PiyingControlDepth,
    "PiyingControlPose": PiyingControlPose,
    "PiyingSegment": PiyingSegment,
    "PiyingFrameRate": PiyingFrameRate,
    "PiyingAlignAudio": PiyingAlignAudio,
    "PiyingSampleClip": PiyingSampleClip,
    "PiyingSampleImage": PiyingSampleImage,
    "PiyingMemoryPlan": PiyingMemoryPlan,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingLoadWanVACE": "Load Wan VACE",
    "PiyingLoRA": "Add LoRA",
    "PiyingVACEReference": "VACE: Reference",
    "PiyingVACERepaint": "VACE: Repaint",
    "PiyingVACEInpaint": "VACE: Inpaint",
    "PiyingVACEOutpaint": "VACE: Outpaint",
    "PiyingVACEExtend": "VACE: Extend",
    "PiyingVACESample": "VACE Sample",
    "PiyingVACELongVideo": "VACE Long Video",
    "PiyingLoadHunyuanDiT": "Load Hunyuan-DiT",
    "PiyingHunyuanDiTLoRA": "Add Hunyuan-DiT LoRA",
    "PiyingHunyuanDiT": "Hunyuan-DiT Text to Image",
    "PiyingLoadPromptModel": "Load Prompt Model",
    "PiyingExpandPrompt": "Expand Prompt",
    "PiyingPromptServer": "Prompt Server",
    "PiyingControlGray": "Control: Gray",
    "PiyingControlEdges": "Control: Edges",
    "PiyingControlScribble": "Control: Scribble",
    "PiyingControlFlow": "Control: Optical Flow",
    "PiyingControlLayoutMask": "Control: Layout from Mask",
    "PiyingControlLayoutBox": "Control: Layout from Boxes",
    "PiyingControlDepth": "Control: Depth",
    "PiyingControlPose": "Control: Pose",
    "PiyingSegment": "Segment by Name",
    "PiyingFrameRate": "Frame Rate",
    "PiyingAlignAudio": "Align Audio",
    "PiyingSampleClip": "Sample Clip",
    "PiyingSampleImage": "Sample Image",
    "PiyingMemoryPlan": "Memory Plan",
}

for _name, _words in ALIASES.items():
    NODE_CLASS_MAPPINGS[_name].SEARCH_ALIASES = _words  # type: ignore[attr-defined]
for _node in NODE_CLASS_MAPPINGS.values():
    explain_missing(_node)
