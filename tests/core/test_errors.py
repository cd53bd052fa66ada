"""Messages: whatever the values in them are, they are short, on one line, and obeyed by no terminal."""

from __future__ import annotations

import logging
import random

import pytest
from piying.core.errors import LONGEST_LINE, MOST_LINES, PiyingError, clipped, escaped, readable

SEQUENCES = {
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x1b[2J\x9b31m": "\\x1b[2J\\x9b31m",
    "a\u202eb\u2066\ufeff": "a\\u202eb\\u2066\\ufeff",
    "a\rerror: b\0": "a\\rerror: b\\x00",
    "\udcff\ud800": "\\udcff\\ud800",
    "\u2028\x85\x7f": "\\u2028\\x85\\x7f",
}


@pytest.mark.parametrize(("text", "shown"), SEQUENCES.items(), ids=ascii)
def test_control_characters_are_escaped(text, shown):
    assert escaped(text) == readable(text) == str(PiyingError(text)) == shown


def test_what_people_write_stays():
    text = "一只红色的球\u3000“é” naïve 👩\u200d🚀 می\u200cخواهم  a\tb"
    assert escaped(text) == readable(text) == text
    assert readable("a\r\n\nb") == "a\n\nb"


def test_a_message_is_one_line():
    assert str(PiyingError("folder/a\nerror: b: cannot be read.")) == "folder/a\\nerror: b: cannot be read."


def test_a_long_value_is_shortened_and_what_to_do_stays():
    for value in ("a" * 10**6, "a b " * 10**5, "'\\\" " * 10**5, "\x1b[1m" * 10**5, "一" * 10**5):
        message = str(PiyingError(f"codec is {value!r}. Choose one of: {', '.join(['vp9', 'av1'] * 30)}."))
        assert message.startswith("codec is ") and message.endswith("vp9, av1.")
        assert len(message) < 600 and message.isprintable()
    long = "one, " * 60
    assert (
        str(PiyingError(f"It's ComfyUI's. 'x' is none of {long}'y'.")) == f"It's ComfyUI's. 'x' is none of {long}'y'."
    )
    assert len(readable("/models/" + "a" * 4000)) < 320
    assert len(readable("word " * 10**5)) < LONGEST_LINE + 10
    assert len(readable("line\n" * 10**5).split("\n")) == MOST_LINES


def test_any_text_becomes_readable_fast_and_once():
    draw = random.Random(0)
    alphabet = "'\"\\ ab\n\r\t\x1b\x07\x9b\u202e一\udc80.…"
    for length in [draw.randrange(300) for _ in range(300)] + [200_000]:
        shown = readable("".join(draw.choices(alphabet, k=length)))
        assert all(escaped(line) == line and len(line) < LONGEST_LINE + 10 for line in shown.split("\n"))
        assert readable(shown) == shown


def test_records_are_readable_in_both_hosts(caplog):
    log = logging.getLogger("piying")
    with caplog.at_level(logging.INFO, "piying"):
        log.info("%s: left out (%d).", "\x1b[31m" + "b" * 1000, 3)
    assert caplog.messages[0].startswith("\\x1b[31mbbb") and caplog.messages[0].endswith("b: left out (3).")
    assert len(caplog.messages[0]) < 340


def test_a_text_that_goes_on_is_marked():
    assert [clipped("name", 4), clipped("names", 4), len(clipped("x" * 100))] == ["name", "name…", 81]
