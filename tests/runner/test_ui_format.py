"""From what the browser saves to what runs.

The folder `pairs` holds graphs that ComfyUI's frontend saved, what it exported for them, and the
definitions of their nodes. tests/browser/test_export.py makes the exports anew. The folder `pack_pairs` holds
such with nodes of other packs, exported by frontend 1.27.10 with KJNodes, rgthree-comfy, VideoHelperSuite and
cg-use-everywhere (`set_get_chain` by 1.58.1, which drops what a muted node gives).
"""

from __future__ import annotations

import copy
import itertools
import json
import random
from pathlib import Path

import pytest
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.runner.definitions import object_info
from piying.runner.errors import WorkflowError
from piying.runner.session import CLASSES, TITLES
from piying.runner.ui_edit import set_widgets, with_values
from piying.runner.ui_format import dynamic_prompt, is_ui_format, to_api

PACK_PAIRS = sorted((Path(__file__).parent / "pack_pairs").glob("*.json"))
PAIRS = {path.stem: path for path in sorted((Path(__file__).parent / "pairs").glob("*.json"))}


def pair(name):
    return json.loads(PAIRS[name].read_text(encoding="utf-8"))


@pytest.fixture
def info(tmp_path):
    set_host(HeadlessHost(input=tmp_path, output=tmp_path, temp=tmp_path))
    yield object_info(CLASSES, TITLES)
    set_host(None)


def by_class(api):
    return {node["class_type"]: (node_id, node["inputs"]) for node_id, node in api.items()}


def find(workflow, class_type):
    return next(node for node in workflow["nodes"] if node["type"] == class_type)


def what_runs(api):
    return {node_id: (node["class_type"], node["inputs"]) for node_id, node in api.items()}


@pytest.mark.parametrize("name", sorted(set(PAIRS) - {"dynamic_prompts"}))
def test_equals_what_the_browser_exports(name):
    made = pair(name)
    assert what_runs(to_api(made["ui"], made["object_info"])) == what_runs(made["api"])


@pytest.mark.parametrize("path", PACK_PAIRS, ids=lambda path: path.stem)
def test_equals_what_the_browser_exports_with_other_packs(path):
    made = json.loads(path.read_text(encoding="utf-8"))
    assert what_runs(to_api(made["ui"], made["object_info"])) == what_runs(made["api"])


def without_packs(made, *prefixes):
    return {name: each for name, each in made["object_info"].items() if not name.startswith(prefixes)}


def test_broadcasts_need_no_pack():
    for path in PACK_PAIRS:
        if path.stem.startswith("everywhere"):
            made = json.loads(path.read_text(encoding="utf-8"))
            names = ("Anything Everywhere", "Prompts Everywhere", "Seed Everywhere")
            left = {key: node for key, node in made["api"].items() if not node["class_type"].startswith(names)}
            seeds = {key: node["inputs"]["seed"] for key, node in made["api"].items() if key not in left
                     and node["class_type"] == "Seed Everywhere"}  # fmt: skip
            for node in left.values():
                for name, value in node["inputs"].items():
                    if isinstance(value, list) and value[0] in seeds:
                        node["inputs"][name] = seeds[value[0]]
            assert what_runs(to_api(made["ui"], without_packs(made, *names))) == what_runs(left), path.stem


def test_a_pattern_that_would_take_for_ever_is_refused():
    made = json.loads((Path(__file__).parent / "pack_pairs/everywhere_regex.json").read_text(encoding="utf-8"))
    node = next(node for node in made["ui"]["nodes"] if node["properties"].get("ue_properties", {}).get("title_regex"))
    for pattern in ("(a+)+$", "(a*)*b", "a" * 1000, "a*a*a*a*b"):
        node["properties"]["ue_properties"]["title_regex"] = pattern
        with pytest.raises(WorkflowError, match="is too complex"):
            to_api(made["ui"], made["object_info"])
    node["properties"]["ue_properties"]["title_regex"] = "("
    assert to_api(made["ui"], made["object_info"]), "what is no pattern restricts nothing"


def test_a_widget_in_a_group_node_can_be_set():
    made = json.loads((Path(__file__).parent / "pack_pairs/group_node.json").read_text(encoding="utf-8"))
    workflow = with_values(made["ui"], made["object_info"], [("2:0", "scale_by", 0.75)])
    assert workflow is not None
    assert to_api(workflow, made["object_info"])["2:0"]["inputs"]["scale_by"] == 0.75
    assert next(node for node in workflow["nodes"] if node["id"] == 2)["widgets_values"] == ["area", 0.75]


SOCKET = {"name": "image", "type": "IMAGE"}
NESTED_INFO = {
    "Source": {"input": {"required": {"value": ["INT", {}]}}, "output": ["IMAGE"]},
    "Filter": {"input": {"required": {"image": ["IMAGE", {}], "k": ["INT", {}]}}, "output": ["IMAGE"]},
    "End": {"input": {"required": {"image": ["IMAGE", {}]}}, "output": [], "output_node": True},
}


def in_a_row(first, *others):
    """Return a group of nodes with one input and one output each, the first one's from outside."""
    nodes = [{"type": kind, "inputs": [{**SOCKET, "link": None}], "widgets_values": [7]} for kind in (first, *others)]
    links = [[index, 0, index + 1, 0, "IMAGE"] for index in range(len(others))]
    return {"nodes": nodes, "links": links, "external": []}


def with_groups(groups, *, outer, values):
    nodes = [
        {"id": 1, "type": "Source", "outputs": [{"name": "IMAGE", "type": "IMAGE"}], "widgets_values": [2]},
        {"id": 2, "type": outer, "inputs": [{**SOCKET, "link": 1}], "widgets_values": values},
        {"id": 3, "type": "End", "inputs": [{**SOCKET, "link": 2}]},
    ]
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]
    return {"nodes": nodes, "links": links, "extra": {"groupNodes": groups}}


@pytest.mark.parametrize("order", [["In", "Out"], ["Out", "In"]])
@pytest.mark.parametrize("separator", [">", "/"])
def test_a_group_node_inside_a_group_node_keeps_its_links_and_values(order, separator):
    groups = {"In": in_a_row("Filter"), "Out": in_a_row(f"workflow{separator}In", "Filter")}
    workflow = with_groups({name: groups[name] for name in order}, outer="workflow>Out", values=[50, 70])
    api = to_api(workflow, NESTED_INFO)
    assert {key: node["inputs"] for key, node in api.items()} == {
        "1": {"value": 2},
        "2:0:0": {"k": 50, "image": ["1", 0]},
        "2:1": {"k": 70, "image": ["2:0:0", 0]},
        "3": {"image": ["2:1", 0]},
    }


def test_group_nodes_inside_themselves_or_without_end_are_refused():
    itself = {"A": in_a_row("workflow>B"), "B": in_a_row("workflow/A")}
    deep = {str(number): in_a_row(f"workflow>{number + 1}") for number in range(3000)}
    for groups in (itself, deep):
        with pytest.raises(WorkflowError, match="is inside itself, or nested more than 100 deep"):
            to_api(with_groups(groups, outer="workflow>A", values=[]), NESTED_INFO)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"nodes": "x"}, "should be a list"),
        ({"nodes": [{"id": 1}]}, "has no type"),
        ({"nodes": [{"type": "A"}], "links": [[0, 0, 9, 0]]}, "a node that it does not have"),
        ({"nodes": [{"type": "A"}], "links": [[0, 0]]}, "has a link that is none"),
        ({"nodes": [{"type": "A"}], "links": 1.5}, "should be a list"),
        ({"nodes": [{"type": "A"}], "external": 1.5}, "should be a list"),
        ({"nodes": [{"type": "A"}], "links": [[0, "x", 0, 0]]}, "the slot x"),
        (7, "should be an object"),
    ],
)
def test_malformed_group_nodes_are_refused(group, words):
    workflow = {"nodes": [{"id": 1, "type": "workflow>G"}], "links": [], "extra": {"groupNodes": {"G": group}}}
    with pytest.raises(WorkflowError, match=words):
        to_api(workflow, {"A": {"input": {"required": {}}, "output": []}})


def test_a_getter_without_its_setter_is_named(caplog):
    made = json.loads((Path(__file__).parent / "pack_pairs/set_get_chain.json").read_text(encoding="utf-8"))
    to_api(made["ui"], made["object_info"])
    assert caplog.messages == ["9: no node sets 'nobody', so what it feeds goes without."]


def test_of_a_dynamic_prompt_one_option_remains():
    made = pair("dynamic_prompts")
    ours, theirs = to_api(made["ui"], made["object_info"]), copy.deepcopy(made["api"])
    node_id = by_class(ours)["PairMake"][0]
    possible = {
        f"a {colour} {age} cat \non {{grass}} http:" if kind == "cat" else f"a {colour} fox \non {{grass}} http:"
        for colour, age, kind in itertools.product(("red", "blue"), ("old", "young"), ("fox", "cat"))
    }
    chosen = [api[node_id]["inputs"].pop("text").replace("  ", " ") for api in (ours, theirs)]
    assert set(chosen) <= possible
    assert what_runs(ours) == what_runs(theirs)
    again = to_api(made["ui"], made["object_info"])
    assert again[node_id]["inputs"]["text"].replace("  ", " ") == chosen[0], "the choice is the same each time"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a // b\nc", "a \nc"),
        ("a /* b\nc */ d", "a  d"),
        ("a /* b", "a /* b"),
        ("/* a // b */ c // d */", " c "),
        ("{a}", "a"),
        ("{a", "a"),
        ("a}", "a}"),
        ("{{a}|{a}}", "a"),
        (r"\{a\|b\}", "{a|b}"),
        ("", ""),
    ],
)
def test_comments_and_braces(text, expected):
    assert dynamic_prompt(text, random.Random(0)) == expected


def test_the_shipped_workflow(t2v, info):
    assert is_ui_format(t2v)
    nodes = by_class(to_api(t2v, info))
    assert "MarkdownNote" not in nodes
    expand, inputs = nodes["PiyingExpandPrompt"]
    assert inputs["seed"] == 1
    sampler, inputs = nodes["PiyingVACESample"]
    assert inputs["prompt"] == [expand, 0]
    assert inputs["model"] == [nodes["PiyingLoadWanVACE"][0], 0]
    numbers = {name: inputs[name] for name in ("width", "height", "num_frames", "steps", "cfg", "shift", "seed")}
    expected = {"width": 96, "height": 64, "num_frames": 17, "steps": 20, "cfg": 3.0, "shift": 16.0, "seed": 2025}
    assert numbers == expected
    assert nodes["CreateVideo"][1] == {"images": [sampler, 0], "fps": 16}


def test_muted_nodes_go_and_so_do_their_links(t2v, info):
    find(t2v, "PiyingExpandPrompt")["mode"] = 2
    nodes = by_class(to_api(t2v, info))
    assert "PiyingExpandPrompt" not in nodes
    assert nodes["PiyingVACESample"][1]["prompt"] == "", "the sampler's own widget speaks again"


def test_circles_of_reroutes_are_refused():
    made = pair("reroute_nodes")
    links = made["ui"]["links"]
    first, second = (node["id"] for node in made["ui"]["nodes"] if node["type"] == "Reroute")
    into_first = next(link for link in links if link[3] == first)
    into_first[1] = second
    with pytest.raises(WorkflowError, match="image: the link goes in a circle"):
        to_api(made["ui"], made["object_info"])


def test_whole_numbers_keep_their_digits():
    made = pair("plain")
    find(made["ui"], "PairMake")["widgets_values"][1] = 2**64 - 1
    assert by_class(to_api(made["ui"], made["object_info"]))["PairMake"][1]["seed"] == 2**64 - 1


def test_values_kept_by_name():
    made = pair("plain")
    node = find(made["ui"], "PairMake")
    node["widgets_values"] = {"seed": 5, "mode": "c", "videopreview": {"hidden": False}}
    inputs = by_class(to_api(made["ui"], made["object_info"]))["PairMake"][1]
    assert (inputs["seed"], inputs["mode"], inputs["size"]) == (5, "c", 64)


def test_older_files_without_the_after_run_widget(t2v, info):
    find(t2v, "PiyingVACESample")["widgets_values"].remove("fixed")
    assert by_class(to_api(t2v, info))["PiyingVACESample"][1]["seed"] == 2025


def test_unknown_nodes_are_named_with_their_pack(t2v, info):
    find(t2v, "CreateVideo").update(type="VHS_VideoCombine", properties={"cnr_id": "comfyui-videohelpersuite"})
    with pytest.raises(WorkflowError, match="'VHS_VideoCombine'.*'comfyui-videohelpersuite'"):
        to_api(t2v, info)
    find(t2v, "VHS_VideoCombine")["mode"] = 2
    assert "VHS_VideoCombine" not in by_class(to_api(t2v, info)), "a muted node needs no definition"


def test_setting_a_widget_reaches_the_saved_form(t2v, info):
    before = copy.deepcopy(t2v)
    sampler = str(find(t2v, "PiyingVACESample")["id"])
    set_widgets(t2v, info, [(sampler, "steps", 7), (sampler, "prompt", "a fox")])
    inputs = by_class(to_api(t2v, info))["PiyingVACESample"][1]
    assert (inputs["steps"], inputs["prompt"], inputs["seed"]) == (7, "a fox", 2025)
    assert len(t2v["links"]) == len(before["links"]) - 1, "the wire that fed the prompt is cut"


@pytest.mark.parametrize(
    ("name", "node_id", "assignment", "possible"),
    [
        ("subgraph", "PairMake", ("seed", 9), True),
        ("subgraph_two_instances", "PairMake", ("seed", 9), True),
        ("subgraph_two_instances", "PairMake", ("size", 128), False),
        ("subgraph_nested", "PairMake", ("seed", 9), True),
        ("subgraph_linked_widget", "PairMake", ("size", 128), False),
        ("proxy_widgets", "PairMake", ("seed", 9), False),
        ("primitive", "PairMake", ("seed", 9), True),
        ("no_values", "PairMake", ("mode", "b"), True),
        ("dynamic_combo", "PairDynamic", ("how.steps", 9), True),
        ("reroute_nodes", "PairOut", ("nowhere", 9), False),
    ],
)
def test_the_saved_form_says_what_runs_or_is_left_out(name, node_id, assignment, possible):
    made = pair(name)
    api = to_api(made["ui"], made["object_info"])
    node_id = next(key for key, node in api.items() if node["class_type"] == node_id)
    changed = with_values(made["ui"], made["object_info"], [(node_id, *assignment)])
    assert (changed is not None) == possible
    if changed is not None:
        api[node_id]["inputs"][assignment[0]] = assignment[1]
        assert to_api(changed, made["object_info"]) == api


JUNK = (None, True, -1, 0, 1.5, 2**70, float("nan"), "", "x", "-10", [], {}, [[]], [1, 2, 3, 4, 5, "*"], {"id": 1})


def mutated(workflow, chooser):
    """A copy with a few values replaced, removed, doubled or moved."""
    changed = copy.deepcopy(workflow)
    for _ in range(chooser.randint(1, 4)):
        places = [(holder, key) for holder in containers(changed) for key in keys(holder)]
        if places:
            mutate(*chooser.choice(places), chooser)
    return changed


def containers(value):
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def keys(holder):
    return list(holder) if isinstance(holder, dict) else range(len(holder))


def mutate(holder, key, chooser):
    kind = chooser.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 2:
        holder[key] = copy.deepcopy(holder[chooser.choice(list(keys(holder)))])
    else:
        holder[key] = copy.deepcopy(chooser.choice(JUNK))


@pytest.mark.parametrize("seed", range(4))
def test_malformed_files_are_refused_in_words(seed):
    chooser = random.Random(seed)
    cases = [pair(name) for name in PAIRS]
    for _ in range(150):
        made = chooser.choice(cases)
        workflow = mutated(made["ui"], chooser)
        try:
            api = to_api(workflow, made["object_info"])
        except WorkflowError as error:
            assert str(error)
        else:
            assert all(set(node) == {"inputs", "class_type", "_meta"} for node in api.values())
            with_values(workflow, made["object_info"], [(key, "seed", 3) for key in api])


def one_subgraph(nodes):
    return {"id": "sub", "nodes": nodes, "links": [], "inputs": [], "outputs": []}


def chain(length):
    reroutes = [
        {"id": n, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": n}]} for n in range(1, length)
    ]
    takers = [
        {"id": n, "type": "PairCount", "inputs": [{"name": "image", "type": "IMAGE", "link": n}]}
        for n in range(length, 2 * length)
    ]
    links = [[n, n - 1, 0, n, 0, "*"] for n in range(1, length)]
    links += [[n, length - 1, 0, n, 0, "*"] for n in range(length, 2 * length)]
    return {"nodes": [{"id": 0, "type": "PairMake"}, *reroutes, *takers], "links": links}


def test_absurd_graphs_are_quickly_refused_or_done(within):
    info = {name: found for each in PAIRS for name, found in pair(each)["object_info"].items()}
    instances = [{"id": n, "type": "sub"} for n in range(100)]
    holds_itself = {"nodes": instances, "links": [], "definitions": {"subgraphs": [one_subgraph(instances[:1])]}}
    doubling = {
        "nodes": [{"id": 1, "type": "s0"}],
        "links": [],
        "definitions": {
            "subgraphs": [
                {**one_subgraph([{"id": i, "type": f"s{n + 1}"} for i in (1, 2)]), "id": f"s{n}"} for n in range(90)
            ]
        },
    }
    many = {"nodes": [{"id": n, "type": "PairMake"} for n in range(100_000)], "links": []}
    with within(5):
        for workflow, words in (
            (holds_itself, "holds itself|unfold"),
            (doubling, "unfold to more"),
            (many, "100000 nodes"),
        ):
            with pytest.raises(WorkflowError, match=words):
                to_api(workflow, info)
        api = to_api(chain(4000), info)
        assert api["7999"]["inputs"]["image"] == ["0", 0]
        with pytest.raises(WorkflowError, match="nested more than"):
            dynamic_prompt("{" * 20_000, random.Random(0))
