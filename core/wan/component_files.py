"""Components beside a transformer in single files: text encoder and tokenizer, VAE, and noise schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog.installed_model import BUILT_IN_ROOT, InstalledModel
from ..errors import PiyingError
from .latents import CHANNELS, TI2V_CHANNELS
from .vae_layouts import LIGHT_VAE_TITLE, VAE_TITLE, VAE_TITLE_48

if TYPE_CHECKING:
    from ..catalog.discovery import FileCatalog, SingleFile

TEXT_WIDTHS = {"text_encoder": "d_model", "transformer": "text_dim"}  # in their configurations
PIPELINES = ("WanVACEPipeline", "WanPipeline", "WanImageToVideoPipeline")


def beside(
    transformer: Sequence[SingleFile],
    files: FileCatalog,
    folders: Sequence[InstalledModel],
    *,
    channels: int = CHANNELS,
) -> dict[str, tuple[Path, ...]]:
    """Return the text encoder with its tokenizer, the VAE and a noise schedule, from the same folder first.

    Args:
        transformer: the files that hold it.
        folders: models in folders, which lend their components before those of other pipelines of Wan do.
        channels: of the latents.
    """
    from ..checkpoints.layouts.t5 import UMT5

    # No single file has a noise schedule; that of all published models is the same.
    found: dict[str, tuple[Path, ...]] = {"scheduler": (BUILT_IN_ROOT / "wan_vace" / "scheduler",)}
    folders = lenders(files, folders)
    is_ti2v = channels == TI2V_CHANNELS
    # Of two that read the same latents the one that loses nothing.
    titles = (VAE_TITLE_48,) if is_ti2v else (VAE_TITLE, LIGHT_VAE_TITLE)
    lent = files.lent_by(folders, ("text_encoder", "tokenizer"))
    vaes = [one for one in folders if (vae_channels(one.path) == TI2V_CHANNELS) is is_ti2v]
    others = [one for one in files.all if one.found.readable and one.title in (UMT5, *titles)]
    wanted = text_width(files, "transformer", [one.path for one in transformer])
    fitting = [one for one in others if one.title == UMT5 and text_width(files, "text_encoder", [one.path]) == wanted]
    if fitting:
        others = [one for one in others if one.title != UMT5 or one in fitting]
    folder = transformer[-1].folder
    near = [*transformer, *(one for one in others if one.folder == folder)]
    found |= _text_encoder(near, files, folders)
    if "tokenizer" not in found and lent.keys() >= {"text_encoder", "tokenizer"}:
        found |= {part: lent[part] for part in ("text_encoder", "tokenizer")}
    if "tokenizer" not in found:
        found |= _text_encoder(others, files, folders)
    return found | _vae(others, titles) | files.lent_by(vaes, ("vae",)) | _vae(near, titles)


def text_width_problem(files: FileCatalog, transformer: Sequence[Path], parts: Mapping[str, tuple[Path, ...]]) -> str:
    """Return that a text encoder makes other embeddings than a transformer reads; "" where they may fit.

    Args:
        transformer: its files.
        parts: {component: the files or the folder that hold it}; of `beside`.
    """
    encoder = parts.get("text_encoder")
    made = text_width(files, "text_encoder", encoder) if encoder else None
    wanted = text_width(files, "transformer", transformer)
    if encoder is None or made is None or wanted is None or made == wanted:
        return ""
    return (
        f"{encoder[0]}: this text encoder has a width of {made}, and the transformer reads {wanted}. Put the UMT5-XXL "
        "text encoder, whose width is 4096, into models/text_encoders."
    )


def text_width(files: FileCatalog, part: str, places: Sequence[Path]) -> int | None:
    """Return how wide the embeddings of a prompt are that a component makes or reads; None where that is not told."""
    try:
        width = files.config(part, places).get(TEXT_WIDTHS[part])
    except PiyingError:  # which the judgement of the model tells
        return None
    return width if isinstance(width, int) else None


def lenders(files: FileCatalog, folders: Sequence[InstalledModel]) -> list[InstalledModel]:
    """Return models in folders whose components other models may use: a family's own first, then those of Wan."""
    own = {folder.path for folder in folders}
    others = [path for path in files.folders_of(*PIPELINES) if path.resolve() not in own]
    return [*folders, *(InstalledModel(path.name, path, 0) for path in others)]


def vae_channels(folder: Path) -> int:
    """Return how many channels the latents of the VAE in a model's folder have; 16 where it does not say."""
    from ..files.folder import CONFIG, CONFIG_BYTES
    from ..files.json_file import read_json_or_empty

    found = read_json_or_empty(folder / "vae" / CONFIG, CONFIG_BYTES).get("z_dim")
    return found if isinstance(found, int) else CHANNELS


def _text_encoder(
    candidates: Sequence[SingleFile], files: FileCatalog, folders: Sequence[InstalledModel]
) -> dict[str, tuple[Path, ...]]:
    """Return the first text encoder that has a tokenizer, inside it or elsewhere; without one, the first there is."""
    from ..checkpoints.layouts.t5 import UMT5
    from ..checkpoints.tokenizers import TokenizerKind, find_tokenizer

    found: dict[str, tuple[Path, ...]] = {}
    for one in candidates:
        for part in (part for part in one.found.parts if part.title == UMT5):
            tokenizer: Path | None = one.path
            if not part.has_tokenizer:
                rows, lenders = files.vocabulary(one.path, "text_encoder"), [folder.path for folder in folders]
                tokenizer = find_tokenizer(TokenizerKind.UNIGRAM, rows, files.host, lenders=lenders, near=one.folder)
            if tokenizer is not None:
                return {"text_encoder": (one.path,), "tokenizer": (tokenizer,)}
            found = found or {"text_encoder": (one.path,)}
    return found


def _vae(candidates: Sequence[SingleFile], titles: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Return the first VAE of the first of these titles that there is one of."""
    for title in titles:
        for one in candidates:
            if any(part.title == title for part in one.found.parts):
                return {"vae": (one.path,)}
    return {}
