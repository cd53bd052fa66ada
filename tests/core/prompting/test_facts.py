"""The words of a prompt that must stay."""

from __future__ import annotations

import pytest
from piying.core.prompting.answers import find_edit_problem
from piying.core.prompting.facts import Fact, contradicted_facts, edit_result, find_facts, missing_facts


def found(prompt, **options):
    return {(fact.kind, fact.value) for fact in find_facts(prompt, **options)}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red ball moves left on a blue background", {("colour", "red"), ("colour", "blue"), ("direction", "left")}),
        ("一只红色的球向左移动，背景是蓝色", {("colour", "red"), ("colour", "blue"), ("direction", "left")}),
        ("two cats and 3 dogs", {("count", "2"), ("count", "3")}),
        ("三只黑猫，一对白马", {("count", "3"), ("count", "2"), ("colour", "black"), ("colour", "white")}),
        ('a sign reads "OPEN 24h"', {("quoted", "OPEN 24h")}),
        ("牌子写着“欢迎光临”，墙上是《清明上河图》", {("quoted", "欢迎光临"), ("quoted", "清明上河图")}),
        ("a man's hat and 'Hello' on it", {("quoted", "Hello")}),
        ("New York in 1930, 85mm", {("name", "New York"), ("number", "1930"), ("number", "85mm")}),
        ("the tower of London, then Big Ben", {("name", "London"), ("name", "Big Ben")}),
        ("A Chinese lantern", {("name", "Chinese")}),
        ("一个叫小明的男孩，开着Tesla", {("name", "小明"), ("name", "Tesla")}),
        ("slow zoom in, then pan right", {("camera", "zoom in"), ("camera", "pan")}),
        ("镜头推近，然后航拍", {("camera", "zoom in"), ("camera", "aerial")}),
        ("static camera, close-up", {("camera", "static camera"), ("camera", "close-up")}),
        ("一只狐狸", set()),
        ("a fox runs in snow", set()),
    ],
)
def test_what_is_found(prompt, expected):
    assert found(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    ["黄河边的白天", "红绿灯", "三角形", "他明白了", "A Fox Runs In Snow Today", "Mr fox", "I run", "one fox", "青年"],
)
def test_what_only_looks_like_a_fact(prompt):
    assert found(prompt) == set()


def test_a_picture_has_no_motion():
    assert found("a red ball moves left, pan right, close-up", moving=False) == {
        ("colour", "red"),
        ("camera", "close-up"),
    }


def test_further_words_are_the_users():
    assert found("a fox", keep="soft light, 水墨；film") == {
        ("kept", "soft light"),
        ("kept", "水墨"),
        ("kept", "film"),
    }


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("a red ball", "A crimson ball."),
        ("a red ball", "一只红球。"),
        ("红色的球", "A scarlet ball."),
        ("two cats", "A pair of cats."),
        ("two cats", "两只猫。"),
        ("3只狗", "Three dogs."),
        ("12 cups", "A dozen cups."),
        ("slow zoom in", "镜头缓缓推近。"),
        ("镜头推近", "The camera is pushing in."),
        ("moves up", "It rises."),
        ('reads "OPEN"', 'The sign says "OPEN".'),
        ("New York", "Streets of new york."),
        ("in 1930", "The year is 1930."),
    ],
)
def test_facts_said_in_other_words(prompt, answer):
    assert missing_facts(find_facts(prompt), answer, translated=False) == []


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("a red ball", "A blue ball rolls, tired."),
        ("two cats", "A cat."),
        ("in 1930", "In 19301."),
        ('reads "OPEN"', "The sign says open."),
        ("moves left", "It moves right."),
        ("pan right", "A company of panthers."),
        ("in New York", "In York."),
    ],
)
def test_facts_that_are_gone(prompt, answer):
    assert missing_facts(find_facts(prompt), answer, translated=False)


def test_names_have_other_letters_in_a_translation():
    name = Fact("name", "New York", "New York")
    assert missing_facts([name], "纽约的街道", translated=True) == []
    assert missing_facts([name], "纽约的街道", translated=False) == [name]


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("replace the red car with a blue bus", {("colour", "blue")}),
        ("turn the black cat into two white dogs", {("count", "2"), ("colour", "white")}),
        ("remove the three red lanterns, keep the gray wall", {("colour", "gray")}),
        ("把红色的汽车换成蓝色的巴士", {("colour", "blue")}),
        ("去掉三只黑猫，白墙不变", {("colour", "white")}),
        ("a red car", {("colour", "red")}),
    ],
)
def test_what_an_edit_takes_away_need_not_be_answered(prompt, left):
    assert found(edit_result(prompt)) == left


@pytest.mark.parametrize(
    "answer",
    [
        "A car, replaced by a bus.",
        "The masked area shows a bus.",
        "把汽车换成巴士。",
        "As in the reference image, a bus.",
        "A street where we can remove objects.",
        "画面中的汽车已被去掉。",
    ],
)
def test_answers_that_tell_of_an_edit(answer):
    assert find_edit_problem(answer, "") == "It described the change, not what the finished video shows."
    assert find_edit_problem("A blue bus rolls past a gray wall; a dancer waves in changing light.", "") is None


@pytest.mark.parametrize(
    ("prompt", "answer", "wrong"),
    [
        ("a red car in rain", "A red car drives by. Then a blue car stops in the rain.", set()),
        ("a red car in rain", "A blue car drives through red rain.", {"red"}),
        ("a red car in rain", "A car drives by, red as fire.", set()),
        ("two cats on a wall", "Five cats sit on a wall, two of them asleep.", {"two"}),
        ("five cats on a wall", "The cats sit on a wall. Two cats yawn.", set()),
        ("five cats on a wall", "Five cats on a wall; one cat yawns.", set()),
        ("红色的汽车在雨中", "一辆蓝色的汽车驶过雨中，红色的灯亮着。", {"红"}),
        ("红色的汽车在雨中", "红色的汽车驶过，远处有一辆蓝色的汽车。", set()),
        ("两只小猫", "三只小猫趴着，两盏灯亮着。", {"两只"}),
        ("两只小猫", "两只小猫趴着，其中一只打哈欠。", set()),
        ("a ball moves right", "A ball moves to the right. It is slowly moving towards the left.", {"moves right"}),
        ("a ball moves right", "A ball moves right, and a light on its left side glows.", set()),
        ("a ball moves right", "A ball moves from left to right.", set()),
        ("a ball moves right", "A ball moves right; the camera pans left.", set()),
        ("a ball moves left, then moves right", "A ball moves left, then moves right.", set()),
        ("一只球向右移动", "一只球朝右移动，又向左移动。", {"向右"}),
        ("一只球向右移动", "一只球向右移动，小猫向左看。", set()),
    ],
)
def test_another_colour_or_a_larger_count_of_the_same_thing_contradicts_and_the_opposite_way(prompt, answer, wrong):
    assert {fact.text for fact in contradicted_facts(find_facts(prompt), prompt, answer)} == wrong
