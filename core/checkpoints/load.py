"""One component, from whatever files hold it, to a module that is ready to call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import PiyingError
from ..families.registry import component_names, component_specs, layout_kinds
from ..files.dtypes import torch_dtype
from ..files.folder import CONFIG, component_files, component_folder
from ..files.json_file import read_json
from ..files.open import header_tensors, read_header
from ..files.safetensors_file import TensorEntry
from ..files.stored_tensor import StoredTensor
from ..main_memory import is_memory_short
from ..quantization.policy import CastRules
from .assemble import assemble
from .fitness import class_config
from .inspect import FileComponent, describe, file_components
from .key_mapping import translated
from .layouts.base import Metadata
from .pretrained import BAD_VALUES, check_counts, class_name, read_config, without_code

DIFFUSERS = ("transformer", "vae")  # kinds whose classes are diffusers', all others are transformers'
POOLING = "add_pooling_layer"  # an argument of BertModel, beside its configuration


def load_component(
    kind: str,
    paths: str | Path | Sequence[str | Path],
    *,
    config: dict[str, Any] | str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    storage: str | None = None,
    rules: CastRules | None = None,
    cancelled: Callable[[], None] = lambda: None,
) -> torch.nn.Module:
    """Return a diffusers or transformers module in host memory, in evaluation mode.

    Tensors are read one at a time and go straight to their final type; those that keep their type
    stay views of the mapped file. No code from a file is run.

    Args:
        kind: "transformer", "vae", "text_encoder", "text_encoder_2" (the second one where a folder or
            a file has two) or "prompt_model".
        paths: one file, one folder (of the component or of its pipeline), or several that hold the
            component together, such as a Wan2.1 text-to-video model and a VACE module.
        config: where shapes cannot tell: the contents of a config.json, its path, or its folder.
        dtype: a torch type, or its short name: "bf16", "fp16", "fp32".
        storage: the name of a format to cast Linear layers to, such as "fp8"; None leaves each in the format
            that the file has it in, any other name unpacks them all.
        rules: which layers are cast; None for all inside lists of modules.
        cancelled: called between tensors; raises to stop.

    Raises:
        PiyingError: the files are incomplete, damaged, of another model, or in a format that is not
            read here.
    """
    if kind not in component_names():
        raise PiyingError(f"kind is {kind!r}; there are {', '.join(component_names())}.")
    places = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    sources = [_read(place, kind) for place in places]
    source = ", ".join(str(place) for place in places)
    tensors: dict[str, StoredTensor] = {}
    for one in sources:
        # Of two files that both have a tensor the later would win unseen.
        if twice := tensors.keys() & one.tensors.keys():
            raise PiyingError(f"{source}: {min(twice)} is in more than one of them. Choose one file for each part.")
        tensors |= one.tensors
    if isinstance(config, (str, Path)):
        config = Path(config)
        config = read_json(config / CONFIG if config.is_dir() else config)
    chosen = _found_config(sources, tensors, source) if config is None else config
    layout = sources[0].part.layout
    module = empty_module(kind.removesuffix("_2"), chosen, source, layout.class_name if config and layout else "")
    assemble(
        module,
        tensors,
        source,
        dtype=torch_dtype(dtype) if isinstance(dtype, str) else dtype,
        storage=storage,
        rules=rules,
        check=cancelled,
    )
    return module


def config_beside(kind: str, places: Sequence[Path]) -> dict[str, Any] | None:
    """Return the configuration that lies beside a component's files; None where shapes have to tell.

    Raises:
        PiyingError: the files are incomplete, damaged, or of another model.
    """
    found = (_read(place, kind).config for place in places)
    return next((config for config in found if config is not None), None)


@dataclass(frozen=True)
class _Source:
    """One of the places a component comes from: its tensors under the class's names."""

    part: FileComponent
    tensors: dict[str, StoredTensor]
    config: dict[str, Any] | None
    metadata: Metadata


def _read(place: Path, kind: str) -> _Source:
    folder = component_folder(place, kind) if place.is_dir() else None
    if folder is None and not place.is_file():
        raise PiyingError(f"{place}: there is no such file or folder.")
    files = [place] if folder is None else component_files(folder)
    tensors: dict[str, StoredTensor] = {}
    headers = []
    for file in files:
        headers.append(read_header(file))
        tensors |= header_tensors(headers[-1])
    config = read_config(folder) if folder and (folder / CONFIG).is_file() else None
    if config is not None:
        check_counts(config, len(tensors), str(folder))
    parts = file_components(tensors)
    fitting = [part for part in parts if part.kind in layout_kinds(kind)]
    if fitting:
        part = fitting[-1] if kind.endswith("_2") else fitting[0]
    elif config is not None and len(parts) == 1 and parts[0].layout is None:
        part = parts[0]  # names that no layout knows: the configuration beside them says what they are
    else:
        entries = {name: TensorEntry("", stored.shape, 0, 0) for name, stored in tensors.items()}
        raise PiyingError(
            f"{place}: this is {describe(entries)}, not a {kind.replace('_', ' ')}. Choose another file."
        )
    original = part.layout is not None and part.layout.style == "original"
    if config is not None and original and class_name(config) not in known(kind.removesuffix("_2")):
        config = None  # what its authors put beside it is none of diffusers
    return _Source(part, translated(part, tensors, str(place)), config, headers[0].metadata)


def _found_config(sources: list[_Source], tensors: dict[str, StoredTensor], source: str) -> dict[str, Any]:
    """Return the configuration beside the files, or what the shapes tell."""
    beside = next((one.config for one in sources if one.config is not None), None)
    if beside is not None:
        return beside
    layout = sources[0].part.layout
    assert layout is not None  # `_read` lets the unknown pass only with a configuration
    try:
        shapes = {name: stored.shape for name, stored in tensors.items()}
        return class_config(layout, shapes, sources[0].metadata)
    except PiyingError as error:
        raise PiyingError(f"{source}: {error}") from error


def known(kind: str) -> tuple[str, ...]:
    """Return the classes of one kind of component."""
    return tuple(dict.fromkeys(name for spec in component_specs(kind) for name in spec.classes))


def empty_module(kind: str, config: dict[str, Any], source: str, assumed: str = "") -> torch.nn.Module:
    """Return a module with all its parameters on the meta device and its constant buffers computed.

    Args:
        kind: of a component, such as "transformer" or "text_encoder".
        config: what diffusers or transformers write into config.json.
        source: where the configuration is from, for messages.
        assumed: the class where the configuration names none.

    Raises:
        PiyingError: it is for another class, or its values make no model.
    """
    import diffusers
    import transformers
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    name = class_name(config) or assumed
    if name not in known(kind):  # a text encoder's file may be of a larger model, which its config.json names
        types = {key: one for spec in component_specs(kind) for key, one in spec.model_types.items()}
        model_type = config.get("model_type")
        name = types.get(model_type, name) if isinstance(model_type, str) else name
    if name not in known(kind):
        raise PiyingError(
            f"{source}: is {f'a {name}' if name else 'not named'}; as {kind} there can be {', '.join(known(kind))}."
        )
    config = without_code(config)
    try:
        with init_empty_weights(include_buffers=False):
            if kind in DIFFUSERS:
                module = getattr(diffusers, name).from_config(config)
            else:
                cls = getattr(transformers, name)
                settings = {key: value for key, value in config.items() if key not in ("quantization_config", POOLING)}
                arguments = {POOLING: config[POOLING]} if POOLING in config else {}
                module = cls(cls.config_class.from_dict(settings), **arguments)
        _check_latents(module.config)
        built: torch.nn.Module = module.eval().requires_grad_(False)
        return built
    except torch.OutOfMemoryError:
        raise  # of a card, which holds more than this module: a cheaper plan may do
    except (*BAD_VALUES, OSError, StrictDataclassError) as error:
        if is_memory_short(error):
            raise
        reason = " ".join(str(error).split())[:200]
    # Outside the handler: main memory that ran out for absurd sizes is no reason to try another plan.
    raise PiyingError(f"{source}: its configuration makes no {name} ({reason}). Fetch it again.")


def _check_latents(config: Any) -> None:
    """Accept the numbers with which a VAE's latents are normalised: nothing looks at them before sampling is done.

    Raises:
        ValueError: they are not one finite number for each channel, or a divisor is 0.
    """
    for name in ("latents_mean", "latents_std"):
        values = getattr(config, name, None)
        if values is None:
            continue
        numbers = values if isinstance(values, (list, tuple)) else ()
        wrong = [one for one in numbers if not isinstance(one, (int, float)) or not math.isfinite(one)]
        channels = getattr(config, "z_dim", None) or getattr(config, "latent_channels", len(numbers))
        if len(numbers) != channels or wrong or (name == "latents_std" and not all(numbers)):
            raise ValueError(f"{name} are not the numbers of {channels} channels")
