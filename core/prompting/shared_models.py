"""Models of other programs: GGUF files that Ollama and LM Studio keep, offered where they lie and never written to.

Ollama's folder has a manifest for each name, in JSON, and blobs named by their hash (docs/modelfile.md and
server/manifest.go of ollama/ollama). LM Studio's has PUBLISHER/REPOSITORY/FILE.gguf.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import PiyingError
from ..files.folder import CONFIG_BYTES
from ..files.json_file import read_json
from ..files.scan import find_files, name_left_out

OLLAMA, LM_STUDIO = "Ollama", "LM Studio"
OLLAMA_FOLDER = "OLLAMA_MODELS"  # Ollama's own environment variable
OLLAMA_WEIGHTS = "application/vnd.ollama.image.model"
DEFAULT_REGISTRY, DEFAULT_NAMESPACE = "registry.ollama.ai", "library"
MANIFEST_DEPTH = 3  # registry, namespace and name; the manifest is named by the tag
LM_STUDIO_DEPTH = 4
DIGEST = re.compile("sha256:([0-9a-f]{64})")


def shared_models() -> Iterator[tuple[str, Path]]:
    """Yield names, such as "Ollama/qwen2.5:0.5b", and the files of weights that other programs keep under them."""
    yield from _ollama_files()
    yield from _lm_studio_files()


def _homes() -> list[Path]:
    try:
        return [Path.home()]
    except RuntimeError:  # an account without a home folder
        return []


def _ollama_files() -> Iterator[tuple[str, Path]]:
    own = os.environ.get(OLLAMA_FOLDER)
    # The last one is that of the service which Ollama's installer sets up on Linux.
    usual = [*(home / ".ollama" / "models" for home in _homes()), Path("/usr/share/ollama/.ollama/models")]
    for root in [Path(own)] if own else usual:
        manifests = root / "manifests"
        if not manifests.is_dir():
            continue
        for manifest in find_files(manifests, MANIFEST_DEPTH, ("",)):
            blob = _weights_of(manifest, root / "blobs")
            if blob is not None:
                *place, name, tag = manifest.relative_to(manifests).parts
                kept = [part for part in place if part not in (DEFAULT_REGISTRY, DEFAULT_NAMESPACE)]
                yield f"{OLLAMA}/{'/'.join([*kept, name])}:{tag}", blob


def _weights_of(manifest: Path, blobs: Path) -> Path | None:
    """Return the file of weights that a manifest names; None where it names none, or one that is not here."""
    try:
        layers = read_json(manifest, limit=CONFIG_BYTES).get("layers")
    except PiyingError as error:
        name_left_out(manifest, str(error).removeprefix(f"{manifest}: "))
        return None
    for layer in layers if isinstance(layers, list) else ():
        is_weights = isinstance(layer, dict) and layer.get("mediaType") == OLLAMA_WEIGHTS
        digest = DIGEST.fullmatch(str(layer.get("digest"))) if is_weights else None
        if digest is not None and (blobs / f"sha256-{digest[1]}").is_file():
            return blobs / f"sha256-{digest[1]}"
    return None


def _lm_studio_files() -> Iterator[tuple[str, Path]]:
    for home in _homes():
        for root in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"):
            if root.is_dir():
                for path in find_files(root, LM_STUDIO_DEPTH, (".gguf",)):
                    yield f"{LM_STUDIO}/{path.relative_to(root).as_posix()}", path
