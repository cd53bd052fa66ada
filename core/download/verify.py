"""Are the models that are here the right ones, and what has to be carried to a machine without a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import PiyingError
from .checksums import Ledger, is_whole_safetensors, sha256_of
from .hubs import safe_path
from .jobs import FileDownload, Hubs, Report, jobs_of
from .manifest import Listed, ListedFile, files_of
from .partial_file import part_bytes

UNKNOWN = "-"


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a file: `right`, `whole` where no hash is known, or what is wrong with it."""

    path: str
    word: str

    @property
    def is_good(self) -> bool:
        """Whether the file can be used."""
        return self.word.startswith(("right", "whole"))


def presence(model: Listed, root: Path, ledger: Ledger) -> str:
    """Return `yes`, `part` or `no`: whether a model's own files are here, as far as their sizes tell."""
    found = [_is_present(file, root, ledger) for file in model.files]
    if all(found):
        return "yes"
    begun = any(found) or any(_has_begun(root / file.path) for file in model.files)
    return "part" if begun else "no"


def _is_present(file: ListedFile, root: Path, ledger: Ledger) -> bool:
    if not file.is_repository:
        return _has_size(root / file.path, file.bytes)
    names = ledger.repositories.get(file.path)
    if names is None:
        return _was_put_there(root / file.path) and not any(path.startswith(file.path) for path in ledger.files)
    seen = ((file.path + name, ledger.files.get(file.path + name)) for name in names)
    return all(_has_size(root / path, entry.bytes if entry else None) for path, entry in seen)


def _was_put_there(folder: Path) -> bool:
    """Tell whether somebody else has put a model into a folder; of our own we know whether they are whole."""
    indexes = (folder / name for name in ("model_index.json", "config.json"))
    return any(index.is_file() for index in indexes) and not any(folder.rglob("*.part"))


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _has_begun(path: Path) -> bool:
    return part_bytes(path) > 0 or (path.is_dir() and any(path.iterdir()))


def verify(
    models: Sequence[Listed], root: Path, report: Report, carried: Iterable[FileDownload] = ()
) -> list[Verdict]:
    """Read the files of models and compare them with what they have to be; asks no hub.

    Args:
        models: from `find_listed`.
        root: the models folder.
        report: told the progress.
        carried: the files of a list that `file_list` made elsewhere; they tell what no one knows here.
    """
    ledger = Ledger.read(root)
    listed = {job.path: job for job in carried}
    verdicts = []
    for file in files_of(models):
        for job in _jobs(file, root, ledger, listed):
            verdicts.append(_verdict(listed.get(job.path, job), root, ledger, report))
    return verdicts


def _jobs(file: ListedFile, root: Path, ledger: Ledger, carried: dict[str, FileDownload]) -> list[FileDownload]:
    """Return what a line of the manifest stands for: as listed, as remembered, or as it lies there."""
    if not file.is_repository:
        return [FileDownload(file.path, file.bytes, file.sha256)]
    names = [path.removeprefix(file.path) for path in carried if path.startswith(file.path)]
    names = names or ledger.repositories.get(file.path, []) or _names_there(root / file.path)
    return [FileDownload(file.path + name, None, None) for name in names] or [FileDownload(file.path, None, None)]


def _names_there(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _verdict(job: FileDownload, root: Path, ledger: Ledger, report: Report) -> Verdict:
    path, seen = root / job.path, ledger.files.get(job.path)
    size = job.bytes if job.bytes is not None else seen.bytes if seen else None
    sha256 = job.sha256 or (seen.sha256 if seen else None)
    if not path.is_file():
        return Verdict(job.path, "unfinished" if part_bytes(path) else "missing")
    found = path.stat().st_size
    if size not in (None, found):
        return Verdict(job.path, f"wrong: {found} bytes, not {size}")
    if sha256 is None:
        return Verdict(job.path, _without_hash(path))
    digest = sha256_of(path, lambda done: report.advance(job.path, done, found))
    return Verdict(job.path, "right" if digest == sha256 else f"wrong: its sha256 is {digest}, not {sha256}")


def _without_hash(path: Path) -> str:
    if path.suffix == ".safetensors" and not is_whole_safetensors(path):
        return "wrong: shorter or longer than its header says"
    return "whole, as far as its length tells; its sha256 is not known"


# For machines without a network


def file_list(models: Sequence[Listed], hubs: Hubs) -> list[str]:
    """Return a line for each file to carry: address, path below the models folder, bytes, sha256, by tabs."""
    jobs = [job for file in files_of(models) for job in jobs_of(file, hubs, Path(), Ledger())]
    return [_line(job) for job in jobs]


def _line(job: FileDownload) -> str:
    size = UNKNOWN if job.bytes is None else str(job.bytes)
    return "\t".join((job.remotes[0][1].url, job.path, size, job.sha256 or UNKNOWN))


def read_file_list(path: Path) -> list[FileDownload]:
    """Return the files of a list made by `file_list`.

    Raises:
        PiyingError: it is no such list.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_job(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise PiyingError(
            f"{path} cannot be read as a list of files ({error}). Make it with: python install.py --models ID "
            "--print-files > list.txt"
        ) from error


def _job(line: str) -> FileDownload:
    _, name, size, sha256 = line.split("\t")
    return FileDownload(safe_path(name), None if size == UNKNOWN else int(size), None if sha256 == UNKNOWN else sha256)
