"""Who may send work, and how much of it."""

from __future__ import annotations

import pytest
from piying.core.errors import PiyingError
from piying.serve.limits import LOCAL, LimitReached, Limits, Submissions, Tokens, read_tokens


def test_jobs_a_minute_are_counted_and_the_answer_says_when(tmp_path):
    submissions = Submissions(Limits(queued=1000, per_minute=10))
    submissions.add("a", 6, 0, 0.0)
    submissions.add("a", 4, 0, 20.0)
    submissions.add("b", 10, 0, 20.0)
    with pytest.raises(LimitReached) as reached:
        submissions.add("a", 5, 0, 30.0)
    assert reached.value.wait == 30
    with pytest.raises(LimitReached) as reached:
        submissions.add("a", 7, 0, 30.0)
    assert reached.value.wait == 50
    submissions.add("a", 6, 0, 60.0)
    with pytest.raises(LimitReached):
        submissions.add("a", 1, 0, 79.0)
    submissions.add("a", 4, 0, 80.0)
    submissions.add("c", 11, 0, 80.0)  # a batch larger than the limit goes by itself, or it never could
    with pytest.raises(LimitReached):
        submissions.add("c", 1, 0, 100.0)


def test_tokens_are_read_and_compared(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("# ours\nana 0123456789abcdef\n\nfedcba9876543210\n")
    tokens = read_tokens(file, "a" * 16)
    assert tokens.owner_of("Bearer 0123456789abcdef") == "ana"
    assert tokens.owner_of(f"bearer {'a' * 16}") and len(tokens.by_name) == 3
    for wrong in (None, "", "Bearer", "Bearer ", "Basic 0123456789abcdef", "Bearer 0123456789abcdeg", "Bearer \udcff"):
        assert tokens.owner_of(wrong) is None
    assert "0123456789abcdef" not in f"{tokens!r}{tokens.by_name}"
    assert Tokens().owner_of(None) == LOCAL


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no token"),
        ("# only this\n", "holds no token"),
        ("short\n", "line 1: a token has at least 16"),
        ("a b c\n", "line 1: has 3 words"),
        ("ana 0123456789abcdef\nana fedcba9876543210", "line 2: two tokens are called 'ana'"),
        ("ana üüüüüüüüüüüüüüüüü", "16 ASCII characters"),
    ],
)
def test_a_file_without_good_tokens_is_refused(tmp_path, text, said):
    """It would else leave the server open to everybody."""
    (tmp_path / "tokens").write_text(text, encoding="utf-8")
    with pytest.raises(PiyingError, match=said):
        read_tokens(tmp_path / "tokens", None)
    with pytest.raises(PiyingError, match="no such file"):
        read_tokens(tmp_path / "other", None)
