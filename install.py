"""Install what Piying needs into the Python that runs this file: `python install.py`.

A torch that is already there stays as it is, and so does whatever provides cv2. On a Python that belongs to
the operating system the packages go into a `.venv` beside this file. `--models ID` fetches a model after that;
docs/models.md has the ids and the rest.
"""
# ruff: noqa: E402 - the version is looked at before imports that an old Python may not have

import sys

MINIMUM_PYTHON = (3, 10)
if sys.version_info < MINIMUM_PYTHON:
    # Up to here every Python 3.6 and later follows; the rest is compiled but never run on an old one.
    sys.stderr.write(
        f"Piying needs Python 3.10 or newer, and {sys.executable} is {sys.version.split()[0]}. "
        "Run install.py with a newer one, for example: python3.12 install.py\n"
    )
    sys.exit(2)

import argparse
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sysconfig
import tempfile
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OWN_VENV = ROOT / ".venv"
PACK = "piying_files"
WINDOWS = os.name == "nt"

TORCH = "torch==2.13.0"
# PyPI's torch for Windows is a CPU build. The local version makes pip fail rather than fall back to it.
TORCH_CUDA = "2.13.0+cu130"
TORCH_CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
OLDEST_TORCH = "2.6"  # below this transformers and diffusers turn torch off

# Compiled against each other: a new version of one breaks the rest, and ComfyUI's other nodes with it.
PINNED = ("torch", "torchvision", "torchaudio", "xformers", "numpy")
OPENCV = "opencv-python>=4.8"
# Four distributions that overwrite each other's cv2 folder: one of them is enough, two of them break.
OPENCV_KINDS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)

TAIL_LINES = 15
HEARTBEAT_SECONDS = 60

# What pip's last lines say, and what helps. The first that matches is used; a lost connection also ends in
# "no matching distribution", so it comes before that.
ADVICE = (
    (
        r"Temporary failure|[Cc]onnection|timed out|getaddrinfo|Network is unreachable|dns error",
        "The package index cannot be reached. Check the network, or name a mirror with: "
        "pip config set global.index-url URL.",
    ),
    (
        r"No matching distribution found for torch\b",
        "There is no such torch for this Python and system. Install one that fits, 2.6 or newer, "
        "as https://pytorch.org/get-started says; it will be kept.",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies|No solution found",
        "The packages conflict with the pinned versions ({kept}). "
        "Use a new virtual environment, or change those versions yourself.",
    ),
    (
        r"No space left|not enough space",
        "The disk is full: make room, or let TMPDIR name a folder on a larger disk.",
    ),
    (
        r"Permission denied|Access is denied|Read-only file system|WinError (5|32)\b",
        "This Python's folder cannot be written to. Close ComfyUI if it is running, or use a virtual environment.",
    ),
)
PLAIN_ADVICE = "Put right what is named above."


class InstallError(Exception):
    """Something the user has to put right; the message says what and how."""


@dataclass(frozen=True)
class Plan:
    """What has to be installed: torch by itself, since it may come from its own index, then the rest."""

    torch: list[str]
    packages: list[str]

    def __bool__(self) -> bool:
        return bool(self.torch or self.packages)

    def __str__(self) -> str:
        return ", ".join([*self.torch[:1], *self.packages])


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    process = load_pack("core.process")
    # Behind `| head`, what was begun goes on; an output that is full is an error at the end.
    with process.standard_outputs() as (out, err):
        try:
            code = carry_out_options(parse_options(argv))
        except SystemExit as end:  # from argparse, which has printed its help, or what is wrong
            code = process.exit_code(end)
        except InstallError as error:
            say(str(error))
            code = 1
        except KeyboardInterrupt:
            say("Stopped. Run the same command again to go on.")
            code = 130
        return int(process.checked_output(code, out, err))


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; argparse exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="install.py",
        description="Install what Piying needs. An installed torch and OpenCV are never replaced.",
    )
    parser.add_argument("--dev", action="store_true", help="also install what the tests need")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add_model_options(parser)
    options = parser.parse_args(argv)
    if options.print_files and not options.models:
        parser.error("--print-files needs --models ID")
    return options


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are about models."""
    group = parser.add_argument_group(
        "models",
        "Large files, fetched only when asked for. Without the network: "
        "--print-files elsewhere, then --verify LIST here.",
    )
    group.add_argument("--models", nargs="+", action="extend", default=[], metavar="ID", help="fetch these models")
    task = group.add_mutually_exclusive_group()
    task.add_argument("--list", action="store_true", help="show the models that can be fetched, and stop")
    task.add_argument(
        "--verify",
        nargs="?",
        const="",
        metavar="LIST",
        help="compare the models that are here with what they have to be, and stop",
    )
    task.add_argument("--print-files", action="store_true", help="print address, path, bytes and sha256, and stop")
    group.add_argument(
        "--source", choices=("auto", "huggingface", "modelscope"), default="auto", help="where to fetch from"
    )
    group.add_argument("--to", metavar="DIR", help=f"the models folder; {default_models_folder()} if not given")
    group.add_argument("--no-dependencies", action="store_true", help="fetch models and install nothing")


def say(line: str) -> None:
    """Print at once: behind a pipe the lines would otherwise wait for the end."""
    print(line, flush=True)


def carry_out_options(options: argparse.Namespace) -> int:
    """Do what the command line says: dependencies first, then models."""
    task = model_task(options)
    if task:
        return run_models(options, task)
    # Before minutes of installing rather than after them.
    code = run_models(options, "check") if options.models else 0
    if code == 0 and not options.no_dependencies:
        code = install(options)
    if code == 0 and options.models and not is_fetched_elsewhere(options):
        code = run_models(options, "plan" if options.dry_run else "fetch")
    return code


def install(options: argparse.Namespace) -> int:
    """Install what is missing, into this Python or into a `.venv` of our own."""
    plan = make_plan(options.dev, installed_version)
    if not plan:
        say(f"Nothing to install: {sys.executable} has everything. {describe_kept()}")
        return 0
    if externally_managed():
        return install_into_own_venv(options)
    say(describe_kept())
    if options.dry_run:
        say(f"Would install into {sys.executable}: {plan}")
        return 0
    carry_out(plan)
    return 0


# What is here, and what is missing


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """Return the numbers a version starts with: "2.13.0+cpu" gives (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def read_requirements(path: Path) -> list[str]:
    """Return the lines of a requirements file without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def is_met(requirement: str, version_of: Callable[[str], str | None]) -> bool:
    """Tell whether "name" or "name>=version" is installed."""
    name, _, lowest = (part.strip() for part in requirement.partition(">="))
    version = version_of(name)
    return version is not None and release(version) >= release(lowest)


def make_plan(dev: bool, version_of: Callable[[str], str | None]) -> Plan:
    """Compare what is needed with what is installed."""
    needed = read_requirements(ROOT / "requirements.txt")
    if dev:
        needed += read_requirements(ROOT / "requirements-dev.txt")
    packages = [line for line in needed if not is_met(line, version_of)]
    if not has_opencv(version_of):
        packages.append(OPENCV)
    return Plan([] if version_of("torch") else torch_request(), packages)


def has_opencv(version_of: Callable[[str], str | None]) -> bool:
    """Tell whether any distribution provides cv2, one of another packager included."""
    if any(version_of(kind) for kind in OPENCV_KINDS):
        return True
    spec = importlib.util.find_spec("cv2") if version_of is installed_version else None
    # A folder left behind by an uninstall is found too, but without an origin.
    return spec is not None and spec.origin is not None


def torch_request() -> list[str]:
    """Return what to ask pip for where there is no torch at all."""
    if needs_cuda_index():
        return [f"torch=={TORCH_CUDA}", "--extra-index-url", TORCH_CUDA_INDEX]
    return [TORCH]


def needs_cuda_index() -> bool:
    """Tell whether PyPI's torch would leave an NVIDIA card unused."""
    return WINDOWS and shutil.which("nvidia-smi") is not None


def kept_versions() -> dict[str, str]:
    """Return what must not move: the torch family, cv2, and numpy where it is new enough for us."""
    importlib.invalidate_caches()
    requirements = read_requirements(ROOT / "requirements.txt")
    too_old = {line.partition(">=")[0] for line in requirements if not is_met(line, installed_version)}
    return installed_versions(name for name in (*PINNED, *OPENCV_KINDS) if name not in too_old)


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return those of the distributions that are installed, with their versions."""
    found = ((name, installed_version(name)) for name in names)
    return {name: version for name, version in found if version}


def listed(versions: dict[str, str]) -> str:
    """Write versions as "torch 2.13.0, numpy 2.1.0"."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def describe_kept() -> str:
    """Say which packages are left as they are, and warn of a torch too old to be of use."""
    kept = kept_versions()
    if "torch" not in kept:
        return "There is no torch here yet."
    text = f"Kept as they are: {listed(kept)}."
    if release(kept["torch"]) < release(OLDEST_TORCH):
        text += f" This torch is too old: {OLDEST_TORCH} or newer is needed, and replacing it is left to you."
    return text


# Installing


def carry_out(plan: Plan) -> None:
    """Install the plan and make sure that nothing else has changed."""
    started = time.monotonic()
    before = kept_versions()
    command = install_command()
    if plan.torch:
        announce_torch(plan.torch)
        install_packages(command, plan.torch)
    if plan.packages:
        say(f"Installing {', '.join(plan.packages)}")
        install_packages(command, plan.packages)
    check_kept(before)
    check_installed(plan)
    say(f"Done in {time.monotonic() - started:.0f} s. {describe_change(plan, before)}")


def announce_torch(request: list[str]) -> None:
    """Say which torch was chosen, and how to choose another."""
    source = f" from {TORCH_CUDA_INDEX}, for the NVIDIA card here" if TORCH_CUDA_INDEX in request else ""
    say(f"Installing {request[0]}{source}. It can be several GB and take a while.")
    say("For another build (ROCm, XPU, cu126 for older cards), stop, install that torch, and run this again.")


def install_command() -> list[str]:
    """Return the start of a command that installs into this Python, getting pip where it is missing."""
    if find_pip() or run([*python_command(), "-m", "ensurepip"])[0] == 0:
        return [*python_command(), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", sys.executable]
    raise InstallError(
        f"{sys.executable} has no pip, and neither ensurepip nor uv is there to help. "
        "Install pip (https://pip.pypa.io/en/stable/installation) and run the same command again."
    )


def find_pip() -> bool:
    """Tell whether this Python has pip."""
    return importlib.util.find_spec("pip") is not None


def python_command() -> list[str]:
    """Return this Python, blind to the user's own site-packages if it was started so, as ComfyUI's is."""
    return [sys.executable, "-s"] if sys.flags.no_user_site else [sys.executable]


def install_packages(command: list[str], request: list[str]) -> None:
    """Install what is asked for under constraints that hold every kept package where it is."""
    kept = kept_versions()
    with tempfile.TemporaryDirectory(prefix="piying-") as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()), "utf-8")
        code, output = run([*command, *request, "--constraint", str(constraints)])
    if code != 0:
        raise InstallError(explain_failure(request, output, kept))


def run(command: list[str]) -> tuple[int, str]:
    """Run a command in silence, but for a sign of life each minute; return its exit code and output."""
    environment = {**os.environ, "PYTHONUTF8": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        encoding="utf-8",
        errors="replace",
    )
    started = time.monotonic()
    while True:
        try:
            output, _ = process.communicate(timeout=HEARTBEAT_SECONDS)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            say(f"  still working, {(time.monotonic() - started) / 60:.0f} min")


def explain_failure(request: list[str], output: str, kept: dict[str, str]) -> str:
    """Put pip's last words and the next step into one message."""
    tail = last_lines(output)
    advice = next((text for pattern, text in ADVICE if re.search(pattern, tail)), PLAIN_ADVICE)
    return (
        f"{tail}\nCould not install {', '.join(request)}. "
        f"{advice.format(kept=listed(kept))} Then run the same command again."
    )


def last_lines(output: str) -> str:
    """Return the end of a command's output, indented."""
    return "\n".join("  " + line for line in output.rstrip().splitlines()[-TAIL_LINES:])


# Looking again


def check_kept(before: dict[str, str]) -> None:
    """Fail if a package that was to be kept is another one now."""
    importlib.invalidate_caches()
    changed = {name: version for name, version in before.items() if installed_version(name) != version}
    if changed:
        wanted = [f"{name}=={version}" for name, version in changed.items()]
        raise InstallError(
            f"These were to be kept, and are not what they were: {listed(changed)}. "
            f"Bring them back with: {quoted([sys.executable, '-m', 'pip', 'install', *wanted])}"
        )


def check_installed(plan: Plan) -> None:
    """Fail if something that was installed cannot be found."""
    # pip may have just made the user's site-packages, a folder that Python only looks for when it starts.
    if site.ENABLE_USER_SITE:
        site.addsitedir(site.getusersitepackages())
    names = ["torch"] if plan.torch else []
    lost = [line for line in [*names, *plan.packages] if not is_met(line, installed_version)]
    if lost:
        raise InstallError(
            f"pip reported success, but {sys.executable} does not see {', '.join(lost)}. "
            "Look whether PIP_TARGET, PIP_PREFIX or pip's configuration send packages elsewhere."
        )


def describe_change(plan: Plan, before: dict[str, str]) -> str:
    """Say what is new, and that torch is not."""
    names = [re.split(r"[=>]=", line)[0] for line in [*plan.torch[:1], *plan.packages]]
    text = f"New: {listed(installed_versions(names))}."
    if "torch" in before:
        text += f" torch is still {before['torch']}."
    return text


# A Python that belongs to the operating system


def externally_managed() -> bool:
    """Tell whether the operating system owns this Python's packages (PEP 668)."""
    allowed = os.environ.get("PIP_BREAK_SYSTEM_PACKAGES", "").lower() in ("1", "true", "yes", "on")
    if allowed or sys.prefix != sys.base_prefix:
        return False
    standard_library = sysconfig.get_path("stdlib", sysconfig.get_default_scheme())
    return Path(standard_library, "EXTERNALLY-MANAGED").is_file()


def install_into_own_venv(options: argparse.Namespace) -> int:
    """Run this file again with the Python of our `.venv`, and say how to go on with it."""
    say(f"{sys.executable} belongs to the operating system; the packages go into {OWN_VENV}")
    python = OWN_VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
    if not python.exists():
        if options.dry_run:
            say(f"Would make it and install: {make_plan(options.dev, lambda _: None)}")
            return 0
        make_own_venv()
    flags = [flag for flag, given in (("--dev", options.dev), ("--dry-run", options.dry_run)) if given]
    if options.models and not options.dry_run:
        flags += ["--source", options.source, "--to", str(models_folder(options)), "--models", *options.models]
    code = subprocess.run([python, ROOT / "install.py", *flags], check=False).returncode
    if code == 0:
        say_how_to_go_on(python, options.dev)
    return code


def make_own_venv() -> None:
    """Make the virtual environment, or say what this system lacks for it."""
    existed = OWN_VENV.exists()
    code, output = run([sys.executable, "-m", "venv", str(OWN_VENV)])
    if code == 0:
        return
    if not existed:
        # Without ensurepip venv stops half way, and the half would pass for a whole the next time.
        shutil.rmtree(OWN_VENV, ignore_errors=True)
    raise InstallError(
        f"{last_lines(output)}\nCould not make {OWN_VENV}. On Debian and Ubuntu run "
        f"`sudo apt install python{sys.version_info.major}.{sys.version_info.minor}-venv` and try again; "
        "elsewhere run this file with the Python of a virtual environment."
    )


def say_how_to_go_on(python: Path, dev: bool) -> None:
    """Print the commands to use from now on, as this system's shell takes them."""
    here = Path.cwd() == ROOT
    program = str(python.relative_to(ROOT))
    say("Go on with that Python:")
    if not here:
        say(f"  cd {quoted([str(ROOT)])}")
    say(f"  {program} -m runner workflows/t2v.json")
    if dev:
        say(f"  {program} -m pytest -n auto")
    if ROOT.parent.name == "custom_nodes":
        say("ComfyUI does not see this .venv: to use the nodes there, run install.py with ComfyUI's Python.")


def quoted(arguments: list[str]) -> str:
    """Write a command as one line for this system's shell."""
    return subprocess.list2cmdline(arguments) if WINDOWS else shlex.join(arguments)


# Models


def model_task(options: argparse.Namespace) -> str | None:
    """Return what is to be done with models and nothing else, if that is asked for."""
    if options.list:
        return "list"
    if options.verify is not None:
        return "verify"
    return "files" if options.print_files else None


def is_fetched_elsewhere(options: argparse.Namespace) -> bool:
    """Tell whether the Python of our `.venv` was given the models to fetch."""
    if options.dry_run or options.no_dependencies or not externally_managed():
        return False
    return bool(make_plan(options.dev, installed_version))


def run_models(options: argparse.Namespace, task: str) -> int:
    """Have the pack's own code do something with models; it needs the standard library alone, as this file does."""
    command = load_pack("core.download.cli")
    carried = Path(options.verify) if options.verify else None
    folder = models_folder(options)
    if not options.to and ROOT.parent.name == "custom_nodes":
        folders = load_pack("core.host.model_folders")
        folder = folders.model_folders(folder, folders.extra_folders(ROOT.parents[1] / folders.EXTRA_PATHS))
    request = command.Request(task, options.models, folder, options.source, carried)

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    # SIGTERM stops a download as Ctrl-C does.
    with load_pack("core.process").Interruption().caught():
        code: int = command.run(request, write, sys.stdout.isatty())
        return code


def models_folder(options: argparse.Namespace) -> Path:
    """Return the folder that models go to."""
    return Path(options.to).expanduser().resolve() if options.to else default_models_folder()


def default_models_folder() -> Path:
    """Return ComfyUI's models folder where this is one of its custom nodes, else the one beside this file."""
    return ROOT.parents[1] / "models" if ROOT.parent.name == "custom_nodes" else ROOT / "models"


def load_pack(name: str) -> types.ModuleType:
    """Load a module of the pack by its place, without running the pack's `__init__`, which is ComfyUI's."""
    if PACK not in sys.modules:
        package = types.ModuleType(PACK)
        package.__path__ = [str(ROOT)]
        sys.modules[PACK] = package
    return importlib.import_module(f"{PACK}.{name}")


if __name__ == "__main__":
    sys.exit(main())
