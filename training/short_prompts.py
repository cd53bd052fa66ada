"""What people type, and the caption it should become: the data of the prompt model.

Three kinds: short lines of the small language with some facts missing, the same with words from
outside of it, and free text, which is kept word for word with a sentence on style added.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .language import BACKGROUNDS, CAPTIONS, COLOURS, MOTION_WORDS, SHAPE_WORDS, STYLES, finished, tidy

STILL = "text_to_image"  # the one preset for pictures
PRESETS = ("text_to_video", STILL)
OTHERS = ("image_to_video", "vace_repaint", "vace_inpaint", "vace_outpaint", "vace_extend", "vace_reference")
MOVED = ("image_to_video", "vace_extend", "vace_reference")  # those of them that want a motion made up
ORDERED = ("vace_repaint", "vace_inpaint")  # presets whose lines may say what to change
ODD = 0.3  # share of lines with words from outside the language
HELD_OUT = 10  # one line in so many is never trained on
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NOUNS = {
    "en": [
        "star",
        "heart",
        "cat",
        "dog",
        "bird",
        "fish",
        "car",
        "boat",
        "house",
        "tree",
        "moon",
        "sun",
        "cloud",
        "leaf",
        "lantern",
        "fox",
        "dragon",
    ],
    "zh": [
        "星星",
        "爱心",
        "猫",
        "狗",
        "鸟",
        "鱼",
        "汽车",
        "船",
        "房子",
        "树",
        "月亮",
        "太阳",
        "云",
        "叶子",
        "灯笼",
        "狐狸",
        "龙",
    ],
}
TINTS = {
    "en": ["orange", "pink", "black", "gray", "brown", "golden"],
    "zh": ["橙色", "粉色", "黑色", "灰色", "棕色", "金色"],
}
# Words of free text; what the tokenizer makes of them does not matter.
COMMON_ENGLISH = """
a the a the in on of with and under over near two old young small big little bright dark city street rain
snow night morning river mountain sea wind girl boy man woman king horse piano garden plays runs dances
sleeps flies sings walks stands holds looks warm cold quiet long shadow puppet stage window bridge forest
"""
COMMON_CHINESE = """
一 只 在 雪 地 里 的 中 小 大 山 水 风 雨 夜 晚 春 秋 天 空 海 边 人 女 孩 老 少 年 城 市 街 道 桥 花 草
飞 跑 跳 舞 唱 歌 坐 站 看 手 皮 影 戏 台 灯 火 马 牛 羊 门 窗 前 后 之 与
"""
COMMON = {"en": COMMON_ENGLISH.split(), "zh": COMMON_CHINESE.split()}
OPENINGS = {
    "en": ["a video of ", "please draw ", "show ", "draw ", "I want "],
    "zh": ["画", "一段视频:", "请画", "我想要"],
}
SHORT_MOTIONS = {
    "en": {
        **{f"moves {way}": [f"moving to the {way}", f"to the {way}", f"going {way}"] for way in ("left", "right")},
        **{f"moves {way}": [f"moving {way}wards", f"going {way}"] for way in ("up", "down")},
        "stays still": ["not moving", "still"],
    },
    "zh": {
        "moves left": ["左移", "向左", "往左"],
        "moves right": ["右移", "向右", "往右"],
        "moves up": ["上移", "向上", "往上"],
        "moves down": ["下移", "向下", "往下"],
        "stays still": ["静止", "不动"],
    },
}
OBJECTS = {
    "en": ["{colour} {shape}", "a {colour} {shape}", "the {colour} {shape}"],
    "zh": ["{colour}{shape}", "一个{colour}{shape}", "{colour}的{shape}", "一个{colour}的{shape}"],
}
SURROUNDINGS = {
    "en": [
        "{object} on {background}",
        "{object} on a {background} background",
        "{object}, {background} background",
        "{background} background, {object}",
        "on a {background} background, {object}",
        "{object}, the background is {background}",
    ],
    "zh": [
        "{background}背景,{object}",
        "{background}背景上,{object}",
        "{object},{background}背景",
        "{object},背景是{background}",
        "{background}背景的{object}",
    ],
}

# What is to change, and into what: the answer speaks of the second alone.
ORDERS = {
    "en": [
        "replace the {other} with {{object}}",
        "change the {other} to {{object}}",
        "turn the {other} into {{object}}",
    ],
    "zh": ["把{other}换成{{object}}", "将{other}变成{{object}}", "把{other}改为{{object}}"],
}
# Captions in which a colour or a motion may be missing.
ANYWHERE = {"en": "a {colour} {shape} {motion}", "zh": "一个{colour}{shape}{motion}"}


@dataclass(frozen=True)
class Example:
    """One line and its answer, with the facts that were said: attribute → words of the answer."""

    preset: str
    language: str
    line: str
    answer: str
    said: dict[str, str]

    @property
    def held_out(self) -> bool:
        """Tell whether training must leave this line out."""
        return zlib.crc32(self.line.lower().encode()) % HELD_OUT == 0


@dataclass(frozen=True)
class Facts:
    """The words of an answer; those in `said` come from the line."""

    colour: str
    shape: str
    motion: str
    background: str
    said: frozenset[str]


def example(draw: random.Random, presets: Sequence[str] = PRESETS, odd: float = ODD) -> Example:
    """Return one line with its answer.

    Args:
        draw: decides everything.
        presets: what it may be for, evenly.
        odd: share of lines with words from outside the language, half of them in free text.
    """
    preset, language = draw.choice(presets), draw.choice(("en", "zh"))
    kind = draw.random()
    if kind < odd / 2:
        return free_text(preset, language, draw)
    facts = draw_facts(language, strange=kind < odd, draw=draw)
    if draw.random() < 0.15:
        return full_caption(facts, preset, language, draw)
    order = an_order(language, draw) if preset in ORDERED and draw.random() < 0.5 else ""
    line = short_line(facts, language, draw, order)
    line = line if order else dressed(line, language, draw)
    style = draw.choice(STYLES[language])
    return Example(preset, language, line, answer(facts, preset, language, style, draw), stated(facts, preset))


def stated(facts: Facts, preset: str) -> dict[str, str]:
    """Return the words that must be in the answer; a picture has no motion."""
    kept = facts.said - ({"motion"} if preset == STILL else set())
    return {name: getattr(facts, name) for name in sorted(kept)}


def draw_facts(language: str, strange: bool, draw: random.Random) -> Facts:
    """Draw the words of an answer and which of them the line says; `strange` takes nouns from outside."""
    colours, backgrounds = _colour_words(language)
    colour = draw.choice(TINTS[language] if strange and draw.random() < 0.4 else colours)
    shape = draw.choice(SHAPE_WORDS[language][draw.choice(list(SHAPE_WORDS[language]))])
    if strange:
        shape = draw.choice(NOUNS[language]) if draw.random() < 0.5 else made_up(language, draw)
    motion = draw.choice(MOTION_WORDS[language][draw.choice(list(MOTION_WORDS[language]))])
    said = {name for name, odds in (("motion", 0.45), ("background", 0.45)) if draw.random() < odds}
    said |= {"shape"} | ({"colour"} if draw.random() < 0.85 else set())
    # People may ask for blue on blue; the model itself never adds what cannot be seen.
    free = {"colour", "background"} <= said and draw.random() < 0.1
    background = draw.choice([word for word in backgrounds if free or word != colour])
    return Facts(colour, shape, motion, background, frozenset(said))


def _colour_words(language: str) -> tuple[list[str], list[str]]:
    if language == "en":
        return list(COLOURS), list(BACKGROUNDS)
    return list(COLOURS.values()), list(BACKGROUNDS.values())


def made_up(language: str, draw: random.Random) -> str:
    """Return a word that means nothing: it teaches copying."""
    if language == "en":
        return "".join(draw.choice(LETTERS) for _ in range(draw.randint(3, 7)))
    return "".join(chr(draw.randint(0x4E00, 0x8FFF)) for _ in range(draw.randint(1, 2)))


def an_order(language: str, draw: random.Random) -> str:
    """Return an order to change something, with a place for what it becomes."""
    colours, _ = _colour_words(language)
    shape = draw.choice(SHAPE_WORDS[language][draw.choice(list(SHAPE_WORDS[language]))])
    other = draw.choice([shape, f"{draw.choice(colours)} {shape}"])
    return draw.choice(ORDERS[language]).format(other=other if language == "en" else other.replace(" ", ""))


def short_line(facts: Facts, language: str, draw: random.Random, order: str = "") -> str:
    """Return a line that says the said facts and nothing else; with an `order`, that something becomes them."""
    colour = facts.colour if "colour" in facts.said else ""
    if language == "zh" and draw.random() < 0.3:
        colour = colour.replace("色", "")
    template = draw.choice(OBJECTS[language]) if colour else draw.choice(["{shape}", OBJECTS[language][1]])
    text = template.format(colour=colour, shape=facts.shape)
    if "motion" in facts.said:
        text += (" " if language == "en" else draw.choice(["", ","])) + said_motion(facts.motion, language, draw)
    text = order.format(object=text) if order else text
    if "background" in facts.said:
        word = facts.background
        if language == "zh" and draw.random() < 0.3:
            word = word.replace("色", "")
        text = draw.choice(SURROUNDINGS[language]).format(object=text, background=word)
    return tidy(text)


def said_motion(motion: str, language: str, draw: random.Random) -> str:
    """Return a way to say a motion: as the answer will, or shorter."""
    meaning = next(name for name, choices in MOTION_WORDS[language].items() if motion in choices)
    return motion if draw.random() < 0.6 else draw.choice(SHORT_MOTIONS[language][meaning])


def dressed(line: str, language: str, draw: random.Random) -> str:
    """Return a line as people write it: an opening, a capital, a stop, wide commas."""
    if draw.random() < 0.12:
        line = draw.choice(OPENINGS[language]) + line
    if draw.random() < 0.25:
        line = line[0].upper() + line[1:]
    if draw.random() < 0.25:
        line += draw.choice([".", "!"] if language == "en" else ["。", "!"])
    return line.replace(",", "，") if language == "zh" and draw.random() < 0.5 else line


def answer(facts: Facts, preset: str, language: str, style: str, draw: random.Random) -> str:
    """Return the caption an expander should give: every fact, as a sentence, and a style."""
    template = CAPTIONS[language][0] if draw.random() < 0.8 else draw.choice(CAPTIONS[language])
    if preset in OTHERS:
        facts = as_given(facts, preset)
        template = CAPTIONS[language][0] if facts.background else ANYWHERE[language]
    return finished(caption_of(facts, preset, template), language, style)


def as_given(facts: Facts, preset: str) -> Facts:
    """Return facts without looks that the line does not say: there is a picture or a video that has them."""
    made_up = {"colour", "background", *(() if preset in MOVED else ("motion",))} - facts.said
    return replace(facts, **dict.fromkeys(made_up, ""))


def caption_of(facts: Facts, preset: str, template: str) -> str:
    """Return a caption in the very words of `facts`."""
    motion = "" if preset == STILL else facts.motion
    text = template.format(colour=facts.colour, shape=facts.shape, motion=motion, background=facts.background)
    return tidy(text).replace(" ,", ",")


def full_caption(facts: Facts, preset: str, language: str, draw: random.Random) -> Example:
    """Return a line that says everything already: it stays as it is, with a style where it had none."""
    facts = Facts(facts.colour, facts.shape, facts.motion, facts.background, frozenset(FACT_NAMES))
    text, style = caption_of(facts, preset, draw.choice(CAPTIONS[language])), draw.choice(STYLES[language])
    full = finished(text, language, style)
    line = full if draw.random() < 0.3 else text
    return Example(preset, language, line, full, stated(facts, preset))


FACT_NAMES = ("colour", "shape", "motion", "background")


def free_text(preset: str, language: str, draw: random.Random) -> Example:
    """Return words in no known order, or several objects: they stay as they are, with a style behind them."""
    text = several(language, draw) if draw.random() < 0.25 else free_words(language, draw)
    if draw.random() < 0.5:
        text = text[0].upper() + text[1:]
    return Example(preset, language, text, finished(text, language, draw.choice(STYLES[language])), {"text": text})


def free_words(language: str, draw: random.Random) -> str:
    """Return 3 to 9 words, a few of them made up, at least two of a kind no short line has."""
    pools = (COMMON[language], COMMON[language], NOUNS[language], TINTS[language])
    drawn = [draw.choice(COMMON[language]) for _ in range(2)]
    for _ in range(draw.randint(1, 7)):
        drawn.append(made_up(language, draw) if draw.random() < 0.25 else draw.choice(draw.choice(pools)))
    draw.shuffle(drawn)
    return (" " if language == "en" else "").join(drawn)


def several(language: str, draw: random.Random) -> str:
    """Return a line about more than one object: the models draw one, so nothing may be made up about it."""
    facts = draw_facts(language, strange=draw.random() < 0.3, draw=draw)
    colour = facts.colour if draw.random() < 0.8 else ""
    if language == "en":
        text = tidy(f"{draw.choice(['two', 'three', 'four', 'many'])} {colour} {facts.shape}s")
    else:
        text = f"{draw.choice(['两个', '三个', '四个', '许多'])}{colour}{facts.shape}"
    if draw.random() < 0.4:
        text = draw.choice(SURROUNDINGS[language]).format(object=text, background=facts.background)
    return text


def typed_words() -> set[str]:
    """Return the words of lines that are not words of captions."""
    choices = (NOUNS, TINTS, OPENINGS)
    texts = {text for table in choices for language in ("en", "zh") for text in table[language]}
    texts |= {text for table in SHORT_MOTIONS.values() for ways in table.values() for text in ways}
    return {word.strip(":,") for text in texts for word in text.split()} | {"the", "background", "!", "，"}
