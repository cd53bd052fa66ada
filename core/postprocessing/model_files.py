"""Model files of post-processing: listed by folder, chosen by name, read as tensors; none is unpickled.

What reads them is imported where it is used: the nodes are declared at ComfyUI's start, which none of it may slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog.discovery import once_in_pass
from ..errors import PiyingError, clipped
from ..files.scan import find_files
from ..host.base import Host

if TYPE_CHECKING:
    import torch

    from ..files.stored_tensor import StoredTensor

AUTO = "auto"
SEARCH_DEPTH = 4  # of subfolders
ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pkl")
# What parallel training and the authors' training scripts put before every name.
PREFIXES = ("module.", "netG.", "flownet.")


@dataclass(frozen=True)
class ModelKind:
    """Models of one job, each a single file.

    Attributes:
        folder: below `models`, as ComfyUI names it.
        without: what the `model` widget offers besides files: the ways that need no model, the usual one first.
    """

    folder: str
    without: tuple[str, ...]

    def choices(self, host: Host) -> list[str]:
        """Return what the `model` widget offers."""
        return [AUTO, *self.without, *self.files(host)]

    def files(self, host: Host) -> dict[str, Path]:
        """Return the files that are here by name; of several of one name the first counts, as in ComfyUI."""
        return dict(once_in_pass(host, ("postprocessing", self.folder), lambda: self._found(host)))

    def _found(self, host: Host) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for category, folder in host.model_folders():
            if category == self.folder and folder.is_dir():
                for path in find_files(folder, SEARCH_DEPTH, ENDINGS):
                    found.setdefault(path.relative_to(folder).as_posix(), path)
        return found

    def check(self, model: str, host: Host) -> None:
        """Accept a name from `choices`, spelled with either slash.

        Raises:
            PiyingError: there is no such file.
        """
        offered = self.choices(host)
        if model.replace("\\", "/") not in offered:
            raise PiyingError(
                f"model {model!r} is not in models/{self.folder}. Here are: {', '.join(offered)}. "
                f"Choose one of them, or put the file there."
            )

    def chosen(self, model: str, host: Host) -> Path | None:
        """Return the file of a widget's value, None where it needs none; `auto` takes the first one that is here.

        Raises:
            PiyingError: there is no such file.
        """
        self.check(model, host)
        name, files = model.replace("\\", "/"), self.files(host)
        return files.get(next(iter(files), "") if name == AUTO else name)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by the names that the model's authors give them, in main memory.

    Raises:
        PiyingError: it is damaged, or holds something else than tensors.
    """
    return _named(path, lambda stored: stored.read())


def read_shapes(path: Path) -> dict[str, torch.Tensor]:
    """Return what `read_weights` does on torch's meta device: of a file with a header no more than that is read."""
    import torch

    found = _named(path, lambda stored: torch.empty(stored.shape, dtype=stored.read_dtype, device="meta"))
    return {name: tensor.to("meta") for name, tensor in found.items()}


def _named(path: Path, read: Callable[[StoredTensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    from ..files.open import file_format, open_tensors

    # Files from before PyTorch 1.6 are no archives, and have a reader in torch that runs no code either.
    if file_format(path) in ("safetensors", "pth"):
        weights = {name: read(stored) for name, stored in open_tensors(path).items()}
    elif file_format(path) == "":
        weights = _legacy(path)
    else:
        raise PiyingError(f"{path}: holds no model of this kind. Choose a safetensors or .pth file.")
    for prefix in PREFIXES:
        # A file may hold more than the network, such as what it was trained with.
        if any(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _legacy(path: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    from ..files.pth_file import WRAPPERS
    from ..main_memory import is_out_of_memory

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        if is_out_of_memory(error):
            raise
        reason = clipped(" ".join(str(error).split()), 120)
        raise PiyingError(
            f"{path}: is neither a safetensors nor a PyTorch file of tensors ({reason}). Choose another file."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    tensors = loaded.items() if isinstance(loaded, Mapping) else ()
    return {name: tensor for name, tensor in tensors if isinstance(name, str) and isinstance(tensor, torch.Tensor)}
