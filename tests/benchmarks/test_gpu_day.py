"""The day with a card loses nothing: parts that fail, hang or run out of time are noted, and the next call goes on."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
FAKE_CARD = Path(__file__).resolve().parent / "fake_card"
PART = """
import json, os, pathlib, subprocess, sys, time
found = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
with open({count!r}, "a") as runs: runs.write("x")
found.write_text(json.dumps({{"steps": [{{"name": {name!r}, "seconds": [1.5, 2.5], "peak": 3 * 2**30}}]}}))
{then}
"""


@pytest.fixture
def day(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    # The driver's own program is what stands in for the card; no part here uses torch.
    monkeypatch.setenv("PATH", f"{FAKE_CARD}{os.pathsep}{os.environ['PATH']}")
    module = importlib.import_module("gpu_day")
    monkeypatch.setattr(module, "MARGIN", 0.5)
    monkeypatch.setattr(module, "GRACE", 0.5)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "none")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "committed")
    yield module
    for name, loaded in list(sys.modules.items()):
        if Path(getattr(loaded, "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def call(day, monkeypatch, tmp_path):
    """Make one call of the day; each part is (name, planned seconds, what it does once its figures are written)."""

    def run(parts, *options):
        made = []
        for name, seconds, then in parts:
            script = tmp_path / f"{name}.py"
            script.write_text(PART.format(count=str(tmp_path / f"{name}.runs"), name=name, then=then))
            made.append(day.Part(name, f"what {name} shows", seconds, str(script), ""))
        monkeypatch.setattr(day, "PARTS", tuple(made))
        monkeypatch.setattr(sys, "argv", ["gpu_day.py", "run", "--out", str(tmp_path / "out"), *options])
        try:
            day.main()
        except SystemExit as ended:
            assert ended.code == 130
        return json.loads((tmp_path / "out" / "fake-h100.json").read_text(encoding="utf-8"))["parts"]

    return run


def runs(tmp_path, name):
    path = tmp_path / f"{name}.runs"
    return len(path.read_text()) if path.exists() else 0


def test_all_parts_are_planned_into_two_calls(day):
    options = day.read_options(["run"])
    for _ in range(2):
        left = options.seconds - 10  # the margin, and the beginning
        while options.parts and options.parts[0].seconds <= left:
            left -= options.parts[0].seconds
            options.parts = options.parts[1:]
    assert options.parts == ()


def test_every_part_ends_in_a_figure_or_a_reason_and_the_next_call_goes_on(call, tmp_path):
    child = tmp_path / "child"
    hangs = f"pathlib.Path({str(child)!r}).write_text(str(subprocess.Popen(['sleep', '60']).pid)); time.sleep(60)"
    parts = [
        ("good", 1, ""),
        ("broken", 1, "raise RuntimeError('no kernel image')"),
        ("hanging", 0.5, hangs),
        ("large", 1000, ""),
    ]
    found = call(parts, "--seconds", "20")
    assert {name: row["outcome"] for name, row in found.items()} == {
        "good": "done",
        "broken": "failed",
        "hanging": "timeout",
        "large": "left",
    }
    assert found["broken"]["reason"] == "exit 1: RuntimeError: no kernel image"
    assert "its limit" in found["hanging"]["reason"]
    assert "1000" in found["large"]["reason"]
    assert found["hanging"]["found"]["steps"][0]["name"] == "hanging"  # what it had is kept
    assert found["good"]["peak_mib"] == 43210
    page = (tmp_path / "out" / "fake-h100.md").read_text(encoding="utf-8")
    assert "| good | 2 | 3.00 |" in page
    assert "no kernel image" in page

    parts[0] = ("good", 1, "raise RuntimeError('never run again')")
    parts[3] = ("large", 1, "")
    found = call(parts, "--seconds", "20")
    assert [found[name]["outcome"] for name in ("good", "broken", "large")] == ["done", "failed", "done"]
    assert [runs(tmp_path, name) for name in ("good", "broken", "hanging", "large")] == [1, 2, 2, 1]
    with suppress(psutil.NoSuchProcess):  # what a part had started ended with it
        assert psutil.Process(int(child.read_text())).status() == psutil.STATUS_ZOMBIE


def test_a_part_cut_by_the_end_of_the_call_is_taken_up_before_what_failed(call, tmp_path, day):
    parts = [("broken", 1, "sys.exit('cannot')"), ("long", 2, "time.sleep(30)"), ("last", 2, "")]
    found = call(parts, "--seconds", "4")
    assert [found[name]["outcome"] for name in ("broken", "long", "last")] == ["failed", "cut", "left"]
    parts[1] = ("long", 1, "")
    found = call(parts, "--seconds", "20")
    assert {found[name]["outcome"] for name in ("long", "last")} == {"done"}
    order = sorted(("broken", "long", "last"), key=lambda name: (tmp_path / f"{name}.runs").stat().st_mtime_ns)
    assert order == ["last", "long", "broken"]


def test_what_has_been_measured_outlives_a_signal(call, tmp_path):
    stop = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); time.sleep(30)"
    found = call([("good", 1, ""), ("stopped", 1, stop), ("later", 1, "")], "--seconds", "20")
    assert [found[name]["outcome"] for name in ("good", "stopped")] == ["done", "cut"]
    assert "later" not in found
    found = call([("good", 1, ""), ("stopped", 1, ""), ("later", 1, "")], "--seconds", "20")
    assert {row["outcome"] for row in found.values()} == {"done"}


def test_results_that_came_with_the_repository_are_gone_on_from(call, day, tmp_path):
    call([("good", 1, "")], "--seconds", "20")
    (tmp_path / "out").rename(tmp_path / "committed")
    found = call([("good", 1, "raise SystemExit(1)"), ("next", 1, "")], "--seconds", "20")
    assert {name: row["outcome"] for name, row in found.items()} == {"good": "done", "next": "done"}


def test_a_part_goes_through_the_lines_for_a_card(day, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(FAKE_CARD))
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "run", "--toy", "--only", "kernels", "--out", str(tmp_path)])
    day.main()
    row = json.loads((tmp_path / "fake-h100-toy.json").read_text(encoding="utf-8"))["parts"]["kernels"]
    assert (row["outcome"], row["reason"]) == ("done", "")
    found = row["found"]
    assert found["device"] == "Fake H100"
    assert {each["name"] for each in found["copies"]} >= {"host to device, page-locked", "device to host, page-locked"}
    assert {each["name"] for each in found["products"]} >= {"bf16", "FP8, multiplied in FP8", "INT8, torch._int_mm"}
    assert all(each["rate"] > 0 for kind in ("attention", "products", "copies") for each in found[kind])
    page = (tmp_path / "fake-h100-toy.md").read_text(encoding="utf-8")
    assert "| FP8, multiplied in FP8 | " in page


def test_the_machine_s_own_packages_are_kept_where_they_serve(day, tmp_path):
    """Only what is missing, or asked for in a later version, is installed; nothing from an index."""
    pack = importlib.import_module("gpu_pack")
    folder, target = tmp_path / "pack", tmp_path / "site"
    folder.mkdir()

    def wheel(name, version, requires=()):
        path = folder / f"{name}-{version}-py3-none-any.whl"
        described = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        described += "".join(f"Requires-Dist: {each}\n" for each in requires)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}.py", "here = True\n")
            archive.writestr(f"{name}-{version}.dist-info/METADATA", described)
            archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{name}-{version}.dist-info/RECORD", "")

    wheel("piying_absent", "1.0", ["pytest>=999", 'piying_extra; extra == "more"'])
    wheel("piying_extra_of_none", "1.0")
    wheel("pluggy", "0.1")
    wheel("iniconfig", "999.0", [])
    assert pack.install(folder, target) == ["piying_absent", "piying_extra_of_none"]
    assert (target / "piying_absent.py").is_file()
    assert not (target / "iniconfig.py").exists()
    with tarfile.open(folder / pack.ARCHIVE, "w:gz") as archive:
        archive.add(folder / "pluggy-0.1-py3-none-any.whl", "ComfyUI/comfyui_version.py")
    assert (pack.comfyui_checkout(folder, tmp_path) / "comfyui_version.py").is_file()


def test_the_card_that_is_not_there_has_a_number_as_torch_counts_cards():
    code = "import torch; print(torch.device(torch.cuda.current_device()), torch.device('cuda'))"
    environment = os.environ | {"PYTHONPATH": str(FAKE_CARD)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.stdout.split() == ["cuda:0", "cuda"], ran.stderr
