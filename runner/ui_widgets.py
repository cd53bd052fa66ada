"""Which widgets the browser gives a node, by its definition, and which stored value belongs to which."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .ui_specs import DYNAMIC_COMBO, Spec, parse_spec

AFTER_RUN = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
BOX = {"x": 0, "y": 0, "width": 512, "height": 512}
BUTTONS_3D = {
    "upload 3d model": "upload3dmodel",
    "upload extra resources": "uploadExtraResources",
    "clear": "clear",
}
# The value of a widget that has none; the API form then lacks it.
MISSING = object()


@dataclass
class Widget:
    """A widget of a node and its value.

    Attributes:
        name: the input it stands for.
        spec: the declared input.
        value: what the file or the definition gives it.
        stored: whether files hold its value.
        exported: whether the API form has it.
    """

    name: str
    spec: Spec
    value: Any
    stored: bool = True
    exported: bool = True


@dataclass(frozen=True)
class Layout:
    """What a definition and stored values make of a node, in the browser's order."""

    specs: list[Spec] = field(default_factory=list)
    widgets: list[Widget] = field(default_factory=list)


def lay_out(specs: Iterable[Spec], stored: list[Any] | dict[str, Any]) -> Layout:
    """Return the inputs and widgets, those a dynamic combo unfolds included, with their values."""
    values = iter(stored if isinstance(stored, list) else ())
    named = stored if isinstance(stored, dict) else {}
    layout = Layout()
    waiting = deque(specs)
    while waiting:
        spec = waiting.popleft()
        layout.specs.append(spec)
        widgets = [*_buttons(spec, layout), *_widgets(spec)] if spec.is_widget else []
        for widget in widgets:
            if widget.stored:
                given = named.get(widget.name, next(values, widget.value))
                # A list with choices has no empty one: it keeps its default.
                keeps = given is None and spec.widget_kind == "COMBO" and widget.value is not MISSING
                widget.value = widget.value if keeps else given
        layout.widgets.extend(widgets)
        if spec.widget_kind == DYNAMIC_COMBO and widgets:
            waiting.extendleft(reversed(_unfolded(spec, widgets[0].value)))
    return layout


def _widgets(spec: Spec) -> list[Widget]:
    kind = spec.widget_kind
    if kind in ("IMAGEUPLOAD", "AUDIOUPLOAD"):
        return [Widget(spec.name, spec, "image", exported=False)]
    if kind in ("AUDIO_UI", "IMAGECOMPARE", "RESOLUTION_PREVIEW", "LIGHT_INFO_PREVIEW"):
        return [Widget(spec.name, spec, "", stored=False, exported=False)]
    return [Widget(spec.name, spec, _default(spec)), *_companions(spec)]


def _buttons(spec: Spec, layout: Layout) -> Iterator[Widget]:
    """Yield the buttons before the view of a 3D model; files and the API form hold their texts as values."""
    if spec.widget_kind == "LOAD_3D" and any(widget.name == "model_file" for widget in layout.widgets):
        for name, value in BUTTONS_3D.items():
            yield Widget(name, Spec(name, "BUTTON", {}), value)


def _companions(spec: Spec) -> Iterator[Widget]:
    """Yield the widgets that say what becomes of a value after a run, and that reload a list."""
    control = spec.options.get("control_after_generate")
    if spec.widget_kind == "BOUNDING_BOX":
        for name, value in BOX.items():
            yield Widget(name, spec, value, exported=False)
    remote = spec.options.get("remote")
    if spec.widget_kind == "COMBO" and isinstance(remote, dict):
        yield Widget("Auto-refresh after generation", spec, False, exported=False)
        if remote.get("refresh_button"):
            yield Widget("refresh", spec, "refresh")
    if control is None and spec.widget_kind == "INT":
        control = spec.name in ("seed", "noise_seed")
    if control and spec.widget_kind in ("INT", "COMBO"):
        yield Widget("control_after_generate", spec, "randomize", exported=False)
        if spec.widget_kind == "COMBO":
            yield Widget("control_filter_list", spec, "", exported=False)


def _default(spec: Spec) -> Any:
    options, given = spec.options, spec.options.get("default")
    if spec.widget_kind == DYNAMIC_COMBO:
        keys = [choice["key"] for choice in _choices(spec)]
        return keys[0] if keys else MISSING
    if spec.widget_kind == "COMBO":
        if options.get("multi_select"):
            return []
        offered = options.get("options")
        first = offered[0] if isinstance(offered, list) and offered else "Loading..."
        return given or (first if offered or options.get("remote") else MISSING)
    fallback: dict[str, Any] = {"INT": 0, "FLOAT": 0, "BOOLEAN": False, "BOUNDING_BOX": dict(BOX)}
    return fallback.get(spec.widget_kind, "") if given is None else given


def _choices(spec: Spec) -> list[dict[str, Any]]:
    offered = spec.options.get("options")
    found = offered if isinstance(offered, list) else []
    return [choice for choice in found if isinstance(choice, dict) and isinstance(choice.get("key"), str)]


def _unfolded(spec: Spec, value: Any) -> list[Spec]:
    """Return the inputs that the chosen option of a dynamic combo brings."""
    chosen = next((choice for choice in _choices(spec) if choice["key"] == value), {})
    inputs = chosen.get("inputs") or {}
    groups = [inputs.get(group) or {} for group in ("required", "optional")] if isinstance(inputs, dict) else []
    fields = [item for group in groups if isinstance(group, dict) for item in group.items()]
    return [parse_spec(f"{spec.name}.{name}", declared) for name, declared in fields]


def aligned(specs: list[Spec], stored: list[Any] | dict[str, Any]) -> list[Any] | dict[str, Any]:
    """Return stored values without those that old files hold for sockets and for widgets not stored any more."""
    if isinstance(stored, dict):
        return stored
    widgets = lay_out(specs, []).widgets
    names = {widget.name for widget in widgets}
    dummies: list[bool] = []
    for spec in specs:
        if spec.name in names or spec.options.get("forceInput"):
            dummies += [bool(spec.options.get("forceInput"))] * (spec.name not in _unstored(widgets))
            dummies += [False] * bool(spec.options.get("control_after_generate"))
    if not any(dummies) and len(stored) == sum(widget.stored for widget in widgets):
        return stored
    compact = [v for index, v in enumerate(stored) if index >= len(widgets) or widgets[index].stored]
    for values in (compact, stored):
        if len(values) == len(dummies):
            return [value for value, dummy in zip(values, dummies, strict=True) if not dummy]
    return _with_controls(widgets, stored)


def _unstored(widgets: list[Widget]) -> set[str]:
    return {widget.name for widget in widgets if not widget.stored}


def _with_controls(widgets: list[Widget], stored: list[Any]) -> list[Any]:
    """Return the values, with the controls of what a run does to a seed where a file is so old that it has none."""
    places = [widget.name == "control_after_generate" for widget in widgets if widget.stored]
    has_one = any(place and value in AFTER_RUN for place, value in zip(places, stored, strict=False))
    if has_one or len(stored) != places.count(False):
        return stored
    values = iter(stored)
    return ["fixed" if place else next(values) for place in places]
