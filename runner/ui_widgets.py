"""Widgets that the browser gives a node, by its definition, and the stored value that belongs to each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .definitions import input_options
from .errors import WorkflowError

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
CUSTOM_COMBO = "CustomCombo"
WIDGET_TYPES = {
    *("INT", "FLOAT", "BOOLEAN", "STRING", "MARKDOWN", "COMBO", "IMAGEUPLOAD", "FILEUPLOAD", "COLOR"),
    *("IMAGECOMPARE", "BOUNDING_BOX", "CHART", "GALLERIA", "PAINTER", "COMPOSITOR", "TEXTAREA", "CURVE"),
    *("RANGE", "VIDEO_EDIT", "RESOLUTION_PREVIEW", "BOUNDING_BOXES", "LIGHT_INFO_PREVIEW", "COLORS"),
    *("AUDIO_UI", "AUDIOUPLOAD", "AUDIO_RECORD", "WEBCAM", "LOAD_3D", "LOAD_3D_ANIMATION", "PREVIEW_3D"),
    DYNAMIC_COMBO,
}
UPLOADS = ("image_upload", "video_upload", "animated_image_upload")
# Nodes to which extensions of the browser add a widget that no definition declares.
WITH_PLAYER = ("LoadAudio", "SaveAudio", "PreviewAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced")
WITH_3D_VIEW = ("SaveGLB", "Preview3D", "Preview3DAnimation")
CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
BOX = {"x": 0, "y": 0, "width": 512, "height": 512}
BUTTONS_3D = {
    "upload 3d model": "upload3dmodel",
    "upload extra resources": "uploadExtraResources",
    "clear": "clear",
}
# The value of a widget that has none; the API form then lacks it. None is a value: files hold null.
MISSING = object()


@dataclass(frozen=True)
class Spec:
    """An input as the definition declares it; combos of V1 nodes have the type COMBO too."""

    name: str
    type: str
    options: dict[str, Any]

    @property
    def widget_type(self) -> str:
        """The type of its widget where it has one."""
        return str(self.options.get("widgetType") or self.type)

    @property
    def is_widget(self) -> bool:
        """Whether the browser shows a widget for it, rather than a socket alone."""
        return self.widget_type in WIDGET_TYPES and not self.options.get("forceInput")


def declared_specs(class_name: str, definition: dict[str, Any]) -> list[Spec]:
    """Return the inputs of a definition, with those the browser adds, in the browser's order.

    Raises:
        WorkflowError: the definition does not have the shape of ComfyUI's /object_info.
    """
    try:
        groups = {name: dict(definition["input"].get(name) or {}) for name in ("required", "optional")}
        specs = {name: [parse_spec(*each) for each in group.items()] for name, group in groups.items()}
        order = {name: list((definition.get("input_order") or {}).get(name) or []) for name in groups}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WorkflowError(f"The definition of {class_name!r} is not one of ComfyUI's /object_info.") from error
    required = specs["required"]
    if class_name in WITH_PLAYER:
        required.append(Spec("audioUI", "AUDIO_UI", {}))
    if class_name in WITH_3D_VIEW:
        required.append(Spec("image", "PREVIEW_3D", {}))
    if any(spec.type == "COMBO" and any(spec.options.get(upload) for upload in UPLOADS) for spec in required):
        required.append(Spec("upload", "IMAGEUPLOAD", {}))
    if any(spec.name == "audio" and spec.options.get("audio_upload") for spec in required):
        required.append(Spec("upload", "AUDIOUPLOAD", {}))
    ordered: dict[str, Spec] = {}
    for name, group in specs.items():
        by_name = {spec.name: spec for spec in group}
        ordered |= {each: by_name[each] for each in order[name] or by_name if each in by_name}
    # What the order does not name comes last; keys that are there keep their place.
    return list({**ordered, **{spec.name: spec for group in specs.values() for spec in group}}.values())


def parse_spec(name: str, declared: Any) -> Spec:
    """Return an input from its declaration, `[type, options]`.

    Raises:
        WorkflowError: it has another form.
    """
    if not isinstance(declared, list | tuple) or not declared:
        raise WorkflowError(f"The definitions declare the input {name!r} as {str(declared)[:80]}.")
    options = input_options(declared)
    if isinstance(declared[0], list | tuple):
        return Spec(name, "COMBO", {**options, "options": list(declared[0])})
    return Spec(name, str(declared[0]), options)


def custom_combo(specs: list[Spec], values: list[Any]) -> tuple[list[Spec], list[Any]]:
    """Return inputs and values of a combo whose choices the person writes: the filled fields and an empty one."""
    choice, options = values[:1], values[2:]
    filled = next((at for at, option in enumerate(options) if not option), len(options))
    fields = [*options[:filled], ""]
    index = fields.index(choice[0]) if choice and choice[0] in fields else -1
    added = [Spec(f"option{n}", "STRING", {}) for n in range(1, len(fields) + 1)]
    return [*specs[:1], Spec("index", "INT", {}), *added], [*choice, index, *fields]


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


def migrated_settings(class_name: str, stored: list[Any] | dict[str, Any]) -> list[Any] | dict[str, Any]:
    """Return values stored by name under the names they have now, as VideoHelperSuite renames them on loading."""
    if not class_name.startswith("VHS_") or not isinstance(stored, dict):
        return stored
    values = dict(stored)
    if "save_image" in values and class_name == "VHS_VideoCombine":
        values.setdefault("save_output", values["save_image"])
    size = values.get("force_size")
    if isinstance(size, str):
        # "512x?" or the name of a choice: what it leaves open follows from the video.
        width, x, height = size.partition("x")
        sides = {"custom_width": width, "custom_height": height} if x else {}
        values |= {name: int(side) if side.isdecimal() and len(side) < 9 else 0 for name, side in sides.items()}
        values |= {"custom_width": 0} if size in ("Disabled", "Custom Height") else {}
        values |= {"custom_height": 0} if size in ("Disabled", "Custom Width") else {}
    return values


def lay_out(specs: Iterable[Spec], stored: list[Any] | dict[str, Any]) -> Layout:
    """Return the inputs and widgets, those a dynamic combo unfolds included, with their values."""
    values = iter(stored if isinstance(stored, list) else ())
    named = stored if isinstance(stored, dict) else {}
    layout = Layout()
    waiting = deque(specs)
    while waiting:
        spec = waiting.popleft()
        layout.specs.append(spec)
        widgets = list(_widgets(spec, layout)) if spec.is_widget else []
        for widget in widgets:
            if widget.stored:
                given = named.get(widget.name, next(values, widget.value))
                # A combo with choices cannot be empty: it keeps its default.
                keeps = given is None and spec.widget_type == "COMBO" and widget.value is not MISSING
                widget.value = widget.value if keeps else given
        layout.widgets.extend(widgets)
        # A choice of VideoHelperSuite's `format` brings widgets of its own; files hold their values by name alone.
        brought = _brought(spec, widgets[0].value if widgets else None)
        for widget in (widget for each in brought for widget in _widgets(each, layout)):
            widget.value = named.get(widget.name, widget.value)
            layout.widgets.append(widget)
        layout.specs.extend(brought)
        if spec.widget_type == DYNAMIC_COMBO and widgets:
            # The chosen option brings inputs of its own, right behind the combo.
            chosen = next((choice for choice in _options(spec) if choice["key"] == widgets[0].value), {})
            inputs = chosen.get("inputs") or {}
            groups = [inputs.get(group) for group in ("required", "optional")] if isinstance(inputs, dict) else []
            fields = [item for group in groups if isinstance(group, dict) for item in group.items()]
            unfolded = [parse_spec(f"{spec.name}.{name}", declared) for name, declared in fields]
            waiting.extendleft(reversed(unfolded))
    return layout


def _brought(spec: Spec, value: Any) -> list[Spec]:
    """Return the inputs that a choice of a combo brings, declared beside it: `{"formats": {choice: [[name, …]]}}`."""
    formats = spec.options.get("formats")
    found = formats.get(value) if isinstance(formats, dict) and isinstance(value, str) else None
    entries = [each for each in found if isinstance(each, list) and each] if isinstance(found, list) else []
    return [parse_spec(str(name), declared) for name, *declared in entries if declared]


def _widgets(spec: Spec, layout: Layout) -> Iterator[Widget]:
    """Yield the widgets of an input, in the browser's order, with their default values."""
    widget_type = spec.widget_type
    # The buttons before the view of a 3D model: files and the API form hold their texts as values.
    if widget_type == "LOAD_3D" and any(widget.name == "model_file" for widget in layout.widgets):
        for name, value in BUTTONS_3D.items():
            yield Widget(name, Spec(name, "BUTTON", {}), value)
    if widget_type in ("IMAGEUPLOAD", "AUDIOUPLOAD"):
        yield Widget(spec.name, spec, "image", exported=False)
        return
    if widget_type in ("AUDIO_UI", "IMAGECOMPARE", "RESOLUTION_PREVIEW", "LIGHT_INFO_PREVIEW"):
        yield Widget(spec.name, spec, "", stored=False, exported=False)
        return
    yield Widget(spec.name, spec, _default(spec))
    if widget_type == "BOUNDING_BOX":
        for name, number in BOX.items():
            yield Widget(name, spec, number, exported=False)
    remote = spec.options.get("remote")
    if widget_type == "COMBO" and isinstance(remote, dict):
        yield Widget("Auto-refresh after generation", spec, False, exported=False)
        if remote.get("refresh_button"):
            yield Widget("refresh", spec, "refresh")
    yield from _control_widgets(spec)


def _control_widgets(spec: Spec) -> Iterator[Widget]:
    """Yield the widgets that say what becomes of a value after a run."""
    control = spec.options.get("control_after_generate")
    # Seeds have the control without asking for it, unless they refuse it.
    if control is None and spec.widget_type == "INT":
        control = spec.name in ("seed", "noise_seed")
    if control and spec.widget_type in ("INT", "COMBO"):
        yield Widget("control_after_generate", spec, "randomize", exported=False)
        if spec.widget_type == "COMBO":
            yield Widget("control_filter_list", spec, "", exported=False)


def _default(spec: Spec) -> Any:
    options, default = spec.options, spec.options.get("default")
    if spec.widget_type == DYNAMIC_COMBO:
        keys = [choice["key"] for choice in _options(spec)]
        return keys[0] if keys else MISSING
    if spec.widget_type == "COMBO":
        if options.get("multi_select"):
            return []
        choices = options.get("options")
        first = choices[0] if isinstance(choices, list) and choices else "Loading..."
        return default or (first if choices or options.get("remote") else MISSING)
    fallback: dict[str, Any] = {"INT": 0, "FLOAT": 0, "BOOLEAN": False, "BOUNDING_BOX": dict(BOX)}
    return fallback.get(spec.widget_type, "") if default is None else default


def _options(spec: Spec) -> list[dict[str, Any]]:
    """Return the options of a dynamic combo, without those that are malformed."""
    options = spec.options.get("options")
    found = options if isinstance(options, list) else []
    return [choice for choice in found if isinstance(choice, dict) and isinstance(choice.get("key"), str)]


def aligned(specs: list[Spec], stored: list[Any] | dict[str, Any]) -> list[Any] | dict[str, Any]:
    """Return stored values without those that old files hold for sockets and for widgets not stored any more."""
    if isinstance(stored, dict):
        return stored
    widgets = lay_out(specs, []).widgets
    names = {widget.name for widget in widgets}
    unstored = {widget.name for widget in widgets if not widget.stored}
    dummies: list[bool] = []  # for each value an old file would hold: whether it stands for a socket
    for spec in specs:
        if spec.name in names or spec.options.get("forceInput"):
            dummies += [bool(spec.options.get("forceInput"))] * (spec.name not in unstored)
            dummies += [False] * bool(spec.options.get("control_after_generate"))
    if not any(dummies) and len(stored) == sum(widget.stored for widget in widgets):
        return stored
    compact = [v for index, v in enumerate(stored) if index >= len(widgets) or widgets[index].stored]
    # Files do not say how old they are: the count of their values tells.
    for values in (compact, stored):
        if len(values) == len(dummies):
            return [value for value, dummy in zip(values, dummies, strict=True) if not dummy]
    controls = [widget.name == "control_after_generate" for widget in widgets if widget.stored]
    has_one = any(control and value in CONTROLS for control, value in zip(controls, stored, strict=False))
    if has_one or len(stored) != controls.count(False):
        return stored
    # So old that seeds had no control yet: "fixed" is what happened to them then.
    rest = iter(stored)
    return ["fixed" if control else next(rest) for control in controls]
