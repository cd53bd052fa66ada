"""The small language that the built-in models share: colours, shapes, motions, backgrounds.

A `Scene` is what a caption says. Captions come in several wordings and orders, in English and
Chinese, alone or with a sentence on style behind them.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LANGUAGES = ("en", "zh")
COLOURS = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "white": "白色",
}
BACKGROUNDS = {"white": "白色", "black": "黑色", "gray": "灰色", "blue": "蓝色", "green": "绿色"}
SHAPES = {"circle": "圆形", "square": "方块", "triangle": "三角形"}
MOTIONS = {
    "moves left": "向左移动",
    "moves right": "向右移动",
    "moves up": "向上移动",
    "moves down": "向下移动",
    "stays still": "静止不动",
}

# Other words for the same things, understood beside the words above.
SHAPE_WORDS = {
    "en": {"circle": ["circle", "ball", "disc"], "square": ["square", "box", "block"], "triangle": ["triangle"]},
    "zh": {
        "circle": ["圆形", "圆", "球", "圆球"],
        "square": ["方块", "正方形", "方形"],
        "triangle": ["三角形", "三角"],
    },
}
MOTION_WORDS = {
    "en": {
        **{
            f"moves {way}": [f"moves {way}", f"goes {way}", f"slides {way}", f"moving {way}"]
            for way in ("left", "right", "up", "down")
        },
        "stays still": ["stays still", "does not move", "standing still"],
    },
    "zh": {
        **{
            motion: [chinese, chinese.replace("向", "往"), chinese.replace("移动", "走")]
            for motion, chinese in MOTIONS.items()
            if motion != "stays still"
        },
        "stays still": ["静止不动", "静止", "不动"],
    },
}
CAPTIONS = {
    "en": [
        "a {colour} {shape} {motion} on a {background} background",
        "on a {background} background, a {colour} {shape} {motion}",
        "a {colour} {shape} {motion}, {background} background",
        "{background} background: a {colour} {shape} {motion}",
    ],
    "zh": [
        "{background}背景上,一个{colour}{shape}{motion}",
        "一个{colour}{shape}在{background}背景上{motion}",
        "一个{colour}的{shape}{motion},背景是{background}",
        "背景是{background},一个{colour}的{shape}{motion}",
    ],
}
STYLES = {
    "en": ["Flat colours, clean edges.", "Even light, plain and simple.", "Like a paper cutout, crisp and bright."],
    "zh": ["色彩平涂,边缘清晰。", "光线均匀,简洁明快。", "如同剪纸,鲜明利落。"],
}
HELD_OUT = 5  # one scene in so many is never trained on


@dataclass(frozen=True)
class Scene:
    """What a caption says, in the English words of the language; `motion` is None for a picture."""

    colour: str
    shape: str
    motion: str | None
    background: str

    @property
    def held_out(self) -> bool:
        """Tell whether training must leave this scene out."""
        key = f"{self.colour} {self.shape} {self.motion} {self.background}"
        return zlib.crc32(key.encode()) % HELD_OUT == 0


def scenes(moving: bool = True) -> Iterator[Scene]:
    """Yield every scene of the language; an object never has the colour of its background."""
    motions: list[str | None] = list(MOTIONS) if moving else [None]
    for colour, shape, motion, background in itertools.product(COLOURS, SHAPES, motions, BACKGROUNDS):
        if colour != background:
            yield Scene(colour, shape, motion, background)


def fill(template: str, scene: Scene, language: str, shape: str = "", motion: str = "") -> str:
    """Return a caption template with the words of a scene; `shape` and `motion` overrule its plain words."""
    english = language == "en"
    return template.format(
        colour=scene.colour if english else COLOURS[scene.colour],
        background=scene.background if english else BACKGROUNDS[scene.background],
        shape=shape or (scene.shape if english else SHAPES[scene.shape]),
        motion=motion or plain_motion(scene, language),
    ).replace(" ,", ",")


def plain_motion(scene: Scene, language: str) -> str:
    """Return the plain words for a scene's motion; none for a picture."""
    if scene.motion is None:
        return ""
    return scene.motion if language == "en" else MOTIONS[scene.motion]


def plain_caption(scene: Scene, language: str) -> str:
    """Return the plainest caption of a scene."""
    return tidy(fill(CAPTIONS[language][0], scene, language))


def tidy(text: str) -> str:
    """Return a text without the doubled spaces that an absent word leaves."""
    return " ".join(text.split())


def caption(scene: Scene, language: str, draw: random.Random) -> str:
    """Return a caption in a wording drawn at random."""
    motion = pick(MOTION_WORDS[language][scene.motion], draw) if scene.motion else ""
    shape = pick(SHAPE_WORDS[language][scene.shape], draw)
    text = tidy(fill(pick(CAPTIONS[language], draw), scene, language, shape, motion))
    if draw.random() < 0.3:
        return finished(text, language, pick(STYLES[language], draw))
    return text


def pick(choices: Sequence[str], draw: random.Random) -> str:
    """Return one of some choices; `draw` moves on alike however many there are (`choice` does not)."""
    return choices[int(draw.random() * len(choices))]


def finished(text: str, language: str, style: str) -> str:
    """Return a caption as a sentence, with a sentence on style behind it."""
    return f"{text[0].upper()}{text[1:]}. {style}" if language == "en" else f"{text}。{style}"


def captions() -> Iterator[str]:
    """Yield the plain caption of every scene, English and Chinese in turn."""
    for scene in scenes():
        for language in LANGUAGES:
            yield plain_caption(scene, language)


def words() -> list[str]:
    """Return every word the captions are made of, Chinese ones uncut."""
    english = {*COLOURS, *BACKGROUNDS, *_inner(SHAPE_WORDS["en"]), *_inner(MOTION_WORDS["en"])}
    english |= {template.format(colour="", shape="", motion="", background="") for template in CAPTIONS["en"]}
    english |= {*STYLES["en"], *(style.lower() for style in STYLES["en"])}
    split = {word.strip(".,:") for text in english for word in text.split()}
    capitals = {word.capitalize() for word in split}
    return sorted({*split, *capitals} - {""}) + sorted(_chinese_words())


def _chinese_words() -> set[str]:
    stems = {word.replace("色", "") for word in (*COLOURS.values(), *BACKGROUNDS.values())}
    particles = {
        "色",
        "的",
        "一个",
        "在",
        "上",
        "是",
        "背景",
        "向",
        "往",
        "左",
        "右",
        "下",
        "移动",
        "走",
        "不动",
        "静止",
    }
    return stems | particles | _inner(SHAPE_WORDS["zh"]) | set("".join(STYLES["zh"]))


def _inner(table: dict[str, list[str]]) -> set[str]:
    return {word for choices in table.values() for word in choices}
