"""A negative prompt that does not forbid what the prompt asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .presets import shows_motion


@dataclass(frozen=True)
class Unwanted:
    """Something to steer away from, and the words of a prompt that ask for it."""

    english: str
    chinese: str
    asked_by: str = ""
    only: str = ""  # "video" or "picture", else both


# After the negative prompts published with Wan2.1 (wan/configs/shared_config.py) and Hunyuan-DiT
# (app/default.py), in both languages and without what contradicts itself across prompts.
UNWANTED = (
    Unwanted("overexposed", "过曝", r"overexpos|high[- ]key|过曝|高调"),
    Unwanted("garish colours", "色调艳丽", r"vivid|neon|vibrant|saturated|colou?rful|艳|霓虹|鲜艳|彩色|五彩|缤纷"),
    Unwanted("static", "静态", r"\bstill|static|motionless|not move|time[- ]?stop|静止|不动|静态|定格|凝固", "video"),
    Unwanted("motionless frame", "静止不动的画面", r"\bstill|static|motionless|not move|静止|不动|静态|定格", "video"),
    Unwanted(
        "blurred details",
        "细节模糊不清",
        r"blur|bokeh|soft focus|out of focus|dream|haz[ey]|fog|mist|模糊|虚化|朦胧|柔焦|雾",
    ),
    Unwanted("subtitles", "字幕", r"subtitle|caption|字幕|[\"“「『]|text|sign|写着|文字|招牌|标题"),
    Unwanted("watermark", "水印", r"watermark|logo|水印|标志"),
    Unwanted(
        "painting",
        "画作",
        r"paint|draw|sketch|watercolou?r|illustrat|anime|cartoon|comic|ink|art\b|puppet|paper|画|绘|水墨|动漫|卡通|插图|皮影|剪纸",
    ),
    Unwanted("overall gray", "整体发灰", r"gr[ae]y|black and white|monochrom|fog|mist|noir|灰|黑白|雾|单色"),
    Unwanted("worst quality", "最差质量"),
    Unwanted("low quality", "低质量", r"\bvhs\b|lo-?fi|retro|vintage|old film|复古|老电影|胶片"),
    Unwanted("JPEG artefacts", "JPEG压缩残留"),
    Unwanted("ugly", "丑陋的", r"ugly|monster|horror|zombie|witch|丑|怪物|恐怖|僵尸|妖"),
    Unwanted("incomplete", "残缺的", r"ruin|broken|crack|half|close[- ]?up|废墟|残|破|特写|半身"),
    Unwanted("extra fingers", "多余的手指"),
    Unwanted("badly drawn hands", "画得不好的手部"),
    Unwanted("badly drawn face", "画得不好的脸部"),
    Unwanted("deformed", "畸形的", r"monster|mutant|alien|deform|怪物|变异|外星"),
    Unwanted("disfigured", "毁容的", r"scar|wound|zombie|疤|伤|僵尸"),
    Unwanted("fused fingers", "手指融合"),
    Unwanted("cluttered background", "杂乱的背景", r"crowd|market|messy|clutter|street|集市|人群|杂乱|拥挤|闹市|街"),
    Unwanted("three legs", "三条腿", r"three[- ]legg|三条腿|三足"),
    Unwanted(
        "many people in the background", "背景人很多", r"crowd|people|audience|market|人群|观众|集市|很多人|拥挤"
    ),
    Unwanted("walking backwards", "倒着走", r"backward|reverse|moonwalk|倒着|倒退|后退|倒放", "video"),
)


def suggest_negative(prompt: str, preset: str, language: str | None) -> str:
    """Return a negative prompt for a prompt.

    Args:
        prompt: the user's line; what it asks for is not forbidden.
        preset: what it is for; a picture may stand still.
        language: `en`; anything else gives Chinese, which both models' authors use.
    """
    kind = "video" if shows_motion(preset) else "picture"
    terms = [term for term in UNWANTED if term.only in ("", kind) and not _asked(term, prompt)]
    if language == "en":
        return ", ".join(term.english for term in terms)
    return "，".join(term.chinese for term in terms)


def _asked(term: Unwanted, prompt: str) -> bool:
    return bool(term.asked_by) and re.search(term.asked_by, prompt, re.IGNORECASE) is not None
