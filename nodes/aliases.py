"""What people type when they look for a node; the search of newer ComfyUIs reads it from SEARCH_ALIASES."""

from __future__ import annotations

VIDEO = ["wan", "wan2.1", "vace", "万相"]
IMAGE = ["hunyuan", "混元", "HunyuanDiT"]
PROMPT = ["qwen", "qwen3", "prompt enhance", "提示词", "扩写"]

ALIASES = {
    "PiyingLoadWanVACE": [*VIDEO, "load video model", "加载模型"],
    "PiyingLoRA": [*VIDEO, "lora loader", "causvid", "lightx2v", "加载LoRA", "步数蒸馏"],
    "PiyingVACEReference": [*VIDEO, "reference to video", "subject to video", "参考图", "主体"],
    "PiyingVACERepaint": [*VIDEO, "controlnet video", "video to video", "视频转视频", "重绘"],
    "PiyingVACEInpaint": [*VIDEO, "inpaint video", "mask video", "remove object", "replace object", "局部重绘"],
    "PiyingVACEOutpaint": [*VIDEO, "outpaint video", "expand video", "扩图", "扩画面"],
    "PiyingVACEExtend": [*VIDEO, "extend video", "image to video", "first last frame", "图生视频", "首尾帧", "延长"],
    "PiyingVACESample": [*VIDEO, "text to video", "txt2vid", "t2v", "sampler", "文生视频", "采样"],
    "PiyingVACELongVideo": [*VIDEO, "long video", "长视频", "文生视频"],
    "PiyingLoadHunyuanDiT": [*IMAGE, "load image model", "加载模型"],
    "PiyingHunyuanDiTLoRA": [*IMAGE, "lora loader", "加载LoRA"],
    "PiyingHunyuanDiT": [*IMAGE, "text to image", "txt2img", "t2i", "文生图"],
    "PiyingLoadPromptModel": [*PROMPT, "llm", "语言模型"],
    "PiyingExpandPrompt": [*PROMPT, "expand prompt", "llm"],
    "PiyingPromptServer": [*PROMPT, "ollama", "openai", "vllm", "lm studio"],
    "PiyingControlGray": ["grayscale", "colorize", "灰度", "上色"],
    "PiyingControlEdges": ["canny", "edges", "边缘"],
    "PiyingControlScribble": ["scribble", "sketch", "lineart", "线稿"],
    "PiyingControlFlow": ["optical flow", "motion", "光流"],
    "PiyingControlLayoutMask": ["layout", "track", "布局"],
    "PiyingControlLayoutBox": ["layout", "bounding box", "trajectory", "轨迹", "布局"],
    "PiyingControlDepth": ["depth", "depth anything", "深度"],
    "PiyingControlPose": ["pose", "openpose", "dwpose", "姿态"],
    "PiyingSegment": ["segment", "mask by text", "抠图", "分割", "遮罩"],
    "PiyingFrameRate": ["fps", "frame rate", "resample", "帧率"],
    "PiyingAlignAudio": ["audio", "sync sound", "音频", "声音"],
    "PiyingSampleClip": ["example video", "示例"],
    "PiyingSampleImage": ["example image", "示例"],
    "PiyingMemoryPlan": ["vram", "memory", "显存"],
}
