"""Discovery: which models are installed: folders that say what they are, and single files known by their contents.

What reads headers is imported where it is used: nodes are declared at ComfyUI's start, which none of it may slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PiyingError
from ..families.base import ModelFamily
from ..files.json_file import read_json_or_empty
from ..files.scan import find_files, find_folders
from ..host.base import Host
from .installed_model import InstalledModel, weight_bytes

if TYPE_CHECKING:
    from ..checkpoints.inspect import FileInfo

INDEXES = ("model_index.json", "config.json")
ENDINGS = (".safetensors", ".sft", ".gguf")
# PyTorch's own files are looked at for parts alone: their headers cannot be read without torch.
PYTORCH_ENDINGS = (".pth", ".pt")
SEARCH_DEPTH = 3  # models/<category>/<author>/<model>


def installed_models(family: ModelFamily, host: Host) -> list[InstalledModel]:
    """Return the family's installed models, in the host's order of preference, without the built-in one."""
    found: dict[Path, InstalledModel] = {}
    for category, root in host.model_folders():
        for folder in find_folders(root, SEARCH_DEPTH, INDEXES):
            path = folder.resolve()
            ours = path not in found and _class_name(folder) in family.index_classes
            if ours and not _is_downloading(folder):
                name = _shown_name(category, folder.relative_to(root).as_posix())
                found[path] = InstalledModel(name, path, weight_bytes(path))
    folders = list(found.values())
    return folders + family.single_file_models(FileCatalog(host), folders)


def why_not(name: str, family: ModelFamily, host: Host) -> str | None:
    """Return why the folder or file of that name is no model of the family; None where there is neither."""
    for category, root in host.model_folders():
        relative = name.removeprefix(f"{category}/") if category else name
        folder = root / relative
        if ".." in relative or not folder.is_dir():
            continue
        index = next((file for file in INDEXES if (folder / file).is_file()), None)
        if index is None:
            return f"the folder {folder} has neither {' nor '.join(INDEXES)}"
        found = _class_name(folder)
        if found is None:
            return f"{folder / index} cannot be read"
        if _is_downloading(folder):
            return f"{folder} is not all here yet: fetch it again, it goes on where it stopped"
        return f"{folder} is a {found}, not a {' or '.join(family.index_classes)}"
    return family.why_unusable(name, FileCatalog(host)) or what_is(name, host)


def _class_name(folder: Path) -> str | None:
    """Return the class a folder says it is, or None where its index cannot be read."""
    if (folder / INDEXES[0]).is_file():
        found = read_json_or_empty(folder / INDEXES[0]).get("_class_name")
    else:
        architectures = read_json_or_empty(folder / INDEXES[1]).get("architectures")
        found = architectures[0] if isinstance(architectures, list) and architectures else None
    return found if isinstance(found, str) else None


def _is_downloading(folder: Path) -> bool:
    """Return whether a download of this model goes on or was stopped: it leaves NAME.part files."""
    return next(folder.rglob("*.part"), None) is not None


def _shown_name(category: str, relative: str) -> str:
    return f"{category}/{relative}" if category else relative


# Single files


@dataclass(frozen=True)
class SingleFile:
    """One file of weights: the name shown for it, where it is, and what it is."""

    name: str
    path: Path
    found: FileInfo

    @property
    def title(self) -> str:
        """What it is, where it is one known component; else ""."""
        return self.found.parts[0].title if len(self.found.parts) == 1 else ""

    @property
    def width(self) -> int:
        """Of the layers of its first component."""
        return self.found.parts[0].width

    @property
    def details(self) -> str:
        """Return title, parameters, format and size: "Wan2.1-VACE transformer, 17.3B, fp8 scaled, 17.4 GB"."""
        from ..checkpoints.inspect import GB

        parameters = sum(part.parameters for part in self.found.parts) / GB
        what = self.title or self.found.what.removeprefix("a ")
        return f"{what}, {parameters:.1f}B, {self.found.precision}, {self.found.bytes / GB:.1f} GB"

    def holds(self, kind: str, family: str) -> bool:
        """Return whether one of its components is of that kind and family."""
        return any((part.kind, part.family) == (kind, family) for part in self.found.parts)


@dataclass(frozen=True)
class FileCatalog:
    """The files of weights in a host's models folders; damaged ones are left out."""

    host: Host

    def in_folders(self, *categories: str, pytorch: bool = False) -> list[SingleFile]:
        """Return the files in the folders of these categories; "" stands for the models folders themselves.

        Args:
            pytorch: whether to look at PyTorch's own files too, whose headers need torch.
        """
        return single_files(self.host, categories.__contains__, pytorch)

    def outside_folders(self, *categories: str) -> list[SingleFile]:
        """Return the files in all folders but these, PyTorch's own included."""
        return single_files(self.host, lambda category: category not in categories, pytorch=True)

    def folders_of(self, *classes: str) -> list[Path]:
        """Return the folders whose index names one of these classes, in the host's order of preference."""
        roots = [root for _, root in self.host.model_folders()]
        found = (folder for root in roots for folder in find_folders(root, SEARCH_DEPTH, INDEXES))
        return [folder for folder in dict.fromkeys(found) if _class_name(folder) in classes]

    def shapes(self, file: SingleFile, kind: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one component of a file under the names of its class.

        Raises:
            PiyingError: the file has changed since, and holds no such component.
        """
        from ..checkpoints.key_mapping import class_shapes

        return {name: entry.shape for name, entry in class_shapes([file.path], kind).items()}

    def lent_by(self, folders: Sequence[InstalledModel], parts: Sequence[str]) -> dict[str, tuple[Path, ...]]:
        """Return for each part the folder of the first model that has it."""
        found: dict[str, tuple[Path, ...]] = {}
        for part in parts:
            here = [folder.path / part for folder in folders if (folder.path / part).is_dir()]
            if here:
                found[part] = (here[0],)
        return found

    def model(
        self, family: ModelFamily, files: Sequence[SingleFile], parts: Mapping[str, tuple[Path, ...]]
    ) -> InstalledModel:
        """Return the model that is known by the last of its files.

        Args:
            files: those whose weights are the model's own.
            parts: {component or tokenizer: the files or the folder that hold it}.
        """
        known = files[-1]
        size = sum(file.found.bytes for file in files)
        return InstalledModel(known.name, known.path, size, parts, known.details, family.required)


def single_files(host: Host, wanted: Callable[[str], bool], pytorch: bool = False) -> list[SingleFile]:
    """Return the files of weights in the folders whose category is wanted; damaged ones are left out.

    Headers are read once and kept until a file changes.
    """
    found: dict[Path, SingleFile] = {}
    endings = (*ENDINGS, *PYTORCH_ENDINGS) if pytorch else ENDINGS
    for category, root in host.model_folders():
        if not wanted(category):
            continue
        for path in find_files(root, SEARCH_DEPTH, endings, INDEXES):
            inspected = _inspected(path)
            if inspected is not None and path.resolve() not in found:
                name = _shown_name(category, path.relative_to(root).as_posix())
                found[path.resolve()] = SingleFile(name, path, inspected)
    return list(found.values())


def _inspected(path: Path) -> FileInfo | None:
    try:
        status = path.stat()
        return _inspected_once(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _inspected_once(path: Path, size: int, changed: int) -> FileInfo | None:
    from ..checkpoints.inspect import inspect

    del size, changed  # they tell one state of the file from another
    try:
        return inspect(path)
    except PiyingError:
        return None


def what_is(name: str, host: Host) -> str | None:
    """Return what the single file of that name is, or None where there is no such file."""
    from ..checkpoints.inspect import inspect

    for category, root in host.model_folders():
        relative = name.removeprefix(f"{category}/") if category else name
        path = root / relative
        if ".." in relative or not path.is_file():
            continue
        try:
            found = inspect(path)
        except PiyingError as error:
            return str(error)
        return found.reason or f"this is {found.what}"
    return None
