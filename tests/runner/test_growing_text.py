"""A text that grows is shown where there is a place for it."""

from __future__ import annotations

import io

from piying.runner.display import EventDisplay, Plain, Terminal


def test_a_terminal_shows_the_end_of_it_behind_the_bar():
    err = io.StringIO()
    display = Terminal(err=err)
    progress = display.progress("Expanding prompt", 8)
    progress.step(3)
    progress.text("A red fox runs over deep snow in soft morning light")
    assert "fox runs over deep snow in soft morning light"[-40:] in err.getvalue()
    assert "A red" not in err.getvalue()


def test_a_program_gets_it_as_events():
    events = []
    EventDisplay(events.append).progress("Expanding prompt", 8).text("A red fox")
    assert events == [{"event": "text", "node": None, "phase": "Expanding prompt", "text": "A red fox"}]


def test_a_log_file_gets_none_of_it():
    err = io.StringIO()
    Plain(err=err).progress("Expanding prompt", 8).text("A red fox")
    assert err.getvalue() == ""
