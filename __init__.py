"""Piying: text, image, video and edit nodes for ComfyUI, from Chinese open models.

ComfyUI loads this file as a package under a name of its own making; test collectors load it as a
plain file. Only the first has a parent package for the relative import to start from.
"""

if __package__:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from .nodes.routes import offer_routes

    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

    offer_routes()
