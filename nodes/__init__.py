"""What a creator touches: widgets, sockets, tooltips; each node is one call into `core`."""

from .hunyuan_dit import PiyingHunyuanDiT
from .loaders import PiyingLoadHunyuanDiT, PiyingLoadPromptModel, PiyingLoadWanVACE
from .prompt import PiyingExpandPrompt
from .wan_vace import PiyingVACESample

# Literals, since ComfyUI-Manager finds node names by reading this file, not by running it.
NODE_CLASS_MAPPINGS = {
    "PiyingLoadWanVACE": PiyingLoadWanVACE,
    "PiyingVACESample": PiyingVACESample,
    "PiyingLoadHunyuanDiT": PiyingLoadHunyuanDiT,
    "PiyingHunyuanDiT": PiyingHunyuanDiT,
    "PiyingLoadPromptModel": PiyingLoadPromptModel,
    "PiyingExpandPrompt": PiyingExpandPrompt,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "PiyingLoadWanVACE": "Load Wan VACE",
    "PiyingVACESample": "VACE Sample",
    "PiyingLoadHunyuanDiT": "Load Hunyuan-DiT",
    "PiyingHunyuanDiT": "Hunyuan-DiT Text to Image",
    "PiyingLoadPromptModel": "Load Prompt Model",
    "PiyingExpandPrompt": "Expand Prompt",
}
