"""Any file at all: it is checked, or refused with a sentence; never a crash, a hang, or memory out of proportion.

PIYING_FUZZ=100000 runs that many mutations instead of a few hundred.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from piying.core.errors import PiyingError
from piying.core.host.current import set_host
from piying.runner.errors import WorkflowError
from piying.runner.session import Session

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROUNDS = int(os.environ.get("PIYING_FUZZ", "400"))
SECONDS = 2.0  # of the processor: on a busy machine the clock on the wall says little
ODD = [
    None,
    True,
    -1,
    0,
    1,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    "../../etc/passwd",
    "-i",
    "a\0b",
    "\ud800",
    [],
    {},
    ["1", 0],
    ["99", 0],
    ["1", 99],
    ["1", -1],
    [1, 0],
    [[], {}],
    {"__value__": [1, 2]},
    {"class_type": "X"},
    "x" * 5000,
]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    session = Session(input=folder / "input", output=folder / "output", device="cpu")
    yield session
    session.close()
    set_host(None)


@pytest.fixture(scope="module")
def seeds(session):
    ui = [json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")) for name in ("t2v", "t2i")]
    api = [session.prepare(workflow).api for workflow in ui]
    return [*ui, *api, {"prompt": api[0], "client_id": "x"}, {"output": api[1], "workflow": ui[1]}]


@pytest.fixture(scope="module")
def foreign():
    """Workflows with nodes of other packs, and the definitions that they need."""
    pairs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "pack_pairs").glob("*.json"))]
    core = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "conversion").glob("*.json"))]
    info = {name: each for pair in pairs for name, each in pair["object_info"].items()}
    return [pair["ui"] for pair in pairs], core, info


def places(value, path=()):
    """Yield the path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield (*path, key)
        yield from places(child, (*path, key))


def mutate(workflow, chance):
    for _ in range(chance.randint(1, 4)):
        paths = list(places(workflow))
        if not paths:
            return workflow
        *parents, key = chance.choice(paths)
        holder = workflow
        for parent in parents:
            holder = holder[parent]
        change = chance.random()
        if change < 0.25:
            del holder[key]
        elif change < 0.75:
            holder[key] = copy.deepcopy(chance.choice(ODD))
        elif change < 0.9:
            holder[key] = copy.deepcopy(get(workflow, chance.choice(paths)))
        elif isinstance(holder, dict):
            holder[chance.choice(["1", "nodes", "links", "inputs", "class_type", "x"])] = holder.pop(key)
        else:
            holder.append(copy.deepcopy(holder[key]))
    return workflow


def get(value, path):
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def check(session, workflow):
    """Take a workflow as far as it goes without running it; what stops it must be one of ours."""
    info = definitions(session)
    return attempted(lambda: session.check(session.prepare(workflow, info=info), info=info))


@functools.cache
def definitions(session):
    """Asked for once: to look through the folders of models takes longer than all the rest."""
    return session.definitions()


def attempted(do):
    for _ in range(3):  # a machine that is busy for a moment, or what the first one loads, is not the input's time
        begun = time.process_time()
        try:
            do()
            ended = "passed"
        except (WorkflowError, PiyingError) as error:
            assert str(error).strip()
            ended = "refused"
        if time.process_time() - begun < SECONDS:
            return ended
    raise AssertionError(f"takes {time.process_time() - begun:.1f} s of the processor")


def test_mutated_workflows(session, seeds):
    chance = random.Random(2025)
    ends = [check(session, mutate(copy.deepcopy(chance.choice(seeds)), chance)) for _ in range(ROUNDS)]
    assert ends.count("refused") > ROUNDS // 5, "the mutations do damage"
    assert ends.count("passed") > ROUNDS // 20, "and not only damage"


def test_mutated_workflows_of_other_packs(session, foreign):
    workflows, _, own = foreign
    chance, info = random.Random(17), definitions(session) | own
    mutated = (mutate(copy.deepcopy(chance.choice(workflows)), chance) for _ in range(ROUNDS))
    ends = [attempted(lambda workflow=each: session.prepare(workflow, info=info)) for each in mutated]
    assert ends.count("refused") > ROUNDS // 20
    assert ends.count("passed") > ROUNDS // 20


def test_mutated_workflows_to_convert(session, foreign, tmp_path):
    _, workflows, _ = foreign
    chance, path = random.Random(10), tmp_path / "workflow.json"
    ends = []
    for _ in range(ROUNDS // 2):
        path.write_text(json.dumps(mutate(copy.deepcopy(chance.choice(workflows)), chance)), encoding="utf-8")
        ends.append(attempted(lambda: session.convert(path)))
    assert ends.count("refused") > ROUNDS // 20
    assert ends.count("passed") > ROUNDS // 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
NODES = st.dictionaries(
    st.sampled_from(["1", "2", "3", "4"]),
    st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(
                ["PreviewAny", "PrimitiveInt", "SaveImage", "PiyingVACESample", "CreateVideo"]
            ),
            "inputs": st.dictionaries(
                st.sampled_from(["value", "source", "images", "fps", "model", "width", "seed", "filename_prefix"]),
                JSON | st.tuples(st.sampled_from("12345"), st.integers(-2, 3)).map(list),
                max_size=5,
            ),
        }
    ),
    max_size=4,
)
QUICK = settings(
    max_examples=max(100, ROUNDS // 4), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(workflow=st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_any_json(session, workflow):
    check(session, workflow)


@QUICK
@given(workflow=NODES)
def test_any_graph(session, workflow):
    check(session, workflow)


@QUICK
@given(nodes=JSON, links=JSON)
def test_any_ui_form(session, nodes, links):
    check(session, {"nodes": nodes if isinstance(nodes, list) else [nodes], "links": links})


@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes(session, tmp_path, data):
    path = tmp_path / "workflow"
    path.write_bytes(data)
    with pytest.raises((WorkflowError, PiyingError)):
        session.check(session.prepare(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"1": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
        ('{"1": ' * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ('{"1": {"class_type": "PrimitiveInt", "inputs": {"value": ' + "9" * 5000 + "}}}", "not valid JSON"),
        ('{"1": {"class_type": "A"}, "1": {"class_type": "B"}}', "two entries are called '1'"),
    ],
)
def test_texts_made_to_hurt(session, tmp_path, text, words):
    path = tmp_path / "workflow.json"
    path.write_text(text)
    with pytest.raises(WorkflowError, match=words):
        session.prepare(path)


def test_a_hundred_thousand_nodes(session):
    graph = {str(index): {"class_type": "PrimitiveInt", "inputs": {"value": 1}} for index in range(100_000)}
    with pytest.raises(WorkflowError, match="at most 20000"):
        session.check(session.prepare(graph))


def test_pipes_devices_and_folders_are_not_read(session, tmp_path):
    for path in [Path(os.devnull), Path("/dev/zero"), tmp_path]:
        if path.exists():
            with pytest.raises(WorkflowError, match="is not a file"):
                session.prepare(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(WorkflowError, match="is not a file"):
            session.prepare(tmp_path / "pipe")
