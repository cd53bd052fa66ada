"""Missing packages: the node that needs one names it in its error, since the pack loads without any."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.errors import PiyingError

ROOT = Path(__file__).resolve().parents[1]


def explain_missing(node: Any) -> None:
    """Have a node class's function raise `PiyingError` for a Python package that it needs and that is not there."""
    function = getattr(node, node.FUNCTION)
    setattr(node, node.FUNCTION, _explained(function))


def _explained(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        # Not ImportError: a package that is there and broken has a message of its own.
        except ModuleNotFoundError as error:
            if not error.name:
                raise
            raise PiyingError(_sentence(error.name)) from error

    return run


def _sentence(name: str) -> str:
    package = name.partition(".")[0]
    what = (
        f"{package} is here without {name}, so it is of another version"
        if _is_here(package)
        else f"{package} is missing"
    )
    return (
        f"the Python package {what}. Run `{sys.executable} {ROOT / 'install.py'}`: it adds what is missing and leaves "
        "torch alone. Then start again."
    )


def _is_here(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # something that is no module stands in its place
        return False
