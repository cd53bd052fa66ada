"""A package that is not there: the node that needs it says what to do."""

from __future__ import annotations

import pytest
from piying.core.errors import PiyingError
from piying.nodes.missing import explain_missing


class Node:
    FUNCTION = "go"

    def go(self, mistake):
        raise mistake


explain_missing(Node)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package.part", "the Python package no_such_package is missing. Run .*install.py"),
        ("json.no_such_part", "the Python package json is here without json.no_such_part"),
    ],
)
def test_what_is_missing_is_said(name, said):
    with pytest.raises(PiyingError, match=said):
        Node().go(ModuleNotFoundError(f"No module named {name!r}", name=name))


@pytest.mark.parametrize("mistake", [KeyError("a"), ModuleNotFoundError("of no name")])
def test_other_mistakes_stay_what_they_are(mistake):
    with pytest.raises(type(mistake)):
        Node().go(mistake)
