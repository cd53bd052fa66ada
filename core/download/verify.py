"""Verification of downloaded models by size and checksum, and lists of files for machines without a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import PiyingError
from ..files.json_file import parse_json
from ..files.scan import find_files
from ..host.model_folders import ModelsRoot
from .checksums import Ledger, sha256_of
from .hub_session import HubSession
from .jobs import DownloadListener, FileDownload, downloads_of
from .manifest import ListedFile, ListedModel, files_of, safe_path
from .partial_file import partial_bytes

UNKNOWN = "-"
REPOSITORY_DEPTH = 4  # subfolders; hidden ones hold what huggingface_hub notes of a download, and are not entered
HEADER_LIMIT = 100 << 20  # safetensors' own limit of a header, bytes


@dataclass(frozen=True)
class Verdict:
    """The result for one file: `right`, `whole` where no checksum is known, or what is wrong with it."""

    path: str
    text: str

    @property
    def is_good(self) -> bool:
        """Whether the file can be used."""
        return self.text.startswith(("right", "whole"))


def presence(model: ListedModel, root: ModelsRoot, ledger: Ledger) -> str:
    """Return `yes`, `part` or `no`: whether a model's own files are here, as far as their sizes tell."""
    found = [_is_present(file, root, ledger) for file in model.files]
    if all(found):
        return "yes"
    # Of a repository anything in its folder is a beginning: the names of its files may not be known yet.
    places = [root / file.path for file in model.files]
    begun = any(partial_bytes(place) > 0 or (place.is_dir() and any(place.iterdir())) for place in places)
    return "part" if any(found) or begun else "no"


def _is_present(file: ListedFile, root: ModelsRoot, ledger: Ledger) -> bool:
    if not file.is_repository:
        return _has_size(root / file.path, file.bytes)
    names = ledger.repositories.get(file.path)
    if names is None:
        # Somebody else may have put the model there; of our own downloads we know whether they are whole.
        folder = root / file.path
        has_index = any((folder / name).is_file() for name in ("model_index.json", "config.json"))
        is_ours = any(path.startswith(file.path) for path in ledger.files)
        return has_index and not is_ours and next(find_files(folder, REPOSITORY_DEPTH, (".part",)), None) is None
    entries = ((file.path + name, ledger.files.get(file.path + name)) for name in names)
    return all(_has_size(root / path, entry.bytes if entry else None) for path, entry in entries)


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def verify(
    models: Sequence[ListedModel],
    root: ModelsRoot,
    listener: DownloadListener,
    carried: Iterable[FileDownload] = (),
) -> list[Verdict]:
    """Read the files of models and compare them with what they have to be; asks no hub.

    Args:
        models: from `find_listed`.
        root: the models folder.
        listener: told the progress.
        carried: the files of a list that `file_list` made elsewhere; they tell what no one knows here.
    """
    ledger = Ledger.read(root)
    listed = {file.path: file for file in carried}
    return [
        _verdict(listed.get(file.path, file), root, ledger, listener)
        for line in files_of(models)
        for file in _files(line, root, ledger, listed)
    ]


def _files(line: ListedFile, root: ModelsRoot, ledger: Ledger, carried: dict[str, FileDownload]) -> list[FileDownload]:
    """Return the files of a manifest entry: as listed, as in the ledger, or as it lies there."""
    if not line.is_repository:
        return [FileDownload(line.path, line.bytes, line.sha256)]
    names = [path.removeprefix(line.path) for path in carried if path.startswith(line.path)]
    names = names or ledger.repositories.get(line.path, [])
    if not names:
        folder = root / line.path
        names = [path.relative_to(folder).as_posix() for path in find_files(folder, REPOSITORY_DEPTH, ("",))]
    return [FileDownload(line.path + name, None, None) for name in names] or [FileDownload(line.path, None, None)]


def _verdict(file: FileDownload, root: ModelsRoot, ledger: Ledger, listener: DownloadListener) -> Verdict:
    path, entry = root / file.path, ledger.files.get(file.path)
    size = file.bytes if file.bytes is not None else entry.bytes if entry else None
    sha256 = file.sha256 or (entry.sha256 if entry else None)
    if not path.is_file():
        return Verdict(file.path, "unfinished" if partial_bytes(path) else "missing")
    found = path.stat().st_size
    if size not in (None, found):
        return Verdict(file.path, f"wrong: {found} bytes, not {size}")
    if sha256 is None:
        if path.suffix == ".safetensors" and not is_whole_safetensors(path):
            return Verdict(file.path, "wrong: shorter or longer than its header says")
        return Verdict(file.path, "whole, as far as its length tells; its sha256 is not known")
    digest = sha256_of(path, lambda done: listener.progress(file.path, done, found))
    return Verdict(file.path, "right" if digest == sha256 else f"wrong: its sha256 is {digest}, not {sha256}")


def is_whole_safetensors(path: Path) -> bool:
    """Return whether a safetensors file is as long as its header says: a cut one is not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            return False
        try:
            header = parse_json(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return bool(size == 8 + length + max(ends, default=0))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return False


# For machines without a network


def file_list(models: Sequence[ListedModel], session: HubSession) -> list[str]:
    """Return a line for each file to carry: address, path below the models folder, bytes, sha256, by tabs."""
    files = [file for line in files_of(models) for file in downloads_of(line, session, Path(), Ledger())]
    return [
        "\t".join(
            (
                file.remotes[0][1].url,
                file.path,
                UNKNOWN if file.bytes is None else str(file.bytes),
                file.sha256 or UNKNOWN,
            )
        )
        for file in files
    ]


def read_file_list(path: Path) -> list[FileDownload]:
    """Return the files of a list made by `file_list`.

    Raises:
        PiyingError: it is no such list.
    """
    files = []
    try:
        for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
            _, name, size, sha256 = line.split("\t")
            known = None if size == UNKNOWN else int(size)
            files.append(FileDownload(safe_path(name), known, None if sha256 == UNKNOWN else sha256))
    except (OSError, ValueError) as error:
        raise PiyingError(
            f"{path} cannot be read as a list of files ({error}). Make it with: python install.py --models ID "
            "--print-files > list.txt"
        ) from error
    return files
