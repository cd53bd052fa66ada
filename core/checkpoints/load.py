"""Loading: a component from whatever files hold it, or a folder that transformers reads, to a module ready to call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import PiyingError
from ..families.registry import component_names
from ..files.dtypes import torch_dtype
from ..files.folder import CONFIG
from ..files.json_file import read_json
from ..files.open import header_tensors
from ..files.stored_tensor import StoredTensor
from ..main_memory import is_memory_short
from ..quantization.policy import CastRules
from .assemble import assemble
from .components import check_pretrained, find_component
from .fitness import no_class
from .key_mapping import translated
from .layouts.base import check_latents
from .pretrained import BAD_VALUES, class_name, read_config, reading, without_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    on_read: Callable[[int, int], None] = lambda done, total: None,
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
        on_read: called with the bytes of the module that are there, and all of them.

    Raises:
        PiyingError: the files are incomplete, damaged, of another model, or in a format that is not
            read here.
    """
    if kind not in component_names():
        raise PiyingError(f"kind is {kind!r}; there are {', '.join(component_names())}.")
    places = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    source = ", ".join(str(place) for place in places)
    if isinstance(config, (str, Path)):
        config = Path(config)
        config = read_json(config / CONFIG if config.is_dir() else config)
    found = find_component(kind, places, config)
    tensors: dict[str, StoredTensor] = {}
    for one in found.sources:
        stored = {name: tensor for header in one.headers for name, tensor in header_tensors(header).items()}
        tensors |= translated(one.part, stored, str(one.place))
    module = empty_module(found.class_name, found.config, source)
    assemble(
        module,
        tensors,
        source,
        dtype=torch_dtype(dtype) if isinstance(dtype, str) else dtype,
        storage=storage,
        rules=rules,
        check=cancelled,
        on_read=on_read,
    )
    return module


def empty_module(name: str, config: dict[str, Any], source: str) -> torch.nn.Module:
    """Return a module with all its parameters on the meta device and its constant buffers computed.

    Args:
        name: its class in diffusers or transformers; see `components.class_of`.
        config: what diffusers or transformers write into config.json.
        source: where the configuration is from, for messages.

    Raises:
        PiyingError: the configuration's values make no model.
    """
    import diffusers
    import transformers
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    config = without_code(config)
    try:
        with init_empty_weights(include_buffers=False):
            if hasattr(diffusers, name):
                module = getattr(diffusers, name).from_config(config)
                channels = module.config.get("z_dim") or module.config.get("latent_channels")
                check_latents(channels, module.config.get("latents_mean"), module.config.get("latents_std"))
            else:
                cls = getattr(transformers, name)
                settings = {key: value for key, value in config.items() if key not in ("quantization_config", POOLING)}
                arguments = {POOLING: config[POOLING]} if POOLING in config else {}
                module = cls(cls.config_class.from_dict(settings), **arguments)
        built: torch.nn.Module = module.eval().requires_grad_(False)
        return built
    except torch.OutOfMemoryError:
        raise  # of a card, which holds more than this module: a cheaper plan may do
    except (*BAD_VALUES, OSError, StrictDataclassError) as error:
        if is_memory_short(error):
            raise
        reason = no_class(name, error)
    # Outside the handler: main memory that ran out for absurd sizes is no reason to try another plan.
    raise PiyingError(f"{source}: {reason}")


def load_pretrained(folder: Path, title: str, classes: Collection[str], dtype: torch.dtype) -> PreTrainedModel:
    """Return a model that transformers reads from a folder, in host memory and in evaluation mode.

    Args:
        folder: holds config.json and safetensors files.
        title: of the family, for messages.
        classes: the classes of transformers that it may be.
        dtype: of its weights.

    Raises:
        PiyingError: the folder is incomplete, damaged, or another model's.
    """
    import transformers

    settings = read_config(folder)
    named = class_name(settings)
    if named not in classes:
        raise PiyingError(f"{folder}: is a {named or 'model without a name'}, not a {' or '.join(classes)}.")
    check_pretrained(folder, settings, named)
    with reading(folder, title):
        kind = getattr(transformers, named)
        model, info = kind.from_pretrained(
            folder,
            config=kind.config_class.from_dict(settings),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = info["missing_keys"]
    if missing:  # transformers fills them with random numbers, and only warns
        raise PiyingError(
            f"{folder}: cannot be read as a {title} model ({len(missing)} tensors are not in its files, "
            f"{min(missing)} first). Fetch the folder again, or choose another model."
        )
    whole: PreTrainedModel = model.eval()
    return whole
