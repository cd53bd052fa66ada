"""What node definitions declare, and what the browser's own extensions add to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .definitions import ObjectInfo
from .errors import WorkflowError

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGET_KINDS = {
    *("INT", "FLOAT", "BOOLEAN", "STRING", "MARKDOWN", "COMBO", "IMAGEUPLOAD", "FILEUPLOAD", "COLOR"),
    *("IMAGECOMPARE", "BOUNDING_BOX", "CHART", "GALLERIA", "PAINTER", "COMPOSITOR", "TEXTAREA", "CURVE"),
    *("RANGE", "VIDEO_EDIT", "RESOLUTION_PREVIEW", "BOUNDING_BOXES", "LIGHT_INFO_PREVIEW", "COLORS"),
    *("AUDIO_UI", "AUDIOUPLOAD", "AUDIO_RECORD", "WEBCAM", "LOAD_3D", "LOAD_3D_ANIMATION", "PREVIEW_3D"),
    DYNAMIC_COMBO,
}
UPLOADS = ("image_upload", "video_upload", "animated_image_upload")
WITH_PLAYER = ("LoadAudio", "SaveAudio", "PreviewAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced")
WITH_3D_VIEW = ("SaveGLB", "Preview3D", "Preview3DAnimation")
CUSTOM_COMBO = "CustomCombo"


@dataclass(frozen=True)
class Spec:
    """An input as the definition declares it; combos of the old form have the kind COMBO too."""

    name: str
    kind: str
    options: dict[str, Any]

    @property
    def widget_kind(self) -> str:
        """The kind of its widget where it has one."""
        return str(self.options.get("widgetType") or self.kind)

    @property
    def is_widget(self) -> bool:
        """Whether the browser shows a widget for it, rather than a socket alone."""
        return self.widget_kind in WIDGET_KINDS and not self.options.get("forceInput")


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
    specs["required"] += _added_by_browser(class_name, specs["required"])
    ordered = {spec.name: spec for group in specs for spec in _by_order(specs[group], order[group])}
    return list({**ordered, **{spec.name: spec for group in specs.values() for spec in group}}.values())


def _by_order(specs: list[Spec], order: list[str]) -> list[Spec]:
    by_name = {spec.name: spec for spec in specs}
    return [by_name[name] for name in order if name in by_name] if order else specs


def parse_spec(name: str, declared: Any) -> Spec:
    """Return an input from its declaration, `[type, options]`.

    Raises:
        WorkflowError: it has another form.
    """
    if not isinstance(declared, list | tuple) or not declared:
        raise WorkflowError(f"The definitions declare the input {name!r} as {str(declared)[:80]}.")
    options = declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
    if isinstance(declared[0], list | tuple):
        return Spec(name, "COMBO", {**options, "options": list(declared[0])})
    return Spec(name, str(declared[0]), options)


def _added_by_browser(class_name: str, required: list[Spec]) -> Iterator[Spec]:
    if class_name in WITH_PLAYER:
        yield Spec("audioUI", "AUDIO_UI", {})
    if class_name in WITH_3D_VIEW:
        yield Spec("image", "PREVIEW_3D", {})
    if any(spec.kind == "COMBO" and any(spec.options.get(upload) for upload in UPLOADS) for spec in required):
        yield Spec("upload", "IMAGEUPLOAD", {})
    if any(spec.name == "audio" and spec.options.get("audio_upload") for spec in required):
        yield Spec("upload", "AUDIOUPLOAD", {})


def custom_combo(specs: list[Spec], stored: list[Any]) -> tuple[list[Spec], list[Any]]:
    """Return the inputs and values of a list whose choices the person writes: the filled fields and one more."""
    choice, options = stored[:1], stored[2:]
    filled = next((at for at, option in enumerate(options) if not option), len(options))
    fields = [*options[:filled], ""]
    index = fields.index(choice[0]) if choice and choice[0] in fields else -1
    added = [Spec(f"option{n}", "STRING", {}) for n in range(1, len(fields) + 1)]
    return [*specs[:1], Spec("index", "INT", {}), *added], [*choice, index, *fields]


def definition_of(info: ObjectInfo, class_name: str) -> dict[str, Any] | None:
    """Return a node class's definition, None where there is none.

    Raises:
        WorkflowError: what there is under the name is no definition.
    """
    found = info.get(class_name)
    if found is not None and not isinstance(found, dict):
        raise WorkflowError(f"The definition of {class_name!r} is not one of ComfyUI's /object_info.")
    return found
