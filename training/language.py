"""The small language that the built-in models share: colours, shapes, motions, backgrounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

COLOURS = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "white": "白色"}
BACKGROUNDS = {"white": "白色", "black": "黑色", "gray": "灰色", "blue": "蓝色", "green": "绿色"}
SHAPES = {"circle": "圆形", "square": "方块", "triangle": "三角形"}
MOTIONS = {
    "moves left": "向左移动",
    "moves right": "向右移动",
    "moves up": "向上移动",
    "moves down": "向下移动",
    "stays still": "静止不动",
}


def captions() -> Iterator[str]:
    """Yield every caption of the language, English and Chinese in turn."""
    for colour, shape, motion, background in itertools.product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS):
        if colour != background:
            yield f"a {colour} {shape} {motion} on a {background} background"
            yield (
                f"{BACKGROUNDS[background]}背景上,一个{COLOURS[colour]}{SHAPES[shape]}{MOTIONS[motion]}"
            )
