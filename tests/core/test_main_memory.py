"""Limits of main memory: control groups of both versions, resource limits and Windows, and failures told as such."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from piying.core import main_memory
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.main_memory import (
    MemoryLimit,
    cgroup_limits,
    commit_limit,
    is_memory_short,
    is_out_of_memory,
    shortage,
    usable_cores,
)
from piying.core.planner.machine import Limits, read_machine
from piying.core.planner.phases import Block, Component, Phase, Variant
from piying.core.planner.plan import plan
from piying.core.planner.report import table

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30
NONE = 9223372036854771712  # what version 1 says where there is no limit


def tree(root: Path, groups: str, mounts: str, files: dict[str, object]) -> Path:
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def version_2(folder: str, limit: object, used: int, **pages: int) -> dict[str, object]:
    files = {"memory.max": limit, "memory.high": "max", "memory.current": used}
    statistics = "\n".join(f"{name} {size}" for name, size in {"anon": 0, **pages}.items())
    return {f"{folder}/{name}": text for name, text in {**files, "memory.stat": statistics}.items()}


def version_1(folder: str, limit: int, used: int, cached: int = 0, swap: int = NONE) -> dict[str, object]:
    names = ("limit_in_bytes", "usage_in_bytes", "memsw.limit_in_bytes", "memsw.usage_in_bytes")
    values = dict(zip(names, (limit, used, swap, used), strict=True))
    # The group's own pages stand before those of its children too.
    statistics = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {cached}\ntotal_active_file 0"
    return {f"{folder}/memory.{name}": text for name, text in values.items()} | {f"{folder}/memory.stat": statistics}


MOUNT_2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
MOUNT_1 = "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
SCOPE = "user.slice/user-1000.slice/run-u7.scope"

CASES = {
    # docker run --memory 4g: the container sees its own group as the root.
    "container": ("0::/", MOUNT_2, version_2("sys/fs/cgroup", 4 * GB, 3 * GB, inactive_file=GB), (4 * GB, 2 * GB)),
    "nested": (
        f"0::/{SCOPE}",
        MOUNT_2,
        version_2(f"sys/fs/cgroup/{SCOPE}", "max", GB)
        | version_2("sys/fs/cgroup/user.slice", 3 * GB, 2 * GB, active_file=GB // 2),
        (3 * GB, 3 * GB // 2),
    ),
    "high below max": (
        f"0::/{SCOPE}",
        MOUNT_2,
        version_2(f"sys/fs/cgroup/{SCOPE}", 8 * GB, GB) | {f"sys/fs/cgroup/{SCOPE}/memory.high": 5 * GB},
        (5 * GB, 4 * GB),
    ),
    # Both versions are mounted, and memory is in the first.
    "hybrid": (
        f"4:memory:/jobs/one\n2:cpu,cpuacct:/\n0::/{SCOPE}",
        MOUNT_2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ") + "\n" + MOUNT_1.format(top="/"),
        version_1("sys/fs/cgroup/memory/jobs/one", NONE, GB)
        | version_1("sys/fs/cgroup/memory/jobs", 2 * GB, GB, GB // 4),
        (2 * GB, 5 * GB // 4),
    ),
    # docker with version 1: the group's own path is where the mount begins.
    "bound": (
        "7:memory:/docker/4f2a",
        MOUNT_1.format(top="/docker/4f2a"),
        version_1("sys/fs/cgroup/memory", 6 * GB, GB),
        (6 * GB, 5 * GB),
    ),
    "memory and swap together": (
        "7:memory:/docker/4f2a",
        MOUNT_1.format(top="/"),
        version_1("sys/fs/cgroup/memory/docker/4f2a", 6 * GB, GB, swap=2 * GB),
        (2 * GB, GB),
    ),
    "a path that is not seen": (
        "0::/../../other",
        MOUNT_2,
        version_2("sys/fs/cgroup", 4 * GB, GB),
        (4 * GB, 3 * GB),
    ),
    "used up": ("0::/", MOUNT_2, version_2("sys/fs/cgroup", GB, 2 * GB), (GB, 0)),
    "a space in its name": (
        "0::/my jobs",
        MOUNT_2.replace("/sys/fs/cgroup ", "/my\\040groups "),
        version_2("my groups/my jobs", 4 * GB, GB),
        (4 * GB, 3 * GB),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_control_group_limits_memory(tmp_path, name):
    groups, mounts, files, expected = CASES[name]
    found = min(cgroup_limits(tree(tmp_path, groups, mounts, files)), key=lambda limit: limit.free)
    assert (found.total, found.free) == expected
    assert not found.counts_mapped


@pytest.mark.parametrize(
    ("groups", "mounts", "files"),
    [
        ("0::/", MOUNT_2, version_2("sys/fs/cgroup", "max", GB)),
        ("4:memory:/", MOUNT_1.format(top="/"), version_1("sys/fs/cgroup/memory", NONE, GB)),
        ("0::/", MOUNT_2, {}),
        ("nonsense", "nonsense\n\n- cgroup2", {"sys/fs/cgroup/memory.max": "4"}),
        ("", "", {}),
    ],
)
def test_where_no_group_limits_memory_there_is_none(tmp_path, groups, mounts, files):
    assert list(cgroup_limits(tree(tmp_path, groups, mounts, files))) == []
    assert list(cgroup_limits(tmp_path / "nowhere")) == []


def test_a_group_that_does_not_count_its_children_does_not_limit_them(tmp_path):
    files = version_1("sys/fs/cgroup/memory/jobs/one", 3 * GB, GB) | version_1("sys/fs/cgroup/memory/jobs", GB, GB)
    files["sys/fs/cgroup/memory/jobs/memory.use_hierarchy"] = 0
    found = cgroup_limits(tree(tmp_path, "4:memory:/jobs/one", MOUNT_1.format(top="/"), files))
    assert [(limit.total, limit.source) for limit in found] == [
        (3 * GB, "memory.limit_in_bytes of the cgroup /jobs/one")
    ]


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cores"),
    [
        ("0::/", MOUNT_2, {"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        (
            "0::/a/b",
            MOUNT_2,
            {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "50000 100000"},
            1,
        ),
        ("0::/", MOUNT_2, {"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        (
            "2:cpu,cpuacct:/x",
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
            {
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": 300000,
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": 100000,
            },
            3,
        ),
        ("2:cpu:/", "32 31 0:29 / /cpu rw - cgroup cgroup rw,cpu", {"cpu/cpu.cfs_quota_us": -1}, 8),
    ],
)
def test_a_quota_limits_cores(tmp_path, monkeypatch, groups, mounts, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(tree(tmp_path, groups, mounts, files)) == cores


def test_windows_commit_counts_mapped_files():
    class Kernel:
        def GlobalMemoryStatusEx(self, reference):
            status = reference._obj
            assert status.length == 64
            status.commit, status.free_commit = 20 * GB, 6 * GB
            return 1

    (found,) = commit_limit(Kernel())
    assert (found.total, found.free, found.counts_mapped) == (20 * GB, 6 * GB, True)


def one_phase(weights: int) -> tuple[Phase, ...]:
    component = Component("text_encoder", Block(0, 0), (Block(weights, 0, 1),), "fp32")
    return (Phase("encode", component, ("fp32",), ("fp32",), 1.0, 1.0, 1, (Variant("whole", 0),), False),)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (
            MemoryLimit(4 * GB, GB, "memory.max of this container's cgroup"),
            "Main memory is limited to 4.0 GB by memory.max of this container's cgroup",
        ),
        (
            MemoryLimit(6 * GB, 3 * GB, "ulimit -v (RLIMIT_AS, the address space)", counts_mapped=True),
            "Memory and mapped files are limited to 6.0 GB by ulimit -v (RLIMIT_AS, the address space)",
        ),
    ],
)
def test_a_plan_that_a_limit_cannot_hold_says_so(monkeypatch, limit, words):
    from piying.core.planner import machine as machines

    free = read_machine(HeadlessHost(chosen_device="cpu"))
    monkeypatch.setattr(machines, "memory_limits", lambda: [limit])
    held = read_machine(HeadlessHost(chosen_device="cpu"))
    work = one_phase(3 * GB // 4)  # a mapped file of 3 GB
    assert plan(work, replace(free, ram_free=64 * GB)).fits
    made = plan(work, held)
    assert not made.fits
    assert made.reasons[1].startswith(words)
    assert plan(work + work, held).reasons[2:] == made.reasons[1:]  # once, however many phases
    assert limit.source in table(made, held)
    small = plan(one_phase(1000), replace(held, ram_free=64 * GB))
    assert small.fits
    assert not Limits(held, 0).unmappable(small.phases[0])


def caused(error, by):
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (SystemError("error return without exception set"), True),
        (SystemError("unknown opcode"), False),
        (ImportError("No module named 'xformers'"), False),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("bad allocation"), True),
        (RuntimeError("unable to mmap 64 bytes from file <x>: Cannot allocate memory (12)"), True),
        (OSError("[WinError 1455] The paging file is too small for this operation to complete"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
        (
            caused(RuntimeError("Could not import module 'UMT5EncoderModel'."), ImportError("failed to map segment")),
            True,
        ),
    ],
)
def test_failures_to_allocate_are_known(error, expected):
    assert is_out_of_memory(error) == expected


def test_an_absurd_configuration_is_no_shortage_of_memory(monkeypatch):
    absurd = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes.")
    modest = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 67108864 bytes.")
    assert (is_memory_short(absurd), is_memory_short(modest)) == (False, True)
    monkeypatch.setattr(main_memory, "available_bytes", lambda: 8 * GB)
    assert not is_memory_short(MemoryError())
    monkeypatch.setattr(main_memory, "available_bytes", lambda: GB // 8)
    assert is_memory_short(MemoryError())
    assert not is_memory_short(absurd)


@pytest.mark.parametrize("kind", ["header", "json", "picture"])
def test_a_file_is_not_blamed_where_memory_ran_out(tmp_path, monkeypatch, kind):
    from piying.core.files.json_file import read_json
    from piying.core.files.open import read_header
    from piying.core.media.images import opened

    def fail(*args, **kwargs):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    path = tmp_path / "file"
    path.write_bytes(b"{}")
    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(PiyingError, match=r"main memory is used up.*raise the limit") as raised:
        if kind == "picture":
            with opened(path):
                pass
        else:
            (read_header if kind == "header" else read_json)(path)
    assert "damaged" not in str(raised.value)
    assert "Choose another" not in str(raised.value)


LIMITED = """
import resource, sys
sys.path.insert(0, {tests!r})
import conftest  # loads the pack
import psutil
import torch
from contextlib import redirect_stdout
from types import SimpleNamespace
from piying.core.checkpoints.load import empty_module
from piying.core.executor.execute_plan import Meter
from piying.core.executor.retry import PhaseOutOfMemoryError
from piying.core.main_memory import memory_limits
room = psutil.Process().memory_info().vms + (8 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
print([limit.source for limit in memory_limits()])
config = dict(_class_name="UMT5EncoderModel", d_model=64, num_heads=1, d_kv=64, d_ff=64, num_layers=1, vocab_size=8)
for fail in (lambda: torch.ones(1 << 28), lambda: empty_module("text_encoder", config, "umt5.safetensors")):
    try:
        # huggingface_hub prints which of its modules could not be imported, where memory ends in one of them.
        with redirect_stdout(sys.stderr), Meter("cpu").phase(SimpleNamespace(key="encode", phase="encode", device="")):
            fail()
    except PhaseOutOfMemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits on the address space are Linux'")
def test_a_limit_on_the_address_space_is_read_and_its_failure_told():
    code = LIMITED.format(tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    limits, tensor, module = done.stdout.splitlines()
    assert limits == "['ulimit -v (RLIMIT_AS, the address space)']"
    assert "can't allocate memory" in tensor
    assert module.startswith("encode: ")  # the libraries of its class cannot be imported
    assert "umt5" not in module


def test_a_shortage_is_told_with_the_limit_that_is_tight(monkeypatch):
    tight = MemoryLimit(3 * GB // 2, GB // 4, "ulimit -v (RLIMIT_AS, the address space)", counts_mapped=True)
    wide = MemoryLimit(64 * GB, 40 * GB, "memory.max of this container's cgroup")
    monkeypatch.setattr(main_memory, "memory_limits", lambda: [wide])
    assert shortage(MemoryError()) == (
        "memory ran out (MemoryError). Choose a smaller size or model, fewer images or frames, or close other "
        "programs."
    )
    monkeypatch.setattr(main_memory, "memory_limits", lambda: [wide, tight])
    assert shortage(ImportError("x.so: failed to map segment\nmore")) == (
        "memory ran out (x.so: failed to map segment). It is limited to 1.5 GB by ulimit -v (RLIMIT_AS, the address "
        "space): raise the limit, or run outside it."
    )
