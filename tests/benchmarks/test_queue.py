"""The simulated queue: days worked out by hand, and that nothing is lost in one with everything in it."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
from piying.serve import placement

GB = 2**30


@pytest.fixture(scope="module")
def queue(module):
    return module("simulated_queue")


def estimate(seconds, loading=0.0, fits=True):
    return placement.Estimate(fits, seconds, loading, 0, 0)


@pytest.fixture
def day(queue):
    """Build a scenario of two small cards and a big one; short jobs have one of two models, large ones a third."""

    def build(jobs=400, **options):
        cards = (queue.Cards("small", 2, 8 * GB, 100.0), queue.Cards("big", 1, 80 * GB, 700.0))
        on_small, on_big = estimate(60, loading=30), estimate(20, loading=30)
        types = (
            queue.JobType("short", {"image": "a"}, {"small": on_small, "big": on_big}, 0.5),
            queue.JobType("other", {"image": "b"}, {"small": on_small, "big": on_big}, 0.4),
            queue.JobType(
                "large", {"video": "c"}, {"small": estimate(0, fits=False), "big": estimate(600, loading=60)}, 0.1
            ),
        )
        return queue.Scenario(cards, types, jobs, **{"failures": 0.0, "tick": 5.0, **options})

    return build


def figures(queue, scenario, policy, seed=0):
    return queue.Simulation(scenario, policy, seed).run()


def policies(queue):
    return {"by plan": queue.by_plan(placement), "first come": queue.first_come, "blind": queue.blind}


def test_arrivals_follow_the_daily_curve(queue, day):
    jobs = queue.arrivals(day(jobs=20_000, swing=0.8), random.Random(0))
    assert 19_000 < len(jobs) < 21_000
    busiest, quietest = (sum(abs(job.submitted / 3600 - hour) < 1 for job in jobs) for hour in (15, 3))
    assert 6 < busiest / quietest < 12  # 1.8 / 0.2
    assert 0.45 < sum(job.type.name == "short" for job in jobs) / len(jobs) < 0.55


def test_a_job_alone_takes_its_loading_and_its_seconds(queue, day):
    found = figures(queue, day(jobs=3), queue.first_come)
    assert found.done_in_all == sum(map(len, found.turnarounds.values())) > 0
    longest = 600 + 60 + 5
    assert all(20 <= seconds <= longest for many in found.turnarounds.values() for seconds in many)


@pytest.mark.parametrize("seed", range(3))
def test_every_policy_does_every_job_of_a_day_with_failures_and_wrong_estimates(queue, day, seed):
    scenario = day(bias=0.4, spread=0.2, longer=0.2, failures=6.0)
    came = len(queue.Simulation(scenario, queue.first_come, seed)._jobs)
    for name, policy in policies(queue).items():
        found = figures(queue, scenario, policy, seed)
        assert found.done_in_all == came, name
        assert found.tries["failed"] > 0
        assert (found.tries["out of memory"] > 0) == (name == "blind")


def test_the_same_day_again_has_the_same_figures(queue, day):
    scenario = day(bias=0.4, spread=0.2, failures=6.0)
    first, again = (figures(queue, scenario, queue.by_plan(placement)).to_json(scenario) for _ in range(2))
    assert first == again


def test_placement_by_plan_keeps_models_loaded_and_short_jobs_short(queue, day):
    scenario = day(jobs=1600)
    plan, first = (figures(queue, scenario, policies(queue)[name]) for name in ("by plan", "first come"))
    assert plan.loading < 0.8 * first.loading
    short, large = ([statistics.fmean(one.turnarounds[name]) for one in (plan, first)] for name in ("short", "large"))
    assert short[0] < 0.5 * short[1]
    assert large[0] < 1.01 * large[1]


def test_one_kind_of_card_and_of_job_leaves_nothing_to_place(queue):
    cards = (queue.Cards("only", 4, 24 * GB, 450.0),)
    types = (queue.JobType("one", {"video": "a"}, {"only": estimate(300)}, 1.0),)
    scenario = queue.Scenario(cards, types, 1000, failures=0.0)
    by_policy = [figures(queue, scenario, policy).to_json(scenario) for policy in policies(queue).values()]
    assert by_policy[0]["mean wait"] == pytest.approx(by_policy[1]["mean wait"], rel=0.01)


def test_the_command_prints_its_tables(module, capsys, monkeypatch, tmp_path):
    command = module("queue_simulate")
    monkeypatch.setattr(command, "CARDS", tuple((row[0], 2, *row[2:]) for row in command.CARDS))
    target = tmp_path / "figures.json"
    monkeypatch.setattr(
        "sys.argv",
        ["queue_simulate.py", "--scenarios", "quiet", "--seeds", "1", "--jobs", "60", "--json", str(target)],
    )
    command.main()
    printed = capsys.readouterr().out
    assert "**quiet**" in printed and "| mean wait |" in printed
    assert target.is_file()


def test_the_documentation_has_the_planner_s_estimates(module):
    """After a change to the plan: run `python benchmarks/queue_simulate.py --estimates`."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "placement.md").read_text(encoding="utf-8")
    assert module("queue_simulate").estimates_table() in text
