"""Core nodes of ComfyUI, rebuilt: same ids, inputs, outputs and arithmetic."""

from __future__ import annotations

from .image_files import LoadImage, LoadImageMask, PreviewImage, SaveImage
from .images import (
    GetImageSize,
    ImageBatch,
    ImageCompositeMasked,
    ImageCrop,
    ImageFromBatch,
    ImageInvert,
    ImagePadForOutpaint,
    ImageScale,
    ImageScaleBy,
    RepeatImageBatch,
)
from .masks import CropMask, FeatherMask, GrowMask, ImageToMask, InvertMask, MaskComposite, MaskToImage, SolidMask
from .primitives import (
    ComfySwitchNode,
    PreviewAny,
    PrimitiveBoolean,
    PrimitiveFloat,
    PrimitiveInt,
    PrimitiveString,
    PrimitiveStringMultiline,
    StringConcatenate,
)
from .video import CreateVideo, GetVideoComponents
from .video_files import LoadVideo, SaveAnimatedWEBP, SaveVideo, SaveWEBM

CORE_NODE_CLASSES: dict[str, type] = {
    "LoadImage": LoadImage,
    "LoadImageMask": LoadImageMask,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "SaveAnimatedWEBP": SaveAnimatedWEBP,
    "LoadVideo": LoadVideo,
    "SaveVideo": SaveVideo,
    "SaveWEBM": SaveWEBM,
    "CreateVideo": CreateVideo,
    "GetVideoComponents": GetVideoComponents,
    "ImageScale": ImageScale,
    "ImageScaleBy": ImageScaleBy,
    "ImageBatch": ImageBatch,
    "RepeatImageBatch": RepeatImageBatch,
    "ImageFromBatch": ImageFromBatch,
    "GetImageSize": GetImageSize,
    "ImageCrop": ImageCrop,
    "ImageInvert": ImageInvert,
    "ImagePadForOutpaint": ImagePadForOutpaint,
    "ImageCompositeMasked": ImageCompositeMasked,
    "SolidMask": SolidMask,
    "MaskToImage": MaskToImage,
    "ImageToMask": ImageToMask,
    "InvertMask": InvertMask,
    "CropMask": CropMask,
    "GrowMask": GrowMask,
    "FeatherMask": FeatherMask,
    "MaskComposite": MaskComposite,
    "PreviewAny": PreviewAny,
    "PrimitiveString": PrimitiveString,
    "PrimitiveStringMultiline": PrimitiveStringMultiline,
    "PrimitiveInt": PrimitiveInt,
    "PrimitiveFloat": PrimitiveFloat,
    "PrimitiveBoolean": PrimitiveBoolean,
    "StringConcatenate": StringConcatenate,
    "ComfySwitchNode": ComfySwitchNode,
}

# The others are shown by their ids, as in ComfyUI.
CORE_NODE_TITLES = {
    "LoadImage": "Load Image",
    "LoadImageMask": "Load Image (as Mask)",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "LoadVideo": "Load Video",
    "SaveVideo": "Save Video",
    "CreateVideo": "Create Video",
    "GetVideoComponents": "Get Video Components",
    "ImageScale": "Upscale Image",
    "ImageScaleBy": "Upscale Image By",
    "ImageBatch": "Batch Images",
    "GetImageSize": "Get Image Size",
    "ImageCrop": "Image Crop",
    "ImageInvert": "Invert Image",
    "ImagePadForOutpaint": "Pad Image for Outpainting",
    "MaskToImage": "Convert Mask to Image",
    "ImageToMask": "Convert Image to Mask",
    "PreviewAny": "Preview Any",
    "PrimitiveString": "String",
    "PrimitiveStringMultiline": "String (Multiline)",
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveBoolean": "Boolean",
    "StringConcatenate": "Concatenate",
    "ComfySwitchNode": "If/Else Switch",
}
