"""Stand-ins for the ComfyUI core nodes that Piying's workflows use: same ids, inputs and outputs."""

from __future__ import annotations

from .image import LoadImage, PreviewImage, SaveImage
from .primitive import (
    PreviewAny,
    PrimitiveBoolean,
    PrimitiveFloat,
    PrimitiveInt,
    PrimitiveString,
    PrimitiveStringMultiline,
)
from .video import CreateVideo, SaveVideo

CORE_NODE_CLASSES: dict[str, type] = {
    "LoadImage": LoadImage,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "CreateVideo": CreateVideo,
    "SaveVideo": SaveVideo,
    "PreviewAny": PreviewAny,
    "PrimitiveString": PrimitiveString,
    "PrimitiveStringMultiline": PrimitiveStringMultiline,
    "PrimitiveInt": PrimitiveInt,
    "PrimitiveFloat": PrimitiveFloat,
    "PrimitiveBoolean": PrimitiveBoolean,
}

CORE_NODE_TITLES = {
    "LoadImage": "Load Image",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "CreateVideo": "Create Video",
    "SaveVideo": "Save Video",
    "PreviewAny": "Preview Any",
    "PrimitiveString": "String",
    "PrimitiveStringMultiline": "String (Multiline)",
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveBoolean": "Boolean",
}
