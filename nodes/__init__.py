"""Nodes: what a creator touches: widgets, sockets, tooltips; each node is one call into `core`."""

from importlib import import_module

from .missing import explain_missing

# Families first; a new family's node file is named here and nowhere else.
FILES = (
    "wan_vace",
    "vace_tasks",
    "long_video",
    "guidance",
    "wan_video",
    "context",
    "hunyuan_dit",
    "z_image",
    "prompt",
    "controls",
    "timing",
    "postprocessing",
    "samples",
    "memory_plan",
)
MODULES = [import_module(f".{name}", __name__) for name in FILES]

NODE_CLASS_MAPPINGS = {name: node for module in MODULES for name, node in module.NODE_CLASS_MAPPINGS.items()}
NODE_DISPLAY_NAME_MAPPINGS = {
    name: title for module in MODULES for name, title in module.NODE_DISPLAY_NAME_MAPPINGS.items()
}

for _node in NODE_CLASS_MAPPINGS.values():
    explain_missing(_node)
