"""The container files, read as Docker would read them: a build takes minutes and an engine, so no image is built."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from piying.serve.cli import parser

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
yaml = pytest.importorskip("yaml", reason="Compose files are in YAML")

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
OWN = ("queue", "worker", "models")  # services with our image
OTHERS = ("prometheus", "grafana")
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")
VARIABLE = re.compile(r"\$\{\w+:-([^}]*)\}")


class Step(NamedTuple):
    """An instruction of a Dockerfile."""

    name: str
    arguments: str


def steps_of(path: Path) -> list[Step]:
    """Return the instructions, with continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def steps():
    return steps_of(DOCKER / "Dockerfile")


@pytest.fixture(scope="module")
def final(steps):
    """The instructions of the last stage."""
    start = max(number for number, step in enumerate(steps) if step.name == "FROM")
    return steps[start + 1 :]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def said(steps: list[Step], name: str) -> str:
    """Return the arguments of the one instruction of that name."""
    (found,) = [step.arguments for step in steps if step.name == name]
    return found


def environment(steps: list[Step]) -> dict[str, str]:
    words = [word for step in steps if step.name == "ENV" for word in shlex.split(step.arguments)]
    return dict(word.split("=", 1) for word in words)


def defaults(steps: list[Step]) -> dict[str, str]:
    """Return the arguments of a build, with the values that they have where none is given."""
    return dict(step.arguments.split("=", 1) for step in steps if step.name == "ARG" and "=" in step.arguments)


def test_every_base_is_pinned_or_a_stage(steps):
    stages = set()
    for step in steps:
        if step.name == "FROM":
            base, _, stage = step.arguments.split()
            base = base.replace("${PYTHON_IMAGE}", defaults(steps)["PYTHON_IMAGE"])
            variants = {base.replace("${VARIANT}", variant) for variant in ("cpu", "cuda")}
            assert variants <= stages or PINNED.fullmatch(base), base
            stages.add(stage)
    assert stages == {"base", "torch-cpu", "torch-cuda", "piying"}


def test_both_variants_have_the_same_torch(steps):
    versions = {found for step in steps for found in re.findall(r"torch==(\S+)", step.arguments)}
    assert len(versions) == 1


def test_every_stage_that_downloads_takes_a_mirror(steps):
    """An argument of a build is seen in the stages that name it alone."""
    for number, step in enumerate(steps):
        if "pip install" in step.arguments:
            own = "TORCH_INDEX_URL" if "--index-url" in step.arguments else "PIP_INDEX_URL"
            start = max(at for at in range(number) if steps[at].name == "FROM")
            assert Step("ARG", own) in steps[start:number], step.arguments


def test_the_compose_file_passes_mirrors_on(steps, compose):
    """Without a value, so that one that nobody set leaves the Dockerfile's default."""
    arguments = compose["x-piying"]["build"]["args"]
    assert set(arguments) == set(defaults(steps))
    assert {name for name, value in arguments.items() if value is None} == set(arguments) - {"VARIANT"}


def test_rays_objects_fit_into_the_shared_memory(steps, compose):
    size = compose["x-piying"]["shm_size"]
    assert size.endswith("gb")
    assert int(environment(steps)["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"]) < int(size.removesuffix("gb")) * 2**30


def test_what_is_copied_is_there(steps):
    sources = [word for step in steps if step.name in ("COPY", "ADD") for word in step.arguments.split()[:-1]]
    assert sources
    assert not [source for source in sources if not (ROOT / source).exists()]


def test_it_runs_without_rights(final):
    user = said(final, "USER")
    account, group = user.split(":")
    assert account.isdigit() and group.isdigit() and int(account) >= 10_000
    names = [step.name for step in final]
    assert "RUN" not in names[names.index("USER") :], "root's work would be done by the account"
    (useradd,) = [step.arguments for step in final if "useradd" in step.arguments]
    assert f"--uid {account}" in useradd
    made = useradd.split("install --directory --owner=piying --group=piying")[1].split()
    assert set(json.loads(said(final, "VOLUME"))) == set(made), "new volumes get the owner of the folder"


def test_text_is_utf_8(steps):
    values = environment(steps)
    assert values["LANG"] == values["LC_ALL"] == "C.UTF-8"
    assert values["PYTHONUTF8"] == "1"


def test_signals_reach_the_process(final, services):
    """A command in a shell's form has a shell in between, which passes no signal on."""
    for name in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(said(final, name)), list)
    for name in OWN:
        assert services[name]["init"]
        assert isinstance(services[name]["entrypoint"], list)
    script = (DOCKER / "head.sh").read_text(encoding="utf-8").rstrip().splitlines()
    assert script[-1].startswith("exec ")


def test_it_says_how_it_is(final, services):
    assert "/health" in said(final, "HEALTHCHECK")
    assert json.loads(said(final, "HEALTHCHECK").split("CMD ", 1)[1])
    for name in ("worker", *OTHERS):
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_no_secret_is_in_a_layer(steps, compose):
    words = " ".join(step.arguments for step in steps if step.name in ("ENV", "ARG"))
    assert not re.search(r"token|password|secret", words, re.IGNORECASE)
    assert "docker/secrets" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    declared = compose["secrets"]
    assert {one["file"] for one in declared.values()} == {f"./secrets/{name}" for name in declared}
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            named = re.search(r"TOKEN|PASSWORD", name)
            assert not named or value.removeprefix("/run/secrets/") in service["secrets"], name


def test_images_get_no_more_than_a_run_reads():
    """Whatever lies at the root of the tree is either left out, or meant to be in the image."""
    ignored = {
        line.rstrip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    roots = {line.split("/")[0] for line in listed.stdout.splitlines()} - ignored
    assert {"core", "nodes", "runner", "serve", "workflows", "builtin_models", "install.py"} <= roots
    assert not roots & {"tests", "benchmarks", "training", ".git", ".github"}


def test_the_images_have_what_the_extra_serve_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (DOCKER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = {line for line in lines if line and not line.startswith("#")}
    assert asked == {*project["optional-dependencies"]["serve"], "opencv-python-headless>=4.8"}


def options(words: list[str]) -> dict[str, object]:
    """Return what the real command line makes of words."""
    return vars(parser().parse_args(words))


def test_the_image_starts_a_queue_in_its_volumes(final):
    command = json.loads(said(final, "CMD"))
    assert json.loads(said(final, "ENTRYPOINT")) == ["python", "-m", "runner"]
    assert command[0] == "serve"
    found = options(command[1:])
    volumes = json.loads(said(final, "VOLUME"))
    assert sorted([found["input"], found["output"], found["cache"], str(found["state"]), *found["models"]]) == sorted(
        volumes
    )
    assert str(found["port"]) == said(final, "EXPOSE")
    assert f"127.0.0.1:{found['port']}/health" in said(final, "HEALTHCHECK")


def mounts(service: dict[str, object]) -> dict[str, str]:
    """Return {path in the container: name of the volume or path on the host} of a service."""
    pairs = [VARIABLE.sub(r"\1", one).split(":") for one in service.get("volumes", ())]
    return {pair[1]: pair[0] for pair in pairs}


def test_the_queue_of_the_compose_file_starts_with_its_real_options(services, compose):
    queue = services["queue"]
    assert queue["entrypoint"] == ["/bin/sh", "docker/head.sh"]
    assert 'runner serve --ray auto "$@"' in (DOCKER / "head.sh").read_text(encoding="utf-8")
    found = options(["--ray", "auto", *queue["command"]])
    places = {found["input"], found["output"], found["cache"], str(found["state"]), *found["models"]}
    assert places == set(mounts(queue))
    assert str(found["token_file"]).removeprefix("/run/secrets/") in queue["secrets"]
    (port,) = queue["ports"]
    assert port.startswith("127.0.0.1:") and port.endswith(f":{found['port']}")
    for mounted in (mounts(one) for one in services.values()):
        assert {one for one in mounted.values() if not one.startswith(".")} <= compose["volumes"].keys()


def test_workers_have_the_same_places_as_the_queue(services):
    """A job names files by the queue's paths."""
    queue, worker = mounts(services["queue"]), mounts(services["worker"])
    assert worker.items() <= queue.items()
    assert set(queue) - set(worker) == {"/state"}
    assert services["worker"]["entrypoint"] == ["ray", "start"]
    port = re.search(r"--port=(\d+)", (DOCKER / "head.sh").read_text(encoding="utf-8"))
    assert port is not None
    assert f"--address=queue:{port[1]}" in services["worker"]["command"]
    assert f"queue:{port[1]}" in services["worker"]["healthcheck"]["test"]
    assert services["worker"]["environment"] == services["queue"]["environment"]


def test_containers_can_change_nothing_but_their_volumes(services):
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service and "network_mode" not in service, name
    for name in OTHERS:
        assert PINNED.fullmatch(services[name]["image"]), name


def test_nothing_is_published_beyond_this_machine(services):
    assert all(port.startswith("127.0.0.1:") for one in services.values() for port in one.get("ports", ()))


def test_the_cuda_file_changes_the_image_and_gives_the_worker_the_cards(services):
    changed = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text(encoding="utf-8"))["services"]
    assert set(changed) == set(OWN)
    for service in changed.values():
        assert service["image"] == f"piying:{service['build']['args']['VARIANT']}" == "piying:cuda"
    assert [name for name, one in changed.items() if "deploy" in one] == ["worker"]
    assert all(services[name]["image"] == "piying:cpu" for name in OWN)


def test_prometheus_asks_the_queue_with_its_token(services):
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": ["queue:8190"]}]
    secret = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in services["prometheus"]["secrets"]


def test_the_board_shows_metrics_that_there_are(services):
    board = json.loads((DOCKER / "grafana" / "board.json").read_text(encoding="utf-8"))
    source = yaml.safe_load((DOCKER / "grafana" / "datasources.yml").read_text(encoding="utf-8"))["datasources"][0]
    metrics = (ROOT / "serve" / "metrics.py").read_text(encoding="utf-8")
    there = set(re.findall(r'"(piying_\w+)"', metrics))
    shown = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        for target in panel["targets"]:
            shown |= set(re.findall(r"piying_\w+", target["expr"]))
    assert {re.sub(r"_(total|bucket)$", "", name) for name in shown} == there
    provider = yaml.safe_load((DOCKER / "grafana" / "dashboards.yml").read_text(encoding="utf-8"))["providers"][0]
    assert any(path.startswith(provider["options"]["path"] + "/") for path in mounts(services["grafana"]))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    ran = subprocess.run(["hadolint", str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
