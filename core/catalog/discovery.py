"""Discovery: which models are installed: folders that say what they are, and single files known by their contents.

What reads headers is imported where it is used: nodes are declared at ComfyUI's start, which none of it may slow.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import PiyingError, clipped, file_error
from ..families.base import LORA_COMPONENT, SECOND_EXPERT, ModelFamily
from ..files.file_state import CACHED, FileState, cached_by_state, file_state
from ..files.folder import CONFIG, CONFIG_BYTES, INDEX, SHARD, STEMS, component_files, component_folder
from ..files.json_file import read_json, read_json_or_empty
from ..files.scan import Entry, files_among, models_among, name_in_part, name_left_out, named_together, scan
from ..host.base import MODEL_CATEGORIES, Host
from .installed_model import FOLDER_DEPTH, InstalledModel

if TYPE_CHECKING:
    from ..checkpoints.inspect import FileInfo

INDEXES = (INDEX, CONFIG)
SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"  # as diffusers names them
ENDINGS = (".safetensors", ".sft", ".gguf", ".pth", ".pt", ".ckpt", ".bin")
LONGEST_NAME = 1024
# Categories without models of families in single files.
NO_MODELS = ("loras", "annotators", "tokenizers", "upscale_models", "frame_interpolation", "vae_approx")
SEARCH_DEPTH = 8  # of subfolders, as deep as anyone sorts models
MAX_FILES = 20_000  # of weights in one folder of models: the header of each is read

T = TypeVar("T")


def once_in_pass(host: Host, key: Hashable, find: Callable[[], T]) -> T:
    """Return what a function finds in the models folders, from the host's table where this pass has asked already."""
    table = host.pass_cache()
    if key not in table:
        with named_together():
            table[key] = find()
    found: T = table[key]
    return found


def installed_models(family: ModelFamily, host: Host) -> list[InstalledModel]:
    """Return the family's models that are here, in the host's order of preference, without the built-in one.

    Those that cannot run are among them, and say why: `lacking`, `problem`.
    """
    return list(once_in_pass(host, ("models", family.key, family.index_classes), lambda: _installed(family, host)))


def _installed(family: ModelFamily, host: Host) -> list[InstalledModel]:
    found: dict[str, InstalledModel] = {}
    partial: dict[str, tuple[str, Path]] = {}
    for category, root in host.model_folders():
        for entry in models_among(_entries(category, root, host), INDEXES):
            folder = Path(entry.path)
            if entry.real in found or _class_name(folder) not in family.index_classes:
                continue
            contents = _contents(folder)
            name = _shown_name(category, folder.relative_to(root).as_posix())
            if _is_downloading(contents):
                continue
            needed = (spec.name for spec in family.components if not spec.optional)
            if (folder / LORA_COMPONENT).is_dir() and not all((folder / part).is_dir() for part in needed):
                partial.setdefault(entry.real, (name, folder))
            else:
                size = _size_at_once(folder, contents)
                problem = _model_problem(family, folder, contents)
                found[entry.real] = InstalledModel(name, Path(entry.real), size, problem=problem)
    folders, files = list(found.values()), FileCatalog(host)
    completed = [_completed(family, name, folder, files=files, folders=folders) for name, folder in partial.values()]
    return [*folders, *completed, *family.single_file_models(files, folders)]


def _size_at_once(folder: Path, contents: tuple[tuple[str, FileState], ...]) -> int:
    second = folder / SECOND_EXPERT
    weights = [(Path(file), state.size) for file, state in contents if file.lower().endswith(".safetensors")]
    return sum(size for file, size in weights if second not in file.parents)


def _completed(
    family: ModelFamily, name: str, folder: Path, *, files: FileCatalog, folders: Sequence[InstalledModel]
) -> InstalledModel:
    """Return the model of a folder that lacks components, with those that lie elsewhere."""
    transformer = files.elsewhere(name, folder / LORA_COMPONENT)
    if transformer is None:
        return InstalledModel(
            name, folder, 0, problem=_problem(LORA_COMPONENT, (folder,), _classes(family, LORA_COMPONENT))
        )
    own = {path.name: (path,) for path in sorted(folder.iterdir()) if path.is_dir()}
    beside = family.beside((transformer,), files, folders)
    # A tokenizer goes with its text encoder, wherever that is.
    lone = {part for part in own if part.replace("tokenizer", "text_encoder") not in own} & beside.keys()
    known = files.model(
        family, (transformer,), {**own, **{part: beside[part] for part in (beside.keys() - own.keys()) | lone}}, name
    )
    if known.lacking:
        missing = ", ".join(family.missing[part] for part in known.lacking)
        problem = f"{folder}: neither in it nor elsewhere: {missing}. {family.remedy}, or fetch it again."
        known = replace(known, needed=(), problem=problem)
    if any(part not in own for part in _named_experts(family, folder)):
        known = replace(known, problem=_problem(SECOND_EXPERT, (folder,), _classes(family, SECOND_EXPERT)))
    here = ", ".join(part for part in own if part in family.rules)
    return replace(known, path=folder, details=f"{known.details}; its folder holds {here} alone")


def _entries(category: str, root: Path, host: Host) -> list[Entry]:
    """Return what lies in one of the host's folders of models, but in the folders that it has for categories."""
    without = () if category else MODEL_CATEGORIES
    return once_in_pass(
        host,
        ("entries", root, without),
        lambda: scan(root, SEARCH_DEPTH, INDEXES, owned=_owner(root), without=without),
    )


def _owner(root: Path) -> Callable[[Path], frozenset[str] | None]:
    return lambda folder: _owned_names(folder, is_root=folder == root)


def _owned_names(folder: Path, is_root: bool) -> frozenset[str] | None:
    """Return the names of the files and folders that belong to the model a folder is; None where it is no model.

    Single files lie beside a configuration of something else as often as not: it makes no model of their folder.
    """
    named = _class_name(folder)
    if (folder / INDEXES[0]).is_file():
        inside = {path.name for path in folder.iterdir() if path.is_dir()}
        parts = inside & read_json_or_empty(folder / INDEXES[0], CONFIG_BYTES).keys() if is_root else inside
        return frozenset({*INDEXES, *parts}) if parts else None
    from ..families.registry import FAMILIES

    if not any(named in family.index_classes for family in FAMILIES):
        return None
    try:
        own = {file.name for file in component_files(folder)}
    except PiyingError as error:
        name_left_out(folder, str(error).removeprefix(f"{folder}: "))
        return None
    if is_root and not any(name.startswith(STEMS) for name in own):
        return None
    return frozenset({*INDEXES, *own})


def _contents(folder: Path) -> tuple[tuple[str, FileState], ...]:
    """Return the files of a model's folder, and their states."""
    states = []
    for entry in scan(folder, FOLDER_DEPTH):
        with contextlib.suppress(OSError):  # removed since
            states += [(entry.path, file_state(entry.path))] if entry.kind == "file" else []
    return tuple(states)


Part = tuple[str, tuple[str, ...]]  # the name of a component, and the classes that it may be


def _parts(family: ModelFamily, folder: Path) -> tuple[Part, ...]:
    needed = [spec.name for spec in family.components if not spec.optional]
    names = [*needed, *_named_experts(family, folder)]
    return tuple((name, _classes(family, name)) for name in names) or (("", ()),)


def _classes(family: ModelFamily, part: str) -> tuple[str, ...]:
    return next(spec.classes for spec in family.components if spec.name == part)


def _named_experts(family: ModelFamily, folder: Path) -> list[str]:
    """Return the components that a folder has, or says that it has, and that not every model of the family has."""
    index = read_json_or_empty(folder / INDEXES[0], CONFIG_BYTES)
    optional = [spec.name for spec in family.components if spec.optional]
    # diffusers writes [null, null] for what a pipeline could have and has not.
    return [part for part in optional if (folder / part).is_dir() or any(_list_of(index.get(part)))]


def _list_of(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _model_problem(family: ModelFamily, folder: Path, contents: tuple[tuple[str, FileState], ...]) -> str:
    """Return why the folder of a family's model cannot be used; else ""."""
    return _folder_problem(folder, _parts(family, folder), contents) or family.place_problem(folder)


@lru_cache(maxsize=CACHED)
def _folder_problem(folder: Path, parts: tuple[Part, ...], contents: tuple[tuple[str, FileState], ...]) -> str:
    """Return why a model's folder cannot be used, as far as file names, headers and configurations tell; else ""."""
    del contents  # they tell one state of the folder from another
    if not (folder / INDEXES[0]).is_file():
        return _problem("", (folder,)) or _tokenizer_problem(folder, folder)
    encoders = [part for part, _ in parts if part.startswith("text_encoder")]
    problems = chain(
        (_problem(part, (folder,), classes) for part, classes in parts),
        map(_scheduler_problem, (folder,)),
        (_tokenizer_problem(folder / part.replace("text_encoder", "tokenizer"), folder / part) for part in encoders),
    )
    return next(filter(None, problems), "")


def _scheduler_problem(folder: Path) -> str:
    """Return why the scheduler of a pipeline's folder cannot be made; "" where it can, or the pipeline has none."""
    from ..checkpoints.settings import check_settings

    if not read_json_or_empty(folder / INDEXES[0], CONFIG_BYTES).get(SCHEDULER):
        return ""
    file = folder / SCHEDULER / SCHEDULER_CONFIG
    if not file.is_file():
        return f"{folder}: there is no {SCHEDULER}/{SCHEDULER_CONFIG} in it. Fetch it again."
    try:
        check_settings(read_json(file, limit=CONFIG_BYTES), False)
    except PiyingError as error:
        return f"{file}: {str(error).removeprefix(f'{file}: ')}"
    return ""


def _tokenizer_problem(folder: Path, encoder: Path) -> str:
    """Return why a tokenizer cannot be that of the model in a folder; "" where the model reads no words."""
    from ..checkpoints.tokenizers import why_unusable

    config = read_json_or_empty(encoder / CONFIG)
    inside = config.get("text_config")  # of models with vision
    rows = config.get("vocab_size", inside.get("vocab_size") if isinstance(inside, dict) else None)
    if folder == encoder and rows is None:
        return ""
    return why_unusable(folder, rows if isinstance(rows, int) else None, encodes=folder != encoder)


def _problem(part: str, places: tuple[Path, ...], classes: tuple[str, ...] = ()) -> str:
    """Return why files or folders make up no such part of a model; "" where they do.

    Args:
        part: the name of a component; "" for a folder that transformers reads as a whole.
        places: see `checkpoints.components.find_component`.
        classes: those that the model's family reads; any where there is none.
    """
    files: list[Path] = []
    try:
        for place in places:
            folder = component_folder(place, part) if place.is_dir() else None
            files += [place] if folder is None else component_files(folder)
            files += [] if folder is None or not (folder / CONFIG).is_file() else [folder / CONFIG]
        states = tuple((file, file_state(file)) for file in files)
        return _problem_once(files[0], (part, classes), places, states)
    except (PiyingError, OSError) as error:
        return str(error)


@cached_by_state
def _problem_once(file: Path, part: Part, places: tuple[Path, ...], states: tuple[tuple[Path, FileState], ...]) -> str:
    from ..checkpoints.components import check_pretrained, find_component
    from ..checkpoints.pretrained import class_name, read_config

    del file, states  # the answer is cached until one of them changes
    name, classes = part
    try:
        if name:
            found = find_component(name, places).class_name
            if classes and found not in classes:
                where = ", ".join(map(str, places))
                return f"{where}: its {name} is a {found}, and {' or '.join(classes)} is wanted. Fetch it again."
        else:
            config = read_config(places[0])
            check_pretrained(places[0], config, class_name(config))
    except PiyingError as error:
        return str(error)
    return ""


def why_not(name: str, family: ModelFamily, host: Host) -> str | None:
    """Return why the folder or file of that name is no model of the family; None where there is neither."""
    for folder in _places(name, host):
        if not folder.is_dir():
            continue
        index = next((file for file in INDEXES if (folder / file).is_file()), None)
        if index is None:
            in_shards = any(SHARD.fullmatch(path.name) for path in folder.glob("*.safetensors"))
            reason = what_is(name, host, "model", of_folder=True) if in_shards else None
            return reason or f"the folder {folder} has neither {' nor '.join(INDEXES)}"
        found = _class_name(folder)
        if found is None:
            named = read_json_or_empty(folder / index, CONFIG_BYTES).get("_class_name")
            if isinstance(named, str):
                has_weights = next(folder.glob("*.safetensors*"), None) is not None
                reason = what_is(name, host, "model", of_folder=True) if has_weights else None
                return reason or (
                    f"{folder} holds one component alone, a {clipped(named)}; models are read from folders with a "
                    f"{INDEXES[0]}, or from single files"
                )
            return f"{folder / index} cannot be read"
        if _is_downloading(_contents(folder)):
            return f"{folder} is not all here yet: fetch it again, it goes on where it stopped"
        if found in family.index_classes:
            return _model_problem(family, folder, _contents(folder)) or None
        return f"{folder} is a {found}, not a {' or '.join(family.index_classes)}"
    return family.why_unusable(name, FileCatalog(host)) or what_is(name, host, "model")


def why_no_model(place: Path, found: FileInfo) -> str:
    """Return why the folder of a whole model, or a file with its tokenizer inside, cannot be used as one; else "".

    Args:
        found: what a file is, or a component of a folder.
    """
    from ..families.registry import FAMILIES

    named = _class_name(place) if place.is_dir() else None
    for family in FAMILIES:
        if named in family.index_classes:
            return _model_problem(family, place, _contents(place))
        inside = [part for part in found.parts if part.family == family.key and part.has_tokenizer]
        if inside and place.is_file():
            return family.place_problem(place)
    return ""


def _places(name: str, host: Host) -> Iterator[Path]:
    """Yield the files and folders that a name stands for; none for a name that leads out of the models folders.

    On Windows it is enough to look at a name such as `\\\\server\\share` to be connected to it.
    """
    path = PurePosixPath(name)
    is_inside = not path.is_absolute() and not set(path.parts) & {"..", "~"} and not set(name) & {":", "\\", "\0"}
    if not is_inside or len(name) > LONGEST_NAME:
        return
    for category, root in host.model_folders():
        relative = name.removeprefix(f"{category}/") if category else name
        try:
            if os.path.lexists(root / relative):
                yield root / relative
        except OSError:
            continue  # longer than this file system's names


def _class_name(folder: Path) -> str | None:
    """Return the class a folder says it is, or None where its index cannot be read or names none."""
    try:
        index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
        return None if index is None else _class_in(index)
    except OSError:
        return None


@cached_by_state
def _class_in(index: Path) -> str | None:
    try:
        table = read_json(index, limit=CONFIG_BYTES)
    except PiyingError as error:
        name_left_out(index, str(error).removeprefix(f"{index}: "))
        return None
    found = table.get("_class_name")
    if index.name != INDEXES[0]:
        architectures = table.get("architectures")
        found = architectures[0] if isinstance(architectures, list) and architectures else None
    return found if isinstance(found, str) else None


def _is_downloading(contents: tuple[tuple[str, FileState], ...]) -> bool:
    """Return whether a download of this model goes on or was stopped: it leaves NAME.part files."""
    return any(file.lower().endswith(".part") for file, _ in contents)


def _shown_name(category: str, relative: str) -> str:
    return f"{category}/{relative}" if category else relative


# Single files


@dataclass(frozen=True)
class SingleFile:
    """One file of weights, or a folder of files that are one: the name shown for it, where it is, and what it is."""

    name: str
    path: Path
    found: FileInfo

    @property
    def folder(self) -> Path:
        """Where it lies; itself where it is a folder."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def title(self) -> str:
        """What it is, where it is one known component; else ""."""
        return self.found.parts[0].title if len(self.found.parts) == 1 else ""

    @property
    def width(self) -> int:
        """Of the layers of its first component."""
        return self.found.parts[0].width

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer of its first component is in it."""
        return self.found.parts[0].has_tokenizer

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

    def inside(self, titles: Mapping[str, str]) -> dict[str, tuple[Path, ...]]:
        """Return the components that it holds, and their tokenizers: {component or tokenizer: the file}.

        Args:
            titles: {component: its title}.
        """
        found: dict[str, tuple[Path, ...]] = {}
        for part in self.found.parts:
            for name in (name for name, title in titles.items() if title == part.title):
                found[name] = (self.path,)
                if part.has_tokenizer:
                    found[name.replace("text_encoder", "tokenizer")] = (self.path,)
        return found


@dataclass(frozen=True)
class FileCatalog:
    """The files of weights in a host's models folders; damaged ones are left out."""

    host: Host

    @cached_property
    def all(self) -> list[SingleFile]:
        """The files in all folders but those of LoRAs: their contents tell what they are, not their place."""
        return single_files(self.host, {"", *MODEL_CATEGORIES} - {*NO_MODELS})

    def folders_of(self, *classes: str) -> list[Path]:
        """Return the folders whose index names one of these classes, in the host's order of preference."""
        places = self.host.model_folders()
        entries = (entry for place in places for entry in models_among(_entries(*place, self.host), INDEXES))
        found = dict.fromkeys(Path(entry.path) for entry in entries)
        return [folder for folder in found if _class_name(folder) in classes]

    def elsewhere(self, name: str, path: Path) -> SingleFile | None:
        """Return a file outside of the models folders under a name for it; None where it is damaged."""
        info = _inspected(path)
        return None if info is None else SingleFile(name, path, info)

    def why_not(self, path: Path) -> str:
        """Return what a file is that is no model here, or why it cannot be read."""
        from ..checkpoints.inspect import inspect

        try:
            found = inspect(path)
        except PiyingError as error:
            return str(error)
        return found.reason or f"this is {found.what}"

    def shapes(self, place: Path, kind: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one component of a file or folder under the names of its class.

        Raises:
            PiyingError: there is no such component in it.
        """
        from ..checkpoints.components import find_source

        return {name: entry.shape for name, entry in find_source(place, kind).entries.items()}

    def config(self, kind: str, places: Sequence[Path]) -> Mapping[str, Any]:
        """Return the configuration of one component, from its files or its folder.

        Raises:
            PiyingError: there is no such component in them, or they cannot be read.
        """
        try:
            return _config_once(places[0], kind, tuple(places))
        except OSError as error:
            raise file_error(f"Cannot read {places[0]}", error.errno, "") from error

    def vocabulary(self, place: Path, kind: str) -> int:
        """Return how many rows the embeddings of a text encoder or language model have; 0 where it cannot be read."""
        from ..checkpoints.layouts.base import EMBEDDINGS

        try:
            shapes = self.shapes(place, kind)
        except PiyingError:  # which the judgement of its model tells
            return 0
        return next((shape[0] for name, shape in shapes.items() if EMBEDDINGS.fullmatch(name)), 0)

    def lent_by(self, folders: Sequence[InstalledModel], parts: Sequence[str]) -> dict[str, tuple[Path, ...]]:
        """Return for each part the folder of the first model that has it, undamaged."""
        found: dict[str, tuple[Path, ...]] = {}
        for part in parts:
            for folder in folders:
                has_weights = not part.startswith("tokenizer")
                is_here = part not in found and (folder.path / part).is_dir()
                if is_here and not (has_weights and _problem(part, (folder.path,))):
                    found[part] = (folder.path / part,)
        return found

    def model(
        self,
        family: ModelFamily,
        files: Sequence[SingleFile],
        parts: Mapping[str, tuple[Path, ...]],
        name: str = "",
    ) -> InstalledModel:
        """Return the model that is known by the last of its files.

        Args:
            files: those whose weights are the model's own.
            parts: {component or tokenizer: the files or the folder that hold it}.
            name: of several models with the same last file.
        """
        known = files[-1]
        size = sum(file.found.bytes for file in files)
        beside = "".join(f", on {file.name}" for file in files[:-1])
        judged = (_problem(part, parts[part], _classes(family, part)) for part in family.rules if part in parts)
        problem = next(filter(None, judged), "")
        needed = family.needs(files[0], self)
        return InstalledModel(name or known.name, known.path, size, parts, known.details + beside, needed, problem)


@cached_by_state
def _config_once(place: Path, kind: str, places: tuple[Path, ...]) -> Mapping[str, Any]:
    from ..checkpoints.components import find_component

    del place  # for whose state the answer is cached
    return find_component(kind, places).config


def single_files(host: Host, categories: Collection[str]) -> list[SingleFile]:
    """Return the files of weights in the folders of these categories; damaged ones are left out, and named once.

    Headers are read once and cached until a file changes.
    """
    found: dict[str, SingleFile] = {}
    for category, root in host.model_folders():
        if category in categories:
            key = ("files", category, root)
            for real, file in once_in_pass(host, key, lambda: _inspected_files(category, root, host)):  # noqa: B023
                found.setdefault(real, file)
    return list(found.values())


def _inspected_files(category: str, root: Path, host: Host) -> list[tuple[str, SingleFile]]:
    """Return the files of weights in one folder of models, each with its path without links."""
    files = files_among(_entries(category, root, host), ENDINGS)
    found: dict[Path, tuple[str, SingleFile]] = {}
    for entry in islice(files, MAX_FILES):
        path, real = Path(entry.path), entry.real
        if SHARD.fullmatch(path.name) and path.parent != root:
            path, real = path.parent, os.path.dirname(real)  # noqa: PTH120 - a text, as the others are
        if path in found:
            continue
        info = _inspected(path)
        if info is not None:
            if info.parts and not info.readable:
                name_left_out(path, info.reason)
            name = _shown_name(category, path.relative_to(root).as_posix())
            found[path] = (real, SingleFile(name, path.parent if _is_configured(path, info) else path, info))
    if next(files, None) is not None:
        name_in_part(root, f"there are more than {MAX_FILES} files of weights in it")
    return list(found.values())


def _is_configured(path: Path, info: FileInfo) -> bool:
    """Return whether the configuration beside a file is followed: the folder is then read, and not the file alone."""
    from ..checkpoints.components import is_followed

    is_own = info.readable and path.is_file() and path.name.startswith(STEMS)
    return is_own and any(is_followed(path.parent, part.kind) for part in info.parts)


def _inspected(path: Path) -> FileInfo | None:
    """Return what a file is, or a folder of shards; None where it is damaged, which is named once."""
    try:
        files = component_files(path) if path.is_dir() else [path]
        config = [path / CONFIG] if path.is_dir() and (path / CONFIG).is_file() else []
        return _inspected_once(files[0], path, tuple((file, file_state(file)) for file in [*files[1:], *config]))
    except PiyingError as error:
        name_left_out(path, str(error).removeprefix(f"{path}: "))
    except OSError as error:
        name_left_out(path, f"it cannot be read ({error.strerror})")
    return None


@cached_by_state
def _inspected_once(file: Path, path: Path, states: tuple[tuple[Path, FileState], ...]) -> FileInfo | None:
    from ..checkpoints.inspect import inspect

    del file, states  # the answer is cached until one of them changes
    try:
        return inspect(path)
    except PiyingError as error:
        name_left_out(path, str(error).removeprefix(f"{path}: "))
        return None


def what_is(
    name: str, host: Host, wanted: Literal["model", "lora"] = "lora", *, of_folder: bool = False
) -> str | None:
    """Return what the single file of that name is, or None where there is no such file.

    Args:
        of_folder: look at folders of one component in place of files, and return None for those that can be read.
    """
    from ..checkpoints.inspect import inspect

    for path in _places(name, host):
        if path.is_dir() is not of_folder:
            continue
        try:
            found = inspect(path)
        except PiyingError as error:
            return str(error).removesuffix(".")
        # Whether a LoRA could be read does not matter where a model is wanted.
        if (found.is_lora and wanted == "model") or not found.reason:
            return None if of_folder else f"this is {found.what}"
        return found.reason.removesuffix(".")
    return None
