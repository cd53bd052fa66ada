"""Words for colours, numbers, camera work and directions in both languages: what is one thing said differently."""

from __future__ import annotations

import re
from dataclasses import dataclass

# colour → English words, Chinese characters. Either says that the colour is there.
COLOURS: dict[str, tuple[str, str]] = {
    "red": ("red|reddish|crimson|scarlet|ruby|vermilion", "红|赤|朱|绯"),
    "orange": ("orange", "橙|橘"),
    "yellow": ("yellow|yellowish", "黄"),
    "green": ("green|greenish|emerald", "绿|翠|碧"),
    "blue": ("blue|bluish|azure|navy|cobalt", "蓝|靛"),
    "cyan": ("cyan|teal|turquoise", "青"),
    "purple": ("purple|violet|lavender", "紫"),
    "pink": ("pink|pinkish", "粉"),
    "brown": ("brown|brownish", "棕|褐|咖啡色"),
    "black": ("black|blackish", "黑|墨|乌"),
    "white": ("white|whitish", "白"),
    "gray": ("gr[ae]y|gr[ae]yish", "灰"),
    "gold": ("gold|golden", "金"),
    "silver": ("silver|silvery", "银"),
    "beige": ("beige|cream", "米色|米黄|米白"),
}
# A Chinese character is a colour before 色 or 的, behind a shade, or before a thing that has one: 红 in 红绿灯
# is none, 黄 in 黄河 and 白 in 明白 neither.
SHADES = "深浅淡暗亮鲜纯大艳嫩墨天海湖藏玫粉桃酒橘金银雪乳漆乌枣翠草宝"
COLOURED_THINGS = "球衣裙帽伞花车旗布鞋袍圆方墙门发猫狗马鸟鱼灯鼠兔龙狐牛羊背底"
MISLEADING = re.compile("红绿灯|黄金|白金|黑白|青铜|白银|花白")

NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBER_WORDS += ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]
NUMBER_WORDS += ["nineteen", "twenty"]
ALSO = {2: "pair|couple|both|twin|twins", 12: "dozen"}
ALSO_CHINESE = {2: "两|双|对|俩", 3: "仨"}
DIGITS = "零一二三四五六七八九"
MEASURES = "只个位名条辆朵头匹棵座盏艘架群张把颗块扇根枝支片间栋幅台杯碗瓶人艘串"
COUNTED = 100  # numbers up to here may be written as words


@dataclass(frozen=True)
class Term:
    """A way of filming: patterns for it in English and in Chinese; `moves` where only a video can have it."""

    name: str
    english: str
    chinese: str
    moves: bool = True


CAMERA = (
    Term("zoom in", r"zoom(?:s|ing|ed)?[ -]in", "推近|推进|拉近|前推|推镜|放大"),
    Term("zoom out", r"zoom(?:s|ing|ed)?[ -]out|pull(?:s|ing|ed)? (?:back|out)", "拉远|后拉|拉镜|拉开"),
    Term("push in", r"(?:dolly|dollies|dollying|push|pushes|pushing)[ -](?:in|forward)", "推近|推进|前推|推镜"),
    Term("pan", r"pan(?:s|ning|ned)?", "摇镜|横摇|平摇|摇摄|摇移|平移|横移|镜头[向往]?[左右]?[^。，]{0,2}摇"),
    Term("tilt", r"tilt(?:s|ing|ed)?", "上摇|下摇|俯仰|上仰|下俯"),
    Term(
        "tracking shot", r"track(?:s|ing) (?:shot|camera)|camera (?:tracks|follows)|follow shot", "跟拍|跟随|跟镜|追踪"
    ),
    Term("orbit", r"orbit(?:s|ing)?|arc shot|camera (?:circles|rotates)", "环绕|绕[^。，]{0,6}(?:转|拍)"),
    Term("crane", r"crane shot", "升降镜|摇臂"),
    Term("handheld", r"hand-?held", "手持"),
    Term(
        "static camera",
        r"(?:static|fixed|locked|locked-off|stationary|still) (?:camera|shot|frame)|tripod",
        "固定镜头|固定机位|镜头固定|镜头静止|静止镜头|镜头不动",
    ),
    Term("slow motion", r"slow[ -]?mo(?:tion)?", "慢动作|慢镜头|升格"),
    Term("time-lapse", r"time[ -]?lapse", "延时|缩时"),
    Term("aerial", r"aerial|drone|bird['’]s[ -]eye|overhead|top[ -]down", "航拍|俯瞰|鸟瞰|俯拍|俯视", moves=False),
    Term("low angle", r"low[ -]angle", "仰拍|仰视|低角度|低机位|仰角", moves=False),
    Term("high angle", r"high[ -]angle", "高角度|高机位|俯拍|俯视", moves=False),
    Term("close-up", r"close[ -]?ups?|macro", "特写|近景|微距", moves=False),
    Term("wide shot", r"wide[ -](?:shot|angle)|long shot|establishing shot", "全景|远景|广角", moves=False),
    Term("medium shot", r"medium[ -]shot", "中景", moves=False),
    Term("first person", r"first[ -]person|pov", "第一人称|主观镜头|主观视角", moves=False),
)
_GOING = (
    r"to|toward|towards|from|mov(?:es?|ing)|turn(?:s|ing)?|runs?|walks?|go(?:es|ing)?|slid(?:es?|ing)|fl(?:ies|ying)"
)
# What asks for a direction, and what says it.
DIRECTIONS = {
    way: Term(
        way,
        rf"(?:{_GOING}) (?:the |its )?{way}(?:wards?)?",
        rf"[向往朝](?:着|画面)?{sign}|{sign}移",
    )
    for way, sign in (("left", "左"), ("right", "右"), ("up", "上"), ("down", "下"))
}
DIRECTION_SAID = {
    "left": Term("left", r"left(?:wards?)?", "左"),
    "right": Term("right", r"right(?:wards?)?", "右"),
    "up": Term("up", r"up(?:wards?)?|ris(?:es|ing)|ascend(?:s|ing)?", "向上|往上|朝上|上移|上升|升起|升"),
    "down": Term(
        "down", r"down(?:wards?)?|fall(?:s|ing)?|descend(?:s|ing)?|drop(?:s|ping)?", "向下|往下|朝下|下移|下降|落|降"
    ),
}


def number_forms(value: int) -> tuple[str, str]:
    """Return patterns for a number of things, in English and in Chinese."""
    words = [str(value)]
    if value < len(NUMBER_WORDS):
        words.append(NUMBER_WORDS[value])
    english = "|".join([*words, *ALSO.get(value, "").split("|")]).strip("|")
    chinese = "|".join(filter(None, [chinese_number(value), ALSO_CHINESE.get(value, "")]))
    return english, chinese


def chinese_number(value: int) -> str:
    """Return a number below 100 in Chinese characters, else nothing."""
    if value < 10:
        return DIGITS[value]
    if value >= COUNTED:
        return ""
    tens, ones = divmod(value, 10)
    return f"{DIGITS[tens] if tens > 1 else ''}十{DIGITS[ones] if ones else ''}"


CHINESE_NUMBERS = {chinese_number(value): value for value in range(COUNTED)} | {"两": 2}
