"""Nodes: what a creator touches: widgets, sockets, tooltips; each node is one call into `core`."""

from . import controls, hunyuan_dit, long_video, memory_plan, prompt, samples, timing, vace_tasks, wan_vace, z_image
from .missing import explain_missing

MODULES = (wan_vace, vace_tasks, long_video, hunyuan_dit, z_image, prompt, controls, timing, samples, memory_plan)

NODE_CLASS_MAPPINGS = {name: node for module in MODULES for name, node in module.NODE_CLASS_MAPPINGS.items()}
NODE_DISPLAY_NAME_MAPPINGS = {
    name: title for module in MODULES for name, title in module.NODE_DISPLAY_NAME_MAPPINGS.items()
}

for _node in NODE_CLASS_MAPPINGS.values():
    explain_missing(_node)
