"""Components: what the tensors of files make up, where a component comes from, and whether it is whole.

From headers alone, without torch. Inspection, lists, checks and loading all ask here, so that they agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os.path import commonprefix
from pathlib import Path

from ..errors import PiyingError, clipped
from ..families.registry import component_specs, description, layout_kinds, layouts, model_types
from ..files.folder import CONFIG, SHARD, STEMS, component_folder, split_gguf
from ..files.open import read_header
from ..files.safetensors_file import FileHeader, TensorEntry
from ..lora.file import judge
from ..lora.names import lora_names
from ..quantization.stored_formats import check_readable, describes, weight_entries
from .fitness import check_blocks, check_tensors, class_config, class_entries, described_tensors, part_tensors
from .gguf_tokenizer import check_lists
from .layouts.base import EMBEDDINGS, Config, Layout, Metadata, Shapes, holds_tokenizer, needs_tokenizer
from .pretrained import check_counts, class_name, read_config
from .settings import check_settings

PREFIX = re.compile(
    r"(model\.diffusion_model\.|diffusion_model\.|vae\.|first_stage_model\.|text_encoders\.[^.]+\.(?:transformer\.)?)"
)
MAX_WRAPPERS = 3  # modules around a component whose names are tried
DECIDING = ("model.diffusion_model.", "diffusion_model.", "first_stage_model.", "text_encoders.")


@dataclass(frozen=True)
class FileComponent:
    """One component of a file.

    Attributes:
        names: {name within the component: name in the file}.
        layout: what it is; None where no layout we know has such names.
    """

    prefix: str
    layout: Layout | None
    names: dict[str, str]

    def title(self, entries: Mapping[str, TensorEntry]) -> str:
        """Return what it is called by the entries of its file; "" where it is not known."""
        own = {name: entries[full] for name, full in self.names.items()}
        return "" if self.layout is None else self.layout.title_of(own)

    @property
    def kind(self) -> str:
        """The kind of component; "" where it is not known."""
        return "" if self.layout is None else self.layout.kind


def file_components(names: Iterable[str]) -> list[FileComponent]:
    """Return the components that tensor names make up, in order of their prefixes."""
    groups: dict[str, dict[str, str]] = {}
    names = list(names)
    prefixed = any(name.startswith(DECIDING) for name in names)
    for name in names:
        found = PREFIX.match(name) if prefixed else None
        prefix = "" if found is None else found[1]
        group = groups.setdefault(prefix.removesuffix("transformer.") or prefix, {})
        group[name.removeprefix(prefix)] = name
    parts = [FileComponent(prefix, _layout_of(group), group) for prefix, group in sorted(groups.items())]
    wrapped = None if any(part.layout for part in parts) else _wrapped(names)
    return parts if wrapped is None else [wrapped]


def _layout_of(names: Mapping[str, str]) -> Layout | None:
    return next((layout for layout in layouts() if layout.matches(names)), None)


def _wrapped(names: Sequence[str]) -> FileComponent | None:
    """Return the component whose names all begin with that of a module around it: "model.", "module.", "pipe.dit."."""
    own = [name for name in names if "." in name or not describes(name)]
    shared = commonprefix(own)  # noqa: RUF071 - of characters, in names that are no paths
    for dot in islice(re.finditer(r"\.", shared), MAX_WRAPPERS):
        prefix = shared[: dot.end()]
        inside = {name.removeprefix(prefix): name for name in names}
        layout = _layout_of(inside)
        if layout is not None:
            return FileComponent(prefix, layout, inside)
    return None


WIDTHS_OF_CLIP = {768: "a CLIP-L text encoder", 1280: "a CLIP-G text encoder", 1024: "a CLIP-H text encoder"}
CLIP = re.compile(r"(.*\.)?text_model\.embeddings\.token_embedding\.weight")

# Models of others by a name that only they have, as a regular expression of its beginning.
FOREIGN = (
    (r"v\.blk\.0\.|mm\.0\.weight", "a vision encoder of llama.cpp (mmproj)"),
    (r"blk\.0\.attn_q(kv)?\.weight", "a language model of llama.cpp that is not known here"),
    (r"enc\.blk\.0\.", "a text encoder of llama.cpp that is not known here"),
    (r"model\.diffusion_model\.input_blocks\.", "a Stable Diffusion checkpoint"),
    (r"(model\.diffusion_model\.)?double_blocks\.0\.img_attn", "a Flux or HunyuanVideo transformer"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 transformer"),
    (r"(.*\.)?vision_model\.encoder\.|visual\.transformer\.", "a CLIP vision encoder"),
    (r"transformer_blocks\.0\.attn\.add_q_proj", "a Flux, Stable Diffusion 3 or Qwen-Image transformer"),
    (r"control_model\.|controlnet_", "a ControlNet"),
    (r"down_blocks\.0\.", "a U-Net of diffusers"),
)


UNKNOWN = "no model known here"
LONGEST_MARK = 200  # characters of a name that FOREIGN looks at


def describe(entries: Mapping[str, TensorEntry]) -> str:
    """Return what a file is: "a Wan2.1 VAE", "a CLIP-L text encoder", "no model known here"."""
    if lora_names(entries.keys()):
        return judge(entries).shape.title
    titles = [part.title(entries) for part in file_components(entries) if part.layout is not None]
    if titles:
        return "a checkpoint of " + ", ".join(titles) if len(titles) > 1 else f"a {titles[0]}"
    for name, entry in entries.items():
        if CLIP.fullmatch(name) and len(entry.shape) == 2:
            return WIDTHS_OF_CLIP.get(entry.shape[1], "a CLIP text encoder")
    lines = "\n".join(name[:LONGEST_MARK] for name in entries)
    for pattern, title in FOREIGN:
        if re.search(f"^(?:{pattern})", lines, re.MULTILINE):
            return title
    return UNKNOWN


def other_model(entries: Mapping[str, TensorEntry], metadata: Metadata, wanted: str = "") -> PiyingError:
    """Return what to raise where a file holds no component that is read, or not the wanted one.

    Args:
        entries, metadata: of the file.
        wanted: the kind of component; "" for any.
    """
    what, architecture = describe(entries), metadata.get("general.architecture")
    said = f"{what} ({clipped(str(architecture), 40)})" if architecture else what
    # Of what is not known every door says the same.
    also = f", not a {wanted.replace('_', ' ')}" if wanted and what != UNKNOWN else ""
    return PiyingError(f"this is {said}{also}. Choose another file.")


def readable_header(path: Path) -> FileHeader:
    """Return the header of a file whose weights can be read.

    Raises:
        PiyingError: it is damaged, or in a format that is not read here.
    """
    header = read_header(path)
    check_readable(header)
    return header


@dataclass(frozen=True)
class Source:
    """One of the places that a component comes from.

    Attributes:
        place: a file or a folder.
        headers: of its files.
        part: which of their tensors are the component's.
        entries: by the names of its class; their places in the file mean nothing.
        config: what lies beside the files and is followed; None where shapes have to tell.
    """

    place: Path
    headers: tuple[FileHeader, ...]
    part: FileComponent
    entries: dict[str, TensorEntry]
    config: Config | None = None


def find_source(place: Path, kind: str, config: Config | None = None) -> Source:
    """Return the component of a kind in a file or a folder.

    Args:
        place: a file, the folder of a component, or that of a pipeline.
        kind: "transformer", "vae", "text_encoder", "text_encoder_2" (the second one where a file has two) or
            "prompt_model".
        config: takes the place of what lies beside the files.

    Raises:
        PiyingError: a file is damaged or in no format that is read, or there is no such component.
    """
    folder = component_folder(place, kind) if place.is_dir() else None
    if folder is None and not place.is_file():
        raise PiyingError(f"{place}: there is no such file or folder.")
    header = readable_header(place if folder is None else folder)
    entries = header.entries
    is_given = config is not None
    if config is None and folder and (folder / CONFIG).is_file():
        config = read_config(folder)
    if config is not None:
        check_counts(config, len(entries), str(folder))
    parts = file_components(entries)
    fitting = [part for part in parts if part.kind in layout_kinds(kind)]
    if fitting:
        part = fitting[-1] if kind.endswith("_2") else fitting[0]
    elif config is not None and len(parts) == 1 and parts[0].layout is None:
        part = parts[0]  # names that no layout knows: the configuration beside them says what they are
    else:
        raise PiyingError(f"{place}: {other_model(entries, header.metadata, kind)}")
    original = part.layout is not None and part.layout.style == "original"
    if config is not None and not is_given and original and class_name(config) not in classes_of(kind):
        config = None  # what its authors put beside it is none of diffusers
    return Source(place, header.files, part, _entries_of(part, entries, place), config)


def _entries_of(part: FileComponent, entries: Mapping[str, TensorEntry], place: Path) -> dict[str, TensorEntry]:
    own = {name: entries[full] for name, full in part.names.items()}
    try:
        return weight_entries(own) if part.layout is None else class_entries(part.layout, own)
    except PiyingError as error:
        raise PiyingError(f"{place}: {error}") from error


@dataclass(frozen=True)
class Component:
    """A component that is whole, as far as headers tell.

    Attributes:
        sources: the places that it comes from.
        class_name: its class in diffusers or transformers.
        config: the class's configuration.
    """

    sources: tuple[Source, ...]
    class_name: str
    config: Config


def find_component(kind: str, places: Sequence[Path], config: Config | None = None) -> Component:
    """Return the component that files make up together.

    Args:
        kind: see `find_source`.
        places: one file or folder, or several, such as a text-to-video model and a VACE module.
        config: takes the place of what lies beside the files and what their shapes tell.

    Raises:
        PiyingError: a file is damaged, or they make up no whole component that is read here.
    """
    sources = tuple(find_source(place, kind, config) for place in places)
    source = ", ".join(map(str, places))
    entries: dict[str, TensorEntry] = {}
    for one in sources:
        # Of two files that both have a tensor the later would win unseen.
        if twice := entries.keys() & one.entries.keys():
            raise PiyingError(f"{source}: {min(twice)} is in more than one of them. Choose one file for each part.")
        entries |= one.entries
    try:
        return Component(sources, *_whole(kind, sources, entries, is_given=config is not None))
    except PiyingError as error:
        raise PiyingError(f"{source}: {error}") from error


def _whole(
    kind: str, sources: Sequence[Source], entries: Mapping[str, TensorEntry], is_given: bool = False
) -> tuple[str, Config]:
    """Return class and configuration of a component; a configuration that is given need not name its class."""
    layout = sources[0].part.layout
    config = next((one.config for one in sources if one.config is not None), None)
    shapes = {name: entry.shape for name, entry in entries.items()}
    if config is None:
        assert layout is not None  # `find_source` lets the unknown pass only with a configuration
        _check_part(layout, shapes, entries)
        config = class_config(layout, shapes, sources[0].headers[0].metadata)
    name = class_of(kind, config, layout.class_name if layout and is_given else "")
    check_settings(config, description(name) is not None)
    described = described_tensors(name, config)
    if described is None:
        check_blocks(kind, shapes)
    else:
        check_tensors(name, described, entries)
    return name, config


def _check_part(layout: Layout, shapes: Shapes, entries: Mapping[str, TensorEntry]) -> bool:
    """Return whether tensors are whole only together with another file, and accept them if so."""
    needed = part_tensors(layout, shapes)
    if needed is not None:
        check_tensors(layout.class_name, needed, entries)
    return needed is not None


def check_file(header: FileHeader, parts: Sequence[FileComponent]) -> None:
    """Accept a file or folder all of whose components are whole, or parts of ones that are whole with another file.

    Raises:
        PiyingError: one is not, there is none, or the file is one of several that hold a model together.
    """
    is_folder = header.path.is_dir()
    folder, shard = header.path if is_folder else header.path.parent, SHARD.fullmatch(header.path.name)
    if shard and int(shard[3]) > 1:
        raise PiyingError(f"it is file {int(shard[2])} of {int(shard[3])} of a model. Choose the folder of all.")
    if reason := split_gguf(header.path.name):
        raise PiyingError(reason)
    if not parts:
        raise other_model(header.entries, header.metadata)
    for part in parts:
        layout = part.layout
        if layout is None:
            continue
        entries = _entries_of(part, header.entries, header.path)
        # A model folder's configuration is for the files named so.
        is_own = is_folder or header.path.name.startswith(STEMS)
        if is_own and is_followed(folder, part.kind):
            find_component(part.kind, [folder])
        elif not _check_part(layout, {name: entry.shape for name, entry in entries.items()}, entries):
            _whole(part.kind, [Source(header.path, (header,), part, entries)], entries)
        if layout.needs is needs_tokenizer and holds_tokenizer(header.metadata):
            rows = next((one.shape[0] for name, one in entries.items() if EMBEDDINGS.fullmatch(name)), 0)
            check_lists(header.path, header.metadata, header.lists, rows)


def is_followed(folder: Path, kind: str) -> bool:
    """Return whether a folder has a configuration for a class of that kind."""
    return (folder / CONFIG).is_file() and class_name(read_config(folder)) in classes_of(kind)


def classes_of(kind: str) -> tuple[str, ...]:
    """Return the classes of one kind of component, whatever its number in the model."""
    specs = component_specs(kind.removesuffix("_2"))
    return tuple(dict.fromkeys(name for spec in specs for name in spec.classes))


def class_of(kind: str, config: Config, assumed: str = "") -> str:
    """Return the class that a configuration is for.

    Args:
        kind: of a component, such as "transformer" or "text_encoder".
        config: what diffusers or transformers write into config.json.
        assumed: the class where the configuration names none.

    Raises:
        PiyingError: it is for none that is read as that kind.
    """
    kind = kind.removesuffix("_2")
    name = class_name(config) or assumed
    if name not in classes_of(kind):  # a text encoder's file may be of a larger model, which its config.json names
        types = {key: one for spec in component_specs(kind) for key, one in spec.model_types.items()}
        model_type = config.get("model_type")
        name = types.get(model_type, name) if isinstance(model_type, str) else name
    if name not in classes_of(kind):
        raise PiyingError(
            f"is {f'a {name}' if name else 'not named'}; as {kind} there can be {', '.join(classes_of(kind))}."
        )
    return name


def check_pretrained(folder: Path, config: Config, name: str) -> None:
    """Accept a folder that transformers reads; tensors that it has no place for are passed over.

    Args:
        folder: holds the files.
        config: its configuration.
        name: its class.

    Raises:
        PiyingError: its files are incomplete, damaged, or in a format that is not read here.
    """
    entries = weight_entries(readable_header(folder).entries)
    check_counts(config, len(entries), str(folder))
    try:
        check_settings(config, description(name) is not None)
        types = model_types(name)
        if types and config.get("model_type", types[0]) not in types:
            raise PiyingError(
                f"its configuration says model_type is {config['model_type']!r}; that of a {name} is "
                f"{' or '.join(types)}. Fetch it again."
            )
        described = described_tensors(name, config)
        # Of a model without its head transformers finds the tensors under other names.
        if described is not None and described.needed.keys() & entries.keys():
            check_tensors(name, described, entries, passes_over=True)
    except PiyingError as error:
        raise PiyingError(f"{folder}: {error}") from error
