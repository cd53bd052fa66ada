"""Which components lie in a file or a set of shards: one, or several under prefixes as in ComfyUI's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .layouts import LAYOUTS, Layout

PREFIX = re.compile(
    r"(model\.diffusion_model\.|diffusion_model\.|vae\.|first_stage_model\.|text_encoders\.[^.]+\.(?:transformer\.)?)"
)
DECIDING = ("model.diffusion_model.", "diffusion_model.", "first_stage_model.", "text_encoders.")


@dataclass(frozen=True)
class Part:
    """One component of a file.

    Attributes:
        names: {name within the component: name in the file}.
        layout: what it is; None where no layout we know has such names.
    """

    prefix: str
    layout: Layout | None
    names: dict[str, str]

    @property
    def kind(self) -> str:
        """The kind of component; "" where it is not known."""
        return "" if self.layout is None else self.layout.kind


def find_parts(names: Iterable[str]) -> list[Part]:
    """Return the components that tensor names make up, in order of their prefixes."""
    groups: dict[str, dict[str, str]] = {}
    names = list(names)
    prefixed = any(name.startswith(DECIDING) for name in names)
    for name in names:
        found = PREFIX.match(name) if prefixed else None
        prefix = "" if found is None else found[1]
        group = groups.setdefault(prefix.removesuffix("transformer.") or prefix, {})
        group[name.removeprefix(prefix)] = name
    return [Part(prefix, layout_of(group), group) for prefix, group in sorted(groups.items())]


def layout_of(names: Mapping[str, object]) -> Layout | None:
    """Return the layout that has such names, or None."""
    return next((layout for layout in LAYOUTS if layout.matches(names)), None)
