"""Negative prompts: the published terms, less those that contradict what the prompt asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .language import Language
from .presets import is_for_video


@dataclass(frozen=True)
class NegativeTerm:
    """One term of a negative prompt.

    Attributes:
        english, chinese: the term.
        asked_by: pattern of the prompts that ask for what it forbids.
        only: the kind of result it is for; "" for both.
    """

    english: str
    chinese: str
    asked_by: str = ""
    only: Literal["", "video", "picture"] = ""


# After the negative prompts published with Wan2.1 (wan/configs/shared_config.py) and Hunyuan-DiT
# (app/default.py), in both languages and without what contradicts itself across prompts.
NEGATIVE_TERMS = (
    NegativeTerm("overexposed", "过曝", r"overexpos|high[- ]key|过曝|高调"),
    NegativeTerm("garish colours", "色调艳丽", r"vivid|neon|vibrant|saturated|colou?rful|艳|霓虹|鲜艳|彩色|五彩|缤纷"),
    NegativeTerm(
        "static", "静态", r"\bstill|static|motionless|not move|time[- ]?stop|静止|不动|静态|定格|凝固", "video"
    ),
    NegativeTerm(
        "motionless frame", "静止不动的画面", r"\bstill|static|motionless|not move|静止|不动|静态|定格", "video"
    ),
    NegativeTerm(
        "blurred details",
        "细节模糊不清",
        r"blur|bokeh|soft focus|out of focus|dream|haz[ey]|fog|mist|模糊|虚化|朦胧|柔焦|雾",
    ),
    NegativeTerm("subtitles", "字幕", r"subtitle|caption|字幕|[\"“「『]|text|sign|写着|文字|招牌|标题"),
    NegativeTerm("watermark", "水印", r"watermark|logo|水印|标志"),
    NegativeTerm(
        "painting",
        "画作",
        r"paint|draw|sketch|watercolou?r|illustrat|anime|cartoon|comic|ink|art\b|puppet|paper|画|绘|水墨|动漫|卡通|插图|皮影|剪纸",
    ),
    NegativeTerm("overall gray", "整体发灰", r"gr[ae]y|black and white|monochrom|fog|mist|noir|灰|黑白|雾|单色"),
    NegativeTerm("worst quality", "最差质量"),
    NegativeTerm("low quality", "低质量", r"\bvhs\b|lo-?fi|retro|vintage|old film|复古|老电影|胶片"),
    NegativeTerm("JPEG artefacts", "JPEG压缩残留"),
    NegativeTerm("ugly", "丑陋的", r"ugly|monster|horror|zombie|witch|丑|怪物|恐怖|僵尸|妖"),
    NegativeTerm("incomplete", "残缺的", r"ruin|broken|crack|half|close[- ]?up|废墟|残|破|特写|半身"),
    NegativeTerm("extra fingers", "多余的手指"),
    NegativeTerm("badly drawn hands", "画得不好的手部"),
    NegativeTerm("badly drawn face", "画得不好的脸部"),
    NegativeTerm("deformed", "畸形的", r"monster|mutant|alien|deform|怪物|变异|外星"),
    NegativeTerm("disfigured", "毁容的", r"scar|wound|zombie|疤|伤|僵尸"),
    NegativeTerm("fused fingers", "手指融合"),
    NegativeTerm(
        "cluttered background", "杂乱的背景", r"crowd|market|messy|clutter|street|集市|人群|杂乱|拥挤|闹市|街"
    ),
    NegativeTerm("three legs", "三条腿", r"three[- ]legg|三条腿|三足"),
    NegativeTerm(
        "many people in the background", "背景人很多", r"crowd|people|audience|market|人群|观众|集市|很多人|拥挤"
    ),
    NegativeTerm("walking backwards", "倒着走", r"backward|reverse|moonwalk|倒着|倒退|后退|倒放", "video"),
)


def suggest_negative(prompt: str, preset: str, language: Language | None) -> str:
    """Return a negative prompt for a prompt.

    Args:
        prompt: the user's line; what it asks for is not forbidden.
        preset: what it is for; a picture may be static.
        language: `en`; anything else gives Chinese, in which both models' authors publish theirs.
    """
    kind = "video" if is_for_video(preset) else "picture"
    terms = [
        term
        for term in NEGATIVE_TERMS
        if term.only in ("", kind) and not (term.asked_by and re.search(term.asked_by, prompt, re.IGNORECASE))
    ]
    if language == "en":
        return ", ".join(term.english for term in terms)
    return "，".join(term.chinese for term in terms)
