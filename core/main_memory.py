"""Main memory: what this process may use of it, and whether an exception says that it ran out.

The machine, control groups, resource limits and Windows' commit limit it.

Sources: cgroups(7), proc_pid_mountinfo(5), the kernel's admin-guide/cgroup-v2 and cgroup-v1/memory, setrlimit(2), and
Microsoft's page on MEMORYSTATUSEX.
"""

from __future__ import annotations

import errno
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

SYSTEM = Path("/")
UNLIMITED = 1 << 60  # version 1 writes a number near 2**63 where there is no limit
FILE_PAGES = ("active_file", "inactive_file")  # evicted where memory is short; those of tmpfs are not among them

# What is said besides torch.OutOfMemoryError and MemoryError: by the handles of cuBLAS and cuDNN, pinned memory, the
# allocators of torch and of C++, the system (of a file that is mapped, or a thread's stack), Linux' loader of
# libraries, Windows, and Python itself where it has no memory left to make the exception of an import.
SAID = re.compile(
    "out of memory|ALLOC_FAILED|can(?:'|no)t allocate memory|not enough memory|bad[_ ]alloc|failed to map segment"
    "|unable to mmap|paging file is too small|can't start new thread|error return without exception set",
    re.IGNORECASE,
)
WINDOWS_ERRORS = (8, 14, 1455)  # ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_COMMITMENT_LIMIT
TRIED = re.compile("tried to allocate ([0-9]+) bytes")  # torch's allocator of main memory
# More than is allocated for anything but weights and activations: what asks for more at once has absurd numbers.
MODEST = 1 << 30


@dataclass(frozen=True)
class MemoryLimit:
    """One limit on the memory of this process.

    Attributes:
        total, free: the bytes that it allows, and those of them that are left.
        source: what sets it, for people: "memory.max of the cgroup /docker/4f…".
        counts_mapped: whether files that are mapped count, as in a limit on the address space.
    """

    total: int
    free: int
    source: str
    counts_mapped: bool = False


def available_bytes() -> int:
    """Return the bytes that this process can still take, within every limit that holds for it."""
    import psutil

    return min([int(psutil.virtual_memory().available), *(limit.free for limit in memory_limits())])


def has_room(size: int, mapped: int) -> bool:
    """Return whether `size` bytes can be taken, which add `mapped` to the address space, mapped files included."""
    import psutil

    room = all(limit.free >= (mapped if limit.counts_mapped else size) for limit in memory_limits())
    return room and int(psutil.virtual_memory().available) >= size


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception, or what caused it, says that memory ran out, on the card or in the machine."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and (
        error.errno == errno.ENOMEM or getattr(error, "winerror", None) in WINDOWS_ERRORS
    ):
        return True
    if isinstance(error, RuntimeError | OSError | ImportError | SystemError) and SAID.search(str(error)):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def is_memory_short(error: BaseException) -> bool:
    """Return whether an exception tells of a machine without memory, and not of a file that asks for an absurd amount.

    For code that reads a file or a configuration and takes little memory where that is sound.
    """
    if not is_out_of_memory(error):
        return False
    tried = TRIED.search(str(error))
    return int(tried[1]) < MODEST if tried else isinstance(error, OSError) or available_bytes() < MODEST


def shortage(error: BaseException) -> str:
    """Return for people that memory ran out with an exception, what limits it here, and what to do."""
    tried = TRIED.search(str(error))
    first_line = str(error).strip().partition("\n")[0] or type(error).__name__
    said = f"at {int(tried[1]) / 2**30:.1f} GB wanted at once" if tried else first_line
    tight = [limit for limit in memory_limits() if limit.free < MODEST]
    if not tight:
        advice = "Choose a smaller size or model, fewer images or frames, or close other programs."
        return f"memory ran out ({said}). {advice}"
    limits = " and ".join(f"{limit.total / 2**30:.1f} GB by {limit.source}" for limit in tight)
    return f"memory ran out ({said}). It is limited to {limits}: raise the limit, or run outside it."


def memory_limits(root: Path = SYSTEM) -> list[MemoryLimit]:
    """Return the limits that are set for this process below what the machine has, none where there are none.

    Args:
        root: below which /proc is, and the control groups are mounted.
    """
    if sys.platform == "win32":
        import ctypes

        return list(commit_limit(ctypes.windll.kernel32))
    return [*cgroup_limits(root), *_resource_limits()]


def cgroup_limits(root: Path = SYSTEM) -> Iterator[MemoryLimit]:
    """Yield the limits of this process's control groups, from its own up to the outermost one that is visible."""
    for group in _groups(root, "memory"):
        if group.version == 2:
            pages: tuple[str, ...] = FILE_PAGES
            used = {"memory.max": "memory.current", "memory.high": "memory.current"}
        else:
            if _number(group.folder / "memory.use_hierarchy") == 0 and not group.is_own:
                continue  # it does not count the groups below it
            pages = tuple(f"total_{page}" for page in FILE_PAGES)
            used = {
                "memory.limit_in_bytes": "memory.usage_in_bytes",
                "memory.memsw.limit_in_bytes": "memory.memsw.usage_in_bytes",
            }
        lines = (line.split() for line in _text(group.folder / "memory.stat").splitlines())
        evictable = sum(int(line[1]) for line in lines if line[0] in pages)
        for file, usage in used.items():
            limit, current = _number(group.folder / file), _number(group.folder / usage)
            if limit is not None and current is not None and limit < UNLIMITED:
                # The outermost group of all has no limit: what is at the top and has one is a container's.
                where = "this container's cgroup" if group.name == "/" else f"the cgroup {group.name}"
                yield MemoryLimit(limit, min(limit, max(0, limit - max(0, current - evictable))), f"{file} of {where}")


def _resource_limits() -> Iterator[MemoryLimit]:
    """Yield the limits on address space and data of this process, as `ulimit -v` and `ulimit -d` set them."""
    import resource

    import psutil

    if sys.platform == "darwin":
        return  # takes the limits and does not hold to them
    memory = psutil.Process().memory_info()
    for kind, used, source in (
        (resource.RLIMIT_AS, memory.vms, "ulimit -v (RLIMIT_AS, the address space)"),
        # Linux counts private writable mappings too, which those of weights are.
        (resource.RLIMIT_DATA, getattr(memory, "data", memory.rss), "ulimit -d (RLIMIT_DATA)"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield MemoryLimit(int(limit), max(0, int(limit - used)), source, counts_mapped=True)


def commit_limit(kernel: Any) -> Iterator[MemoryLimit]:
    """Yield Windows' limit on what may be committed: memory and page file, or less for a process in a job object.

    Weights are mapped copy-on-write, which commits as many bytes as the file has.

    Args:
        kernel: `ctypes.windll.kernel32`.
    """
    import ctypes

    class MemoryStatus(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("physical", "free_physical", "commit", "free_commit")),
            *((name, ctypes.c_uint64) for name in ("virtual", "free_virtual", "free_extended")),
        ]

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        source = "Windows' commit limit (memory and page file)"
        yield MemoryLimit(status.commit, status.free_commit, source, counts_mapped=True)


def usable_cores(root: Path = SYSTEM) -> int:
    """Return how many processor cores this process may keep busy: by its affinity, and its control groups' quotas."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(root, "cpu"):
        if group.version == 2:
            quota, _, period = _text(group.folder / "cpu.max").partition(" ")
        else:
            quota, period = (_text(group.folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


class _Group(NamedTuple):
    """A control group: where its files are, its name in its hierarchy, and whether it is the process's own."""

    folder: Path
    name: str
    version: int
    is_own: bool


def _groups(root: Path, controller: str) -> Iterator[_Group]:
    """Yield this process's control groups with a controller, of each hierarchy its own first.

    Where both versions are mounted, a controller is in one of them: the files of the other are not there.
    """
    for mount_root, mount_point, version, options in _mounts(root):
        if version == 1 and controller not in options:
            continue
        name = _own_group(root, controller if version == 1 else "")
        if name is None:
            continue
        own = PurePosixPath(name)
        # In a container the groups may be mounted from its own one on, or be named by paths that it does not see.
        below = own.relative_to(mount_root) if own.is_relative_to(mount_root) else PurePosixPath(name.lstrip("/"))
        mount = root / mount_point.lstrip("/")
        if ".." in below.parts or not (mount / below).is_dir():
            below = PurePosixPath()
        for group in (below, *below.parents) if below.parts else (below,):
            yield _Group(mount / group, str(PurePosixPath("/") / group), version, group == below)


def _own_group(root: Path, controller: str) -> str | None:
    """Return the path of this process's group in the hierarchy of a controller, or "" for that of version 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            return name
    return None


def _mounts(root: Path) -> Iterator[tuple[str, str, int, list[str]]]:
    """Yield the mounts of control groups: the group at the top, the folder, the version, and the options."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, (kind, _, options) = mount.split(" "), [*system.split(" "), "", "", ""][:3]
        if kind in ("cgroup", "cgroup2") and len(fields) > 4:
            # Spaces in paths are written in octal.
            top, folder = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), one) for one in fields[3:5])
            yield top, folder, 2 if kind == "cgroup2" else 1, options.split(",")


def _text(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None
