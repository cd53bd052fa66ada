"""Facts of a prompt: what an answer must keep, found in the prompt and looked up in the answer.

Facts are quoted text, numbers, counts, colours, names, camera work and directions, and the words that the user
lists. All but quotes and names are matched in Chinese and English, so that a translation is checked as well. Names
are recognised by their capitals; Chinese has none, so a Chinese name counts only behind 叫 or 名为.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from .language import HAN, language_of

FactKind = Literal["quoted", "kept", "number", "count", "colour", "name", "camera", "direction"]

# Missing facts of these kinds may be appended to an answer. One of the others contradicts what the answer says
# in its place: a blue ball cannot become a red one by a further sentence.
APPENDABLE: frozenset[FactKind] = frozenset({"quoted", "number", "name", "camera", "kept"})

# Facts of these kinds are kept as they are written, whatever the language of the answer.
VERBATIM: frozenset[FactKind] = frozenset({"quoted", "kept", "number", "name"})

# Vocabulary

# colour → English words, Chinese characters.
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
# In Chinese a colour's character counts only before 色 or 的, behind a shade, or before a thing that has a colour:
# 红绿灯, 黄河 and 明白 hold such characters and no colour.
SHADES = "深浅淡暗亮鲜纯大艳嫩墨天海湖藏玫粉桃酒橘金银雪乳漆乌枣翠草宝"
COLOURED_THINGS = "球衣裙帽伞花车旗布鞋袍圆方墙门发猫狗马鸟鱼灯鼠兔龙狐牛羊背底"
NO_COLOURS = re.compile("红绿灯|黄金|白金|黑白|青铜|白银|花白")

NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBER_WORDS += ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]
NUMBER_WORDS += ["nineteen", "twenty"]
GROUP_WORDS = {"dozen": 12, "pair": 2, "couple": 2}
NUMBER_SYNONYMS = {2: "pair|couple|both|twin|twins", 12: "dozen"}
CHINESE_NUMBER_SYNONYMS = {2: "两|双|对|俩", 3: "仨"}
CHINESE_DIGITS = "零一二三四五六七八九"
MEASURE_WORDS = "只个位名条辆朵头匹棵座盏艘架群张把颗块扇根枝支片间栋幅台杯碗瓶人艘串"
MAX_COUNT = 20  # larger numbers in digits, such as years, must be kept as they are written


@dataclass(frozen=True)
class CameraTerm:
    """A camera move, shot or angle: its patterns in English and in Chinese.

    Attributes:
        name: what identifies it.
        english, chinese: regular expressions.
        moves: only a video can have it.
    """

    name: str
    english: str
    chinese: str
    moves: bool = True


CAMERA = (
    CameraTerm("zoom in", r"zoom(?:s|ing|ed)?[ -]in", "推近|推进|拉近|前推|推镜|放大"),
    CameraTerm("zoom out", r"zoom(?:s|ing|ed)?[ -]out|pull(?:s|ing|ed)? (?:back|out)", "拉远|后拉|拉镜|拉开"),
    CameraTerm("push in", r"(?:dolly|dollies|dollying|push|pushes|pushing)[ -](?:in|forward)", "推近|推进|前推|推镜"),
    CameraTerm("pan", r"pan(?:s|ning|ned)?", "摇镜|横摇|平摇|摇摄|摇移|平移|横移|镜头[向往]?[左右]?[^。，]{0,2}摇"),
    CameraTerm("tilt", r"tilt(?:s|ing|ed)?", "上摇|下摇|俯仰|上仰|下俯"),
    CameraTerm(
        "tracking shot", r"track(?:s|ing) (?:shot|camera)|camera (?:tracks|follows)|follow shot", "跟拍|跟随|跟镜|追踪"
    ),
    CameraTerm("orbit", r"orbit(?:s|ing)?|arc shot|camera (?:circles|rotates)", "环绕|绕[^。，]{0,6}(?:转|拍)"),
    CameraTerm("crane", r"crane shot", "升降镜|摇臂"),
    CameraTerm("handheld", r"hand-?held", "手持"),
    CameraTerm(
        "static camera",
        r"(?:static|fixed|locked|locked-off|stationary|still) (?:camera|shot|frame)|tripod",
        "固定镜头|固定机位|镜头固定|镜头静止|静止镜头|镜头不动",
    ),
    CameraTerm("slow motion", r"slow[ -]?mo(?:tion)?", "慢动作|慢镜头|升格"),
    CameraTerm("time-lapse", r"time[ -]?lapse", "延时|缩时"),
    CameraTerm(
        "aerial", r"aerial|drone|bird['’]s[ -]eye|overhead|top[ -]down", "航拍|俯瞰|鸟瞰|俯拍|俯视", moves=False
    ),
    CameraTerm("low angle", r"low[ -]angle", "仰拍|仰视|低角度|低机位|仰角", moves=False),
    CameraTerm("high angle", r"high[ -]angle", "高角度|高机位|俯拍|俯视", moves=False),
    CameraTerm("close-up", r"close[ -]?ups?|macro", "特写|近景|微距", moves=False),
    CameraTerm("wide shot", r"wide[ -](?:shot|angle)|long shot|establishing shot", "全景|远景|广角", moves=False),
    CameraTerm("medium shot", r"medium[ -]shot", "中景", moves=False),
    CameraTerm("first person", r"first[ -]person|pov", "第一人称|主观镜头|主观视角", moves=False),
)
_MOTION = (
    r"to|toward|towards|from|mov(?:es?|ing)|turn(?:s|ing)?|runs?|walks?|go(?:es|ing)?|slid(?:es?|ing)|fl(?:ies|ying)"
)
SIGNS = {"left": "左", "right": "右", "up": "上", "down": "下"}
# direction → patterns that ask for it in a prompt. "Left" alone does not: it may be a side or a past tense.
DIRECTIONS: dict[str, tuple[str, str]] = {
    way: (rf"(?:{_MOTION}) (?:the |its )?{way}(?:wards?)?", rf"[向往朝](?:着|画面)?{sign}|{sign}移")
    for way, sign in SIGNS.items()
}
OPPOSITES = {"left": "right", "right": "left", "up": "down", "down": "up"}
# direction → patterns that state it in an answer, which need only mention it.
DIRECTION_SYNONYMS: dict[str, tuple[str, str]] = {
    "left": (r"left(?:wards?)?", "左"),
    "right": (r"right(?:wards?)?", "右"),
    "up": (r"up(?:wards?)?|ris(?:es|ing)|ascend(?:s|ing)?", "向上|往上|朝上|上移|上升|升起|升"),
    "down": (
        r"down(?:wards?)?|fall(?:s|ing)?|descend(?:s|ing)?|drop(?:s|ping)?",
        "向下|往下|朝下|下移|下降|落|降",
    ),
}

# Patterns

QUOTED = re.compile(
    "“([^”]{1,200})”|「([^」]{1,200})」|『([^』]{1,200})』|《([^》]{1,200})》|‘([^’]{1,200})’"
    "|\"([^\"\n]{1,200})\"|(?<!\\w)'([^'\n]{1,200})'(?!\\w)"
)
NUMBER = re.compile(r"(?<![\w.])\d[\d.,:/]*(?:[A-Za-z]{1,4}\b|%)?")
ENGLISH_COUNT = re.compile(rf"\b({'|'.join([*NUMBER_WORDS[2:], *GROUP_WORDS])})\b", re.IGNORECASE)
CHINESE_COUNT = re.compile(f"([两二三四五六七八九十]+)[{MEASURE_WORDS}]|一(对)")
CAPITALISED = re.compile(r"[A-Z][\w'’-]*(?:\s+(?:of|the|de|von|van)(?=\s+[A-Z])|\s+[A-Z][\w'’-]*)*")
CHINESE_NAME = re.compile("(?:名叫|叫做|叫作|名为|(?<![喊呼吼鸣尖狗鸟])叫)([\u4e00-\u9fff]{2,3})(?=[的，。,. ]|$)")
LATIN_IN_CHINESE = re.compile(r"[A-Za-z][\w'’-]*(?:\s[A-Z][\w'’-]*)*")
NOT_NAMES = {"I", "I'm", "I’m", "A", "OK", "CG", "AI", "HDR", "UHD", "HD"}
SENTENCE_START = re.compile(r"(?:^|[.!?。！？:：\n\"“「(]\s*)$")
ARTICLES = {"A", "An", "The", "In", "On", "At", "One", "Two", "Three", "Some", "Many", "My", "Our", "This", "That"}
# What an edit instruction says goes away, with its verb; what replaces it is not part of the match.
EDITED_AWAY = re.compile(
    r"\b(?:replace|swap|change|turn|convert|transform)\s+(?:[^.;,]+?)\s+(?:with|by|for|into|to)\b"
    r"|\b(?:remove|delete|erase|take away|get rid of|instead of|without)\s+[^.;,]+"
    r"|把[^，。；]+?(?:换成|改成|变成|改为|变为|替换成|替换为)|将[^，。；]+?(?:换成|改成|变成|改为|变为|替换成|替换为)"
    r"|(?:去掉|去除|移除|删除|删掉|擦除|抹去|没有|不要)[^，。；]+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fact:
    """Something a prompt says.

    Attributes:
        kind: of fact.
        text: its words in the prompt.
        value: their meaning, whatever the language: a colour, a number, a camera term; else the words again.
    """

    kind: FactKind
    text: str
    value: str


def find_facts(prompt: str, moving: bool = True, keep: str = "") -> list[Fact]:
    """Return what must be in an answer, no meaning twice.

    Args:
        prompt: the user's line.
        moving: the answer is for a video; a picture has no directions and no camera moves.
        keep: further words to keep, separated by commas or lines.
    """
    found = [Fact("kept", word.strip(), word.strip()) for word in re.split("[,，;；\n]", keep) if word.strip()]
    for quoted in QUOTED.finditer(prompt):
        text = next(filter(None, quoted.groups())).strip()
        found.append(Fact("quoted", text, text))
    # A number or colour inside quotes is kept with the quoted text.
    rest = QUOTED.sub(" ", prompt)
    found += [*_numbers(rest), *_colours(rest), *_camera(rest, moving), *_names(rest)]
    if moving:
        for way, patterns in DIRECTIONS.items():
            if match := _either_language(*patterns).search(rest):
                found.append(Fact("direction", match.group(), way))
    return list({(fact.kind, fact.value): fact for fact in reversed(found)}.values())[::-1]


def missing_facts(facts: list[Fact], answer: str, translated: bool) -> list[Fact]:
    """Return the facts an answer does not state.

    Args:
        facts: of the prompt.
        answer: in either language.
        translated: the answer has another language than the prompt; names, which are spelled otherwise then, are
            not looked for.
    """
    return [fact for fact in facts if not (translated and fact.kind == "name") and not is_stated(fact, answer)]


def is_stated(fact: Fact, answer: str) -> bool:
    """Return whether an answer states a fact, in either language."""
    if fact.kind in ("quoted", "kept", "name"):
        wanted, given = (" ".join(text.split()) for text in (fact.value, answer))
        return wanted in given if fact.kind == "quoted" else wanted.lower() in given.lower()
    if fact.kind == "number":
        return re.search(rf"(?<![\d.]){re.escape(fact.value)}(?!\d)", answer, re.IGNORECASE) is not None
    if fact.kind == "colour":
        synonyms = [COLOURS[fact.value]]
    elif fact.kind == "count":
        number = int(fact.value)
        word = NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else ""
        english = [str(number), word, NUMBER_SYNONYMS.get(number, "")]
        chinese = [chinese_number(number), CHINESE_NUMBER_SYNONYMS.get(number, "")]
        synonyms = [("|".join(filter(None, english)), "|".join(filter(None, chinese)))]
    elif fact.kind == "direction":
        synonyms = [DIRECTION_SYNONYMS[fact.value]]
    else:
        # One Chinese word may stand for several camera terms: 推近 is a zoom in as well as a push in.
        in_chinese = HAN.search(fact.text) is not None
        same = [t for t in CAMERA if t.name == fact.value or (in_chinese and re.search(t.chinese, fact.text))]
        synonyms = [(term.english, term.chinese) for term in same]
    return any(_either_language(*patterns).search(answer) for patterns in synonyms)


def contradicted_facts(facts: Sequence[Fact], prompt: str, answer: str) -> list[Fact]:
    """Return the colours and counts of which an answer says another about the same thing, and directions turned round.

    The thing is the word behind the colour or count, in the prompt's language: "red car", 红色的汽车. Smaller counts
    are no contradiction, one of five children is one of the five; nor is a second colour beside the prompt's. A
    direction is turned round where the answer has the prompt's verb with the opposite one.
    """
    found = []
    ways = {fact.value for fact in facts if fact.kind == "direction"}
    for fact in facts:
        if fact.kind == "direction" and OPPOSITES[fact.value] not in ways and _is_turned(fact.value, prompt, answer):
            found.append(fact)
        if fact.kind not in ("colour", "count"):
            continue
        thing = _thing_behind(fact, prompt)
        if not thing:
            continue
        stated = [other.value for other in _said_of(fact.kind, thing, answer) if other.text]
        larger = fact.kind == "colour" or any(int(value) > int(fact.value) for value in stated)
        if stated and larger and fact.value not in stated:
            found.append(fact)
    return found


def _is_turned(way: str, prompt: str, answer: str) -> bool:
    """Return whether what moves one way in a prompt moves the opposite way in an answer, in the prompt's language."""
    toward = r"\s+(?:to(?:wards?)?\s+)?(?:the\s+|its\s+)?"
    verb = re.search(rf"([a-z]{{2,}}){toward}{way}", prompt, re.IGNORECASE)
    if verb is not None:
        stem = re.sub("(?:ing|es|s|e)$", "", verb[1].lower())
        turned = rf"\b{stem}(?:ing|es|s|e)?(?:\s+\w+ly)?{toward}{OPPOSITES[way]}(?:wards?)?\b"
        return re.search(turned, answer, re.IGNORECASE) is not None
    moved = re.search(f"[向往朝](?:着|画面)?{SIGNS[way]}[侧边方]?([\u4e00-\u9fff])", prompt)
    opposite = SIGNS[OPPOSITES[way]]
    return moved is not None and re.search(f"[向往朝](?:着|画面)?{opposite}[侧边方]?{moved[1]}", answer) is not None


def _thing_behind(fact: Fact, prompt: str) -> str:
    """Return the thing a colour or count is said of; "" where it is not right behind it."""
    match = re.search(rf"{re.escape(fact.text)}[色的]*\s*([A-Za-z]{{3,}}|[\u4e00-\u9fff]{{2}})", prompt, re.IGNORECASE)
    thing = match[1].lower().rstrip("s") if match else ""
    return "" if any(_colours(thing)) or ENGLISH_COUNT.match(thing) else thing


def _said_of(kind: FactKind, thing: str, answer: str) -> Iterator[Fact]:
    """Yield the colours or counts that an answer says of a thing, right before it."""
    for match in re.finditer(re.escape(thing), answer, re.IGNORECASE):
        before = answer[max(0, match.start() - 14) : match.start()]
        if HAN.search(thing):
            before = re.split("[，。、；！？]", before[-5:])[-1]
            yield from _colours(f"{before.rstrip('的')}的") if kind == "colour" else _numbers(before)
        else:
            before = " ".join(re.split("[^A-Za-z -]", before)[-1].split()[-1:])
            yield from _colours(before) if kind == "colour" else _numbers(before)


def sentences_stating(facts: list[Fact], prompt: str) -> str:
    """Return the sentences of the prompt that state given facts."""
    parts = re.findall(r"[^.!?。！？\n]+[.!?。！？]?", prompt)
    return " ".join(part.strip() for part in parts if any(fact.text in part for fact in facts))


def edit_result(prompt: str) -> str:
    """Return an edit instruction without what it removes: "replace the red car with a bus" leaves a bus."""
    return " ".join(EDITED_AWAY.sub(" ", prompt).split())


def chinese_number(value: int) -> str:
    """Return a number below 100 in Chinese characters; "" for larger ones."""
    if value < 10:
        return CHINESE_DIGITS[value]
    if value >= 100:
        return ""
    tens, ones = divmod(value, 10)
    return f"{CHINESE_DIGITS[tens] if tens > 1 else ''}十{CHINESE_DIGITS[ones] if ones else ''}"


CHINESE_NUMBERS = {chinese_number(value): value for value in range(100)} | {"两": 2}


@cache
def _either_language(english: str, chinese: str) -> re.Pattern[str]:
    """Return a pattern for whole words of English, or for characters of Chinese, which has no spaces, anywhere."""
    whole = f"(?<![A-Za-z0-9])(?:{english})(?![A-Za-z0-9])"
    return re.compile(f"{whole}|{chinese}" if chinese else whole, re.IGNORECASE)


def _numbers(text: str) -> Iterator[Fact]:
    for match in NUMBER.finditer(text):
        digits = match.group().rstrip(".,:/")
        if digits.isdigit() and int(digits) <= MAX_COUNT:
            yield Fact("count", digits, str(int(digits)))
        else:
            yield Fact("number", digits, digits)
    for match in ENGLISH_COUNT.finditer(text):
        word = match.group(1).lower()
        yield Fact("count", match.group(), str(GROUP_WORDS.get(word) or NUMBER_WORDS.index(word)))
    for match in CHINESE_COUNT.finditer(text):
        number = 2 if match.group(2) else CHINESE_NUMBERS.get(match.group(1))
        if number is not None and number > 1:
            yield Fact("count", match.group(), str(number))


def _colours(text: str) -> Iterator[Fact]:
    text = NO_COLOURS.sub("  ", text)
    for name, (english, chinese) in COLOURS.items():
        before = f"(?:{chinese})(?=[色的{COLOURED_THINGS}])"
        # 天 behind a colour makes another word of it: 蓝天 is a sky, 白天 a day.
        shaded = f"[{SHADES}](?:{chinese})(?!天)"
        match = re.search(rf"\b(?:{english})\b", text, re.IGNORECASE) or re.search(
            rf"{before}|{shaded}|(?:{chinese})\Z", text
        )
        if match:
            yield Fact("colour", match.group(), name)


def _camera(text: str, moving: bool) -> Iterator[Fact]:
    for term in CAMERA:
        match = _either_language(term.english, term.chinese).search(text)
        if match and (moving or not term.moves):
            yield Fact("camera", match.group(), term.name)
            # A word that stands for several terms asks for one of them only.
            text = text.replace(match.group(), " " * len(match.group()))


def _names(text: str) -> Iterator[Fact]:
    if language_of(text) == "zh":
        found = [match.group() for match in LATIN_IN_CHINESE.finditer(text)]
        found += [match.group(1) for match in CHINESE_NAME.finditer(text)]
    else:
        found = _capitalised(text)
    yield from (Fact("name", name, name) for name in found if name not in NOT_NAMES and len(name) > 1)


def _capitalised(text: str) -> list[str]:
    """Return runs of capitalised words that do not have their capital from the beginning of a sentence."""
    words = [word for word in text.split() if word[0].isalpha() and not HAN.match(word)]
    if sum(word[0].isupper() for word in words) > len(words) / 2 and len(words) > 3:
        return []  # in a title, or in all capitals, capitals do not mark names
    found = []
    for match in CAPITALISED.finditer(text):
        name = match.group()
        if SENTENCE_START.search(text[: match.start()]):
            first, _, name = name.partition(" ")
            # "Tokyo Tower at night" begins with a name, "A Chinese dragon" with an article.
            name = f"{first} {name}" if name[:1].isupper() and first not in ARTICLES else name
        if name[:1].isupper():
            found.append(name)
    return found
