"""Model folders: where models of each category are looked for, and where fetched ones go; extra_model_paths.yaml.

One rule for both hosts and for downloads. A category's folders come in this order: those of a section of
extra_model_paths.yaml with `is_default`, `models/<category>`, then the others. A model is looked for in all of them,
and a fetched one goes into the first, unless another has it already or a part of it. Needs the standard library, and
PyYAML for extra_model_paths.yaml, which ComfyUI needs too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import clipped

log = logging.getLogger("piying")

EXTRA_PATHS = "extra_model_paths.yaml"
LEGACY = {"unet": "diffusion_models", "clip": "text_encoders"}  # names of categories that ComfyUI still takes


class ExtraFolder(NamedTuple):
    """A folder of extra_model_paths.yaml: its category, and whether it comes before ComfyUI's own."""

    category: str
    path: Path
    is_default: bool


@dataclass(frozen=True)
class ModelFolders:
    """A models folder with further folders for some of its categories; `folders / "vae/x.safetensors"` is a path.

    Attributes:
        root: holds what belongs to no category, such as the ledger of downloads.
        categories: {category: its folders, the first one for what is fetched}.
    """

    root: Path
    categories: Mapping[str, tuple[Path, ...]] = field(default_factory=dict, hash=False)

    def __truediv__(self, path: str) -> Path:
        """Return where a file or folder below the models folder lies, or goes where it is nowhere yet."""
        category, _, inside = path.partition("/")
        folders = self.categories.get(category, ())
        if not folders or not inside:
            return self.root / path
        # The files of a model in a folder stay together.
        first = inside.partition("/")[0]
        here = (folder for folder in folders if any((folder / f"{first}{end}").exists() for end in ("", ".part")))
        return next(here, folders[0]) / inside

    def __str__(self) -> str:
        return str(self.root)


ModelsRoot = Path | ModelFolders


def ordered(own: Path, extra: Iterable[ExtraFolder], others: Iterable[Path] = ()) -> tuple[Path, ...]:
    """Return the folders of one category in order, each once.

    Args:
        own: models/<category>.
        extra: the category's folders in extra_model_paths.yaml, in the order of the file.
        others: further ones that are looked through.
    """
    extra = list(extra)
    # Of several defaults the last one wins, as in ComfyUI, which puts each in front.
    first = [folder.path for folder in reversed(extra) if folder.is_default]
    last = [folder.path for folder in extra if not folder.is_default]
    return tuple(dict.fromkeys([*first, own, *others, *last]))


def extra_folders(file: Path) -> list[ExtraFolder]:
    """Return the folders of an extra_model_paths.yaml, as ComfyUI reads it; none where there is no such file.

    A file that cannot be read is left out, and said: the models folder itself is there to use.
    """
    if not file.is_file():
        return []
    try:
        import yaml  # type: ignore[import-untyped]

        sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return [folder for section in sections.values() if section for folder in _section(section, file.parent)]
    except ImportError:
        log.warning("%s is left out: reading it needs PyYAML. Install it with `pip install pyyaml`.", file)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        log.warning("%s is left out: it cannot be read (%s).", file, clipped(" ".join(str(error).split()), 200))
    return []


def _section(section: Mapping[str, Any], beside: Path) -> list[ExtraFolder]:
    base = section.get("base_path")
    root = beside / os.path.expandvars(Path(base).expanduser()) if base else beside
    is_default = bool(section.get("is_default"))
    return [
        ExtraFolder(LEGACY.get(category, category), Path(os.path.normpath(root / line)), is_default)
        for category, lines in section.items()
        if category not in ("base_path", "is_default")
        for line in str(lines).splitlines()
        if line
    ]


def model_folders(root: Path, extra: Iterable[ExtraFolder]) -> ModelFolders:
    """Return a models folder with the folders that an extra_model_paths.yaml adds to it."""
    extra = list(extra)
    categories = dict.fromkeys(folder.category for folder in extra)
    return ModelFolders(
        root,
        {name: ordered(root / name, [one for one in extra if one.category == name]) for name in categories},
    )
