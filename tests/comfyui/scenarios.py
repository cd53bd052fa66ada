"""Graphs in turn, each list run in one engine with its cache; values are API form."""

from __future__ import annotations

from typing import Any

Api = dict[str, Any]


def node(class_type: str, **inputs: Any) -> Api:
    return {"class_type": class_type, "inputs": inputs}


def show(source: str, slot: int = 0) -> Api:
    return node("TShow", value=[source, slot])


DIAMOND = {
    "1": node("TInt", value=3),
    "2": node("TAdd", a=["1", 0], b=1),
    "3": node("TAdd", a=["1", 0], b=2),
    "4": node("TAdd", a=["2", 0], b=["3", 0]),
    "5": show("4"),
    "6": node("TInt", value=9),
}
WIDE = {
    "1": node("TInt", value=1),
    "2": node("TInt", value=2),
    "3": node("TInt", value=3),
    "4": node("TAdd", a=["1", 0], b=["2", 0]),
    "5": node("TAdd", a=["4", 0], b=["3", 0]),
    "6": show("3"),
    "7": show("5"),
    "8": node("TShowAndPass", value=["2", 0]),
    "9": show("8"),
}


def lists(count: int) -> Api:
    return {
        "1": node("TSpread", value=count),
        "2": node("TSpread", value=2),
        "3": node("TAdd", a=["1", 0], b=["2", 0]),
        "4": node("TGather", a=["3", 0], b=["1", 0]),
        "5": show("4"),
        "6": show("3"),
        "7": node("TTwo", value=["1", 0]),
        "8": show("7", 1),
        "9": show("7", 0),
    }


def switch(which: bool) -> Api:
    return {
        "1": node("TInt", value=1),
        "2": node("TInt", value=2),
        "3": node("TSwitch", which=which, yes=["1", 0], no=["2", 0]),
        "4": show("3"),
    }


def product(a: int) -> Api:
    return {
        "1": node("TInt", value=a),
        "2": node("TInt", value=7),
        "3": node("TProduct", a=["1", 0], b=["2", 0]),
        "4": show("3"),
        "5": show("2") if a == 2 else show("1"),
    }


def expand(times: int, value: int = 5) -> Api:
    return {
        "1": node("TInt", value=value),
        "2": node("TExpand", value=["1", 0], times=times),
        "3": show("2"),
    }


def asynchronous(first: float, second: float) -> Api:
    return {
        "1": node("TAsync", value=1, delay=first),
        "2": node("TAsync", value=2, delay=second),
        "3": node("TInt", value=3),
        "4": node("TAdd", a=["1", 0], b=["2", 0]),
        "5": node("TAdd", a=["4", 0], b=["3", 0]),
        "6": show("5"),
    }


def blocked(block: bool, message: str = "") -> Api:
    return {
        "1": node("TBlock", value=4, block=block, message=message),
        "2": node("TAdd", a=["1", 0], b=1),
        "3": show("2"),
        "4": node("TInt", value=8),
        "5": show("4"),
    }


def changed(stamp: str, value: int = 1) -> Api:
    return {"1": node("TChanged", value=value, stamp=stamp), "2": node("TAdd", a=["1", 0], b=1), "3": show("2")}


def simple(class_type: str, **inputs: Any) -> Api:
    return {"1": node(class_type, **inputs), "2": show("1")}


SCENARIOS: dict[str, list[Api]] = {
    "diamond": [DIAMOND, DIAMOND, {**DIAMOND, "3": node("TAdd", a=["1", 0], b=5)}, DIAMOND],
    "wide": [WIDE, {**WIDE, "2": node("TInt", value=20)}],
    "renumbered": [DIAMOND, {"9": node("TInt", value=3), "8": node("TAdd", a=["9", 0], b=1), "7": show("8")}],
    "twins": [{"1": node("TInt", value=1), "2": node("TInt", value=1), "3": show("1"), "4": show("2")}],
    "lists": [lists(3), lists(3), lists(1)],
    "optional": [simple("TOptional", value=1), simple("TOptional", value=1, extra=2), simple("TOptional", value=1)],
    "short outputs": [
        {"1": node("TShort", value=1), "2": node("TOptional", value=["1", 0], extra=["1", 1]), "3": show("2")}
    ],
    "undeclared": [simple("TInt", value=1, preview="text"), simple("TInt", value=1, preview="other")],
    "switch": [switch(True), switch(True), switch(False), switch(True)],
    "product": [product(0), product(3), product(2), product(3)],
    "expand": [expand(3), expand(3), expand(2), expand(0), expand(4, value=6)],
    "loop": [simple("TLoop", value=4), simple("TLoop", value=4), simple("TLoop", value=2)],
    "expand and show": [{"1": node("TInt", value=5), "2": node("TExpandShow", value=["1", 0]), "3": show("2")}] * 2,
    "expand a list": [
        {"1": node("TSpread", value=3), "2": node("TExpand", value=["1", 0], times=2), "3": show("2")},
        {"1": node("TSpread", value=2), "2": node("TExpand", value=["1", 0], times=2), "3": show("2")},
    ],
    "taken id": [{"1": node("TExpandTwice", value=1, times=1), "2": show("1")}],
    "async": [asynchronous(0.05, 0.01), asynchronous(0.05, 0.01), asynchronous(0.0, 0.0)],
    "async failure": [{"1": node("TAsyncFails", value=1, delay=0.01), "2": show("1")}],
    "blocked": [blocked(True), blocked(False), blocked(True, "not today"), blocked(True, "not today")],
    "all blocked": [{"1": node("TBlockAll", value=1), "2": show("1", 1), "3": show("1", 0)}],
    "changed": [
        changed("a"),
        changed("a"),
        changed("b"),
        changed("always"),
        changed("always"),
        changed("fails"),
        changed("b"),
    ],
    "state": [
        simple("TCounter", value=1),
        simple("TCounter", value=2),
        simple("TCounter", value=2),
        simple("TCounter", value=1),
    ],
    "not idempotent": [
        {"1": node("TNotIdempotent", value=1), "2": node("TNotIdempotent", value=1), "3": show("1"), "4": show("2")}
    ],
    "with id": [{"1": node("TWithId", value=1), "2": node("TWithId", value=1), "3": show("1"), "4": show("2")}] * 2,
    "dynamic": [simple("TDynamic", value=1)],
    "failure": [
        {"1": node("TInt", value=1), "2": node("TFail", value=["1", 0]), "3": show("2")},
        {"1": node("TInt", value=1), "2": node("TAdd", a=["1", 0], b=1), "3": show("2")},
    ],
}

VALIDATION: dict[str, Api] = {
    "good": DIAMOND,
    "missing": {"1": node("TAdd", a=1), "2": show("1")},
    "not a number": simple("TInt", value="x"),
    "number as text": simple("TInt", value="12"),
    "too small": simple("TInt", value=-1001),
    "too big": simple("TInt", value=1001),
    "own check": simple("TChecked", value=3, other=1),
    "own check replaces the range": simple("TChecked", value=8, other=1),
    "range beside own check": simple("TChecked", value=2, other=9),
    "choice": simple("TChoice", choice="blue", flag=True, text="x"),
    "types are converted": simple("TChoice", choice="red", flag="", text=5),
    "wrong type by link": {
        "1": node("TChoice", choice="red", flag=True, text=["2", 0]),
        "2": node("TInt", value=1),
        "3": show("1"),
    },
    "wrapped list": simple("TChoice", choice="red", flag=True, text={"__value__": [1, 2]}),
    "no outputs": {"1": node("TInt", value=1)},
    "unknown class": {"1": node("TNowhere", value=1), "2": show("1")},
    "one good one bad": {"1": node("TInt", value=1), "2": show("1"), "3": node("TInt", value=9999), "4": show("3")},
    "bad behind good": {"1": node("TInt", value=9999), "2": node("TAdd", a=["1", 0], b=1), "3": show("2")},
}
