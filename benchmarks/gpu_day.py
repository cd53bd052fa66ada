"""Day with a card: every part that needs one, in calls of under ten minutes, on a machine that reaches no index.

    bash benchmarks/gpu_day.sh pack [--comfyui CHECKOUT]
    bash benchmarks/gpu_day.sh run [--out DIR] [--seconds 570] [--only PART ...] [--toy]

`pack` collects, on a machine with a network, what the one with the card lacks. `run` goes through the parts there, the
most telling first. Each has a time limit and a process of its own; one that fails or runs out of time is noted with
its reason and the figures it had, and the rest goes on. After every part the results are written, so that a call that
is stopped loses nothing and the next one goes on with what is left. `--toy` runs every part at a size for any device.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import gpu_pack
from gpu_results import Outcome, Results
from machine import ROOT, load_pack, slug

PACKAGE = ROOT / ".gpu_day"
RESULTS = ROOT / "benchmarks" / "results"
MARGIN = 8.0  # seconds of a call kept for ending a process and writing
GRACE = 5.0  # seconds a process has between being asked to end and being killed
# A part whose planned time is not left is not begun: half of a benchmark of models is mostly their loading.
WORTH = 0.6
LIMIT = 3.0  # times what is planned; with --toy, which is for any machine, as long as the call


@dataclass(frozen=True)
class Part:
    """One thing to find out.

    Attributes:
        name: its key in the results.
        shows: what for, as a heading.
        seconds: planned on an H100, estimated from arithmetic and never measured.
        command: of the benchmarks folder, or `pytest`; `{device}`, `{found}` and `{scratch}` are filled in.
        toy: the arguments in place of the command's for `--toy`.
        beside_comfyui: whether it takes a ComfyUI checkout.
    """

    name: str
    shows: str
    seconds: float
    command: str
    toy: str
    beside_comfyui: bool = False


STEPS = "memory.py --only step --rounds 1 --steps 1"
WHOLE = "memory.py --only phases --rounds 1 --steps 1"
TOY_STEPS = f"{STEPS} --models toy --sizes {{q}}toy run{{q}}"
TOY_WHOLE = f"{WHOLE} --models toy --sizes toy"
GROUP_OFFLOAD = "{q}diffusers, group offload{q}"
# Of the 14B: one process for all, since its weights take a minute to draw. Resident ways run out of 16 GB at once.
STEP_WAYS = "{q}Piying, resident{q} {q}diffusers, resident{q} {q}Piying, fp8 matmul{q} {q}Piying, streamed{q} ComfyUI"
# The most telling first: the first call ends behind the VAE at 480p, the second has the rest. B1 to B7 are the
# benchmarks that need a card: a step, a step under a cap, FP8, loading, the VAE, prompts, images.
PARTS = (
    Part(
        "kernels",
        "Attention backends, FP8 and INT8 products, copies",
        20,
        "kernels.py --model 1.3B --size 480p",
        "kernels.py --model toy --size {q}toy run{q} --rounds 1",
    ),
    Part(
        "tests",
        "The tests that need a card",
        80,
        "pytest -m gpu -v tests/gpu",
        "pytest -m gpu -v tests/gpu -k {q}wan_vace or every_time{q}",
    ),
    Part(
        "whole-14b-720p-16gb",
        "VACE 14B at 1280 × 720, 81 frames, in 16 GB: prompt to frames",
        165,
        f"{WHOLE} --models 14B --sizes 720p --caps 16 --capped --ways Piying --runs 1",
        f"{TOY_WHOLE} --caps 16 --capped --ways Piying --runs 1",
    ),
    Part(
        # Behind the one that writes the model.
        "whole-14b-480p-8gb",
        "VACE 14B at 832 × 480, 81 frames, in 8 GB: prompt to frames",
        50,
        f"{WHOLE} --models 14B --sizes 480p --caps 8 --capped --ways Piying --runs 1",
        f"{TOY_WHOLE} --caps 8 --capped --ways Piying --runs 1",
    ),
    Part(
        "step-1.3b-480p",
        "B1, B3: a step of VACE 1.3B, resident; attention kernels, compiled blocks, FP8",
        170,
        "speed.py --random 1.3B --size 480p --rounds 1 --timed 1",
        "speed.py --random toy --size {q}toy run{q} --rounds 1 --timed 1",
        beside_comfyui=True,
    ),
    Part(
        "vae-480p",
        "B5: the VAE at 832 × 480, 81 frames: number types, tiles",
        60,
        "memory.py --only vae --models 1.3B --sizes 480p --rounds 1 --types fp32 fp16",
        "memory.py --only vae --models toy --sizes toy --rounds 1 --types fp32",
    ),
    Part(
        "step-14b-480p",
        "B1, B2, B3: a step of VACE 14B, resident, and streamed in 16 GB",
        265,
        f"{STEPS} --models 14B --sizes 480p --caps 16 --ways {STEP_WAYS}",
        f"{TOY_STEPS} --caps 16 --ways {STEP_WAYS}",
        beside_comfyui=True,
    ),
    Part(
        "prompts",
        "B6: prompt expansion with a model of Qwen3-0.6B's size",
        45,
        "prompting.py --random --static --compile --rounds 2 --lines 1",
        "prompting.py --tokens 8 --static --rounds 1 --lines 1",
    ),
    Part(
        "images", "B7: a step of Hunyuan-DiT at 1024 × 1024", 30, "images.py --size 1024", "images.py --toy --rounds 1"
    ),
    Part(
        "load-1.3b",
        "B4: VACE 1.3B from its file to the card",
        30,
        "memory.py --only load --models 1.3B --rounds 2",
        "memory.py --only load --models toy --rounds 1",
    ),
    Part(
        "whole-1.3b-480p-24gb-6gb",
        "VACE 1.3B at 832 × 480, 81 frames, in 24 and 6 GB: prompt to frames",
        45,
        f"{WHOLE} --models 1.3B --sizes 480p --caps 24 6 --capped --ways Piying --runs 1",
        f"{TOY_WHOLE} --caps 24 6 --capped --ways Piying --runs 1",
    ),
    Part(
        "step-1.3b-6gb",
        "B2: a step of VACE 1.3B in 6 GB",
        50,
        f"{STEPS} --models 1.3B --sizes 480p --caps 6 --capped --ways Piying {GROUP_OFFLOAD} ComfyUI",
        f"{TOY_STEPS} --caps 6 --capped --ways Piying {GROUP_OFFLOAD} ComfyUI",
        beside_comfyui=True,
    ),
    Part(
        "vae-720p",
        "B5: the VAE at 1280 × 720, 81 frames",
        45,
        "memory.py --only vae --models 1.3B --sizes 720p --rounds 1 --types fp16",
        "memory.py --only vae --models toy --sizes toy --rounds 1 --types fp32",
    ),
    Part(
        "step-1.3b-480p-49",
        "A step of VACE 1.3B in a window of 49 frames, beside those of 81",
        20,
        "speed.py --random 1.3B --size {q}480p, 49 frames{q} --rounds 1 --ways {q}Piying, resident{q} {q}matmul{q}",
        "speed.py --random toy --size {q}toy run{q} --rounds 1 --timed 1 --ways {q}Piying, resident{q}",
    ),
    Part(
        "contest",
        "Quality and predictions of each `speed`, built-in model, beside diffusers and ComfyUI",
        30,
        "speed.py --captions 1",
        "speed.py --captions 1 --steps 4 --ways {q}speed fast{q} ComfyUI",
        beside_comfyui=True,
    ),
)


@dataclass(frozen=True)
class Card:
    """The card, as its driver describes it; a processor has a name alone."""

    name: str
    memory: str = ""
    driver: str = ""

    @classmethod
    def read(cls, device: str) -> Card:
        """Ask the driver.

        Raises:
            SystemExit: there is none, or no card.
        """
        if not device.startswith("cuda"):
            return cls(platform.processor() or platform.machine())
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader", "--id=0"]
        try:
            said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"nvidia-smi finds no card here ({error}). Use --device cpu --toy to try the parts."
            ) from error
        return cls(*(each.strip() for each in said.split(",")))


class CardMemory:
    """The most memory of the card in use, by all programs, as the driver counts it every fifth of a second."""

    def __init__(self, device: str) -> None:
        self.peak: int | None = None  # MiB
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0", "-lms", "200"]
        self._asked = None
        if device.startswith("cuda"):
            self._asked = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._asked is not None and self._asked.stdout is not None
        for line in self._asked.stdout:
            if line.strip().isdecimal():
                self.peak = max(self.peak or 0, int(line))

    def close(self) -> None:
        """Stop counting."""
        if self._asked is not None:
            self._asked.kill()
            self._asked.wait()


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, or the limit that ended it."""

    how: Literal["exit", "limit", "call"]
    status: int | None
    seconds: float


def attempt(command: list[str], environment: dict[str, str], log: Path, limit: float, left: float) -> Ended:
    """Run a command in a process group of its own until it ends, or its limit or the call's time is over."""
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(min(limit, left))
            return Ended("exit", status, time.monotonic() - begun)
        except subprocess.TimeoutExpired:
            return Ended("limit" if limit < left else "call", None, time.monotonic() - begun)
        finally:
            # The whole group, compilers and ComfyUI included, also where the part itself has ended or we are stopped.
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for word in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, word)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def outcome_of(part: Part, ended: Ended, found: Any, said: str, peak: int | None) -> Outcome:
    """Return what to write of a part, of its figures, of what it said and of the card's peak in MiB."""
    lines = said.strip().splitlines() or ["it said nothing"]
    if ended.how == "exit" and ended.status == 0:
        kind, reason = "done", ""
    elif ended.how == "exit":
        died = f"signal {-ended.status}" if ended.status is not None and ended.status < 0 else f"exit {ended.status}"
        kind, reason = "failed", f"{died}: {lines[-1]}"
    elif ended.how == "limit":
        kind, reason = "timeout", f"stopped at its limit, after {ended.seconds:.0f} s; it had said: {lines[-1]}"
    else:
        kind, reason = "cut", f"the call's time was over after {ended.seconds:.0f} s; it had said: {lines[-1]}"
    return Outcome(
        part.name,
        part.shows,
        kind,
        reason,
        planned=part.seconds,
        seconds=round(ended.seconds, 1),
        peak_mib=peak,
        found=found,
        said=[] if kind == "done" else lines[-30:],
    )


def read_found(path: Path) -> Any:
    """Return the figures a part has written: JSON, or pytest's XML; None where there are none yet."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    if not text.startswith("<"):
        return Results.parse(text)
    cases = ElementTree.fromstring(text).iter("testcase")
    rows = []
    for case in cases:
        bad = [each for each in case if each.tag in ("failure", "error", "skipped")]
        rows.append({"name": case.get("name"), "result": bad[0].tag if bad else "passed"})
        if bad:
            rows[-1]["why"] = bad[0].get("message", "")[:300]
    return {"tests": rows}


def scratch_folder() -> Path:
    """Return where models of 47 GB are best written: in memory where there is plenty of it, else on the disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 60 * 2**30:
        return memory
    return Path(tempfile.gettempdir())


class Day:
    """One call: the parts that are left, in turn, until its time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.deadline = time.monotonic() + options.seconds - MARGIN
        self.card = Card.read(options.device)
        name = slug(self.card.name) + ("-toy" if options.toy else "")
        options.out.mkdir(parents=True, exist_ok=True)
        self.results = Results.open(options.out / f"{name}.json", RESULTS / f"{name}.json", vars(self.card))
        self.scratch = Path(tempfile.mkdtemp(prefix="piying-day-", dir=options.scratch or scratch_folder()))
        site = self.scratch / "site"
        self.installed = gpu_pack.install(PACKAGE, site) if PACKAGE.is_dir() else []
        self.comfyui = options.comfyui or gpu_pack.comfyui_checkout(PACKAGE, self.scratch)
        paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

    def run(self) -> None:
        """Go through the parts, and again through those that failed where there is time left."""
        if self.installed:
            print(f"installed from {PACKAGE.name}: {', '.join(self.installed)}", flush=True)
        wanted = [part for part in self.options.parts if not self.options.only or part.name in self.options.only]
        for name in self.options.only:
            self.results.forget(name)
        for part in self.results.pending(wanted):
            left = self.deadline - time.monotonic()
            if left < WORTH * part.seconds:
                reason = f"{max(0, left):.0f} s were left of the call, and it takes about {part.seconds:.0f}"
                self.results.leave(part.name, part.shows, part.seconds, reason)
            else:
                self._part(part, left)
            print(self.results.line(part.name), flush=True)
        print(f"\n{self.results.path}\n{self.results.page}")

    def _part(self, part: Part, left: float) -> None:
        found = self.scratch / f"{part.name}.found"
        log = self.scratch / f"{part.name}.log"
        print(f"{part.name}: {part.shows}, about {part.seconds:.0f} s", flush=True)
        memory = CardMemory(self.options.device)
        ended = Ended("call", None, 0.0)
        begun = time.monotonic()
        try:
            limit = left if self.options.toy else LIMIT * part.seconds
            ended = attempt(self._command(part, found), self.environment, log, limit, left)
        except KeyboardInterrupt:
            ended = Ended("call", None, time.monotonic() - begun)
            raise
        finally:
            memory.close()
            said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            self.results.put(outcome_of(part, ended, read_found(found), said, memory.peak))

    def _command(self, part: Part, found: Path) -> list[str]:
        text = part.toy if self.options.toy else part.command
        first, *rest = shlex.split(text.format(q='"'))
        if first == "pytest":
            return [sys.executable, "-m", "pytest", *rest, "-p", "no:cacheprovider", f"--junitxml={found}"]
        command = [sys.executable, str(ROOT / "benchmarks" / first), *rest]
        command += ["--device", self.options.device, "--json", str(found)]
        if first == "memory.py":
            # Parts share the models that are written there.
            command += ["--scratch", str(self.scratch), "--keep"]
        if part.beside_comfyui and self.comfyui is not None:
            command += ["--comfyui", str(self.comfyui), "--comfyui-python", self.options.comfyui_python]
        return command

    def close(self) -> None:
        """Delete the models that were written."""
        shutil.rmtree(self.scratch, ignore_errors=True)


@contextmanager
def stopped_by_a_signal() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does, so that what has been measured is written."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read_options(given: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    pack = modes.add_parser("pack", help="collect what a machine without a network lacks")
    pack.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"), metavar="CHECKOUT")
    pack.add_argument("--python", default="3.12", help="the version there")
    pack.add_argument("--has", nargs="*", default=[], metavar="PACKAGE", help="what the machine has already")
    run = modes.add_parser("run", help="go through the parts that are left")
    run.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where results are kept")
    run.add_argument("--seconds", type=float, default=570.0, help="of this call")
    run.add_argument("--device", default="cuda:0")
    run.add_argument("--only", nargs="*", default=[], metavar="PART", help="these parts, also where they are done")
    run.add_argument("--toy", action="store_true", help="every part at a size for any device")
    run.add_argument("--scratch", type=Path, default=None, metavar="DIR", help="for models, up to 47 GB")
    run.add_argument("--comfyui", type=Path, metavar="CHECKOUT", help="in place of the one that was packed")
    run.add_argument("--comfyui-python", default=sys.executable, metavar="PYTHON")
    options = parser.parse_args(given)
    if options.mode == "run":
        options.parts = PARTS
        unknown = sorted(set(options.only) - {part.name for part in PARTS})
        if unknown:
            parser.error(f"--only {unknown[0]}: no such part; there are {', '.join(part.name for part in PARTS)}")
    return options


def main() -> None:
    """Pack, or run."""
    options = read_options()
    load_pack()
    if options.mode == "pack":
        comfyui = options.comfyui and Path(options.comfyui)
        size = gpu_pack.pack(PACKAGE, options.python, comfyui, options.has)
        print(f"{PACKAGE.name}: {size / 2**20:.1f} MiB; copy it with the repository to the machine with the card")
        return
    with stopped_by_a_signal():
        day = Day(options)
        try:
            day.run()
        except KeyboardInterrupt:
            print("stopped; the next call goes on with what is left")
            sys.exit(130)
        finally:
            day.close()


if __name__ == "__main__":
    main()
