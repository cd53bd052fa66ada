"""The queue: none lost, none done twice, whatever is killed when."""

from __future__ import annotations

import json
import random

import pytest
from piying.core.errors import PiyingError
from piying.serve.job import OVER, Asked, Outcome
from piying.serve.job_runner import Forecast, Machine, unfit
from piying.serve.journal import Journal, Selection
from piying.serve.limits import LimitReached, Limits
from piying.serve.placement import Estimate
from piying.serve.pool import Ended, Happened, WorkerReady
from piying.serve.queue import MOST_ATTEMPTS, ConflictError, Queue

from .conftest import FITS, Server, new_job


def submit(server, *numbers):
    jobs = [new_job(number) for number in numbers]
    server.queue.submit(jobs, server.now)
    return [job.id for job, _ in jobs]


def test_jobs_run_in_order_on_free_workers_and_leave_results(server):
    ids = submit(server, 1, 2, 3)
    server.steps()
    assert {task.job_id for task in server.pool.running.values()} == set(ids[:2])
    for worker in list(server.pool.running):
        server.pool.finish(worker)
    server.steps()
    assert [task.job_id for task in server.pool.running.values()] == ids[2:]
    assert [server.queue.find(one).state for one in ids] == ["done", "done", "running"]
    assert server.queue.find(ids[0]).files[0]["name"] == "a.txt"
    assert sorted(job.id for job in server.over) == sorted(ids[:2])


def test_a_killed_server_goes_on_where_it_was(server):
    ids = submit(server, 1, 2, 3, 4)
    server.steps()
    first, second = server.pool.running
    done, ran = (server.pool.running[worker].job_id for worker in (first, second))
    server.pool.finish(first)  # its results are there, and the server is killed before it knows
    server.pool.write(server.pool.running[second])  # this one was in the middle of it
    after = server.restarted()
    assert {one: after.queue.find(one).state for one in ids} == {
        **dict.fromkeys(ids, "queued"),
        done: "done",
    }
    assert after.queue.find(ran).attempt == 1 and after.queue.find(ran).lost == 0
    for _ in range(10):
        after.steps()
        for worker in list(after.pool.running):
            after.pool.finish(worker)
    assert [after.queue.find(one).state for one in ids] == ["done"] * 4
    assert [json.loads((after.folder / "results" / one / "a.txt").read_text()) for one in ids] == [1, 2, 3, 4]
    assert sorted(job.id for job in [*server.over, *after.over]) == sorted(ids)
    after.queue.close()


@pytest.mark.parametrize("seed", range(2))
def test_two_hundred_jobs_survive_random_kills_of_workers_and_servers(tmp_path, seed):
    chance, server = random.Random(seed), Server(tmp_path, workers=5, retries=1000)
    ids = submit(server, *range(200))
    over = []
    for _ in range(3000):
        server.steps(1)
        for worker in list(server.pool.running):
            fate = chance.random()
            if fate < 0.3:
                server.pool.finish(worker)
            elif fate < 0.4:
                server.pool.write(server.pool.running[worker])
                server.pool.lose(worker)
            elif fate < 0.45:  # killed between its results and its report
                server.pool.finish(worker)
                server.pool.reports.pop()
                server.pool.lose(worker)
        if chance.random() < 0.02:
            over += server.over
            server = server.restarted()
        if not any(server.queue.counts().values()):
            break
    over += server.over
    assert {server.queue.find(one).state for one in ids} == {"done"}
    assert sorted(job.id for job in over) == sorted(ids), "each job is over once"
    for number, one in enumerate(ids):
        files = sorted(path.name for path in (tmp_path / "results" / one).iterdir())
        assert files == ["a.txt", "result.json"]
        assert (tmp_path / "results" / one / "a.txt").read_text() == str(number)
    server.queue.close()


def test_a_job_that_kills_workers_twice_fails_with_a_sentence(server):
    (one,) = submit(server, 1)
    for _ in range(2):
        server.steps()
        (worker,) = server.pool.running
        server.pool.lose(worker)
    server.steps()
    job = server.queue.find(one)
    assert (job.state, job.lost, job.attempt) == ("failed", 2, 2)
    assert job.problem["message"].startswith("2 workers were lost while they ran this job")
    assert [event["event"] for _, event in server.events.after(one, 0)[0]].count("message") == 1
    assert not server.pool.running


def test_a_worker_that_was_taken_for_lost_changes_nothing(server):
    """It comes back with results when another one runs the job: those that were first stay."""
    (one,) = submit(server, 1)
    server.steps()
    (worker,) = server.pool.running
    task = server.pool.running[worker]
    late = server.pool.write(task)
    server.pool.lose(worker)
    server.steps()
    (other,) = server.pool.running
    server.pool.finish(other)
    server.steps()
    before = server.queue.find(one)
    assert server.store.publish(one, late) == before.files
    server.pool.reports += [
        Happened(worker, one, {"event": "node", "node": "1"}),
        Ended(worker, one, 1, Outcome("failed")),
        Ended(other, one, 1, Outcome("failed")),
    ]
    server.steps()
    assert server.queue.find(one) == before and before.state == "done"


def test_cancelled_jobs_stop(server):
    ids = submit(server, 1, 2, 3)
    server.steps()
    assert server.queue.cancel(ids[2], server.now).state == "cancelled"
    running = {task.job_id: worker for worker, task in server.pool.running.items()}
    server.queue.cancel(ids[0], server.now)
    server.steps()
    assert server.pool.cancelled == [(running[ids[0]], ids[0])]
    server.now += 31
    server.steps()
    assert server.pool.killed == [running[ids[0]]], "a worker that does not stop is ended"
    assert server.queue.find(ids[0]).state == "cancelled"
    server.queue.cancel(ids[1], server.now)
    after = server.restarted()
    assert after.queue.find(ids[1]).state == "cancelled", "a job that was being cancelled is not begun again"
    assert after.queue.cancel(ids[0], after.now).state == "cancelled"
    after.queue.close()


def test_a_job_that_fits_no_machine_fails_with_the_reason_of_the_plan(server):
    job, asked = new_job(1, prompt="large")
    server.pool.forecasts[job.costs_like] = unfit("81 frames need 90 GB.")
    server.queue.submit([(job, asked)], server.now)
    server.steps()
    assert server.queue.find(job.id).problem["message"] == "81 frames need 90 GB."


def test_a_job_waits_for_the_machine_that_it_fits(tmp_path):
    server = Server(tmp_path)
    server.pool.reports[-1] = WorkerReady("first1", Machine("large card"))
    job, asked = new_job(1, partial=True)
    server.queue.submit([(job, asked)], server.now)
    sizes = {"first0": Estimate(fits=False, seconds=0, loading=0, vram=0, ram=0), "first1": FITS}
    ask = server.pool.forecast

    def forecast(worker, costs_like, asked):
        server.pool.forecasts[costs_like] = Forecast(sizes[worker], reason="too large")
        ask(worker, costs_like, asked)

    server.pool.forecast = forecast
    server.steps(4)
    assert list(server.pool.running) == ["first1"]
    server.queue.close()


def test_a_job_that_kills_workers_while_it_is_planned_is_given_up(server):
    job, asked = new_job(1, partial=True)
    server.pool.lost_by_forecast = job.costs_like
    server.queue.submit([(job, asked)], server.now)
    server.steps(6)
    assert "2 workers were lost while they planned this job" in server.queue.find(job.id).problem["message"]
    assert submit(server, 2) and not server.steps() and server.pool.running


def test_a_job_goes_to_the_worker_that_has_its_models(server):
    first, other = new_job(1), new_job(1, partial=True)
    for (job, _), name in ((first, "A"), (other, "B")):
        server.pool.forecasts[job.costs_like] = Forecast(
            Estimate(fits=True, seconds=10.0, loading=100.0, vram=0, ram=0), frozenset({name})
        )
    server.queue.submit([first], server.now)
    server.steps()
    (worker,) = server.pool.running
    server.pool.finish(worker)
    server.steps()
    for number in range(2, 6):
        (again, asked) = new_job(number)
        server.queue.submit([(again, asked)], server.now)
        server.steps()
        assert list(server.pool.running) == [worker]
        server.pool.finish(worker)
        server.steps()


def test_a_job_is_not_begun_for_ever(server):
    (one,) = submit(server, 1)
    for _ in range(MOST_ATTEMPTS):
        assert server.queue.start(one, "w", server.now) is not None
        server.queue.recover(server.now)
    assert server.queue.find(one).state == "failed"


def test_the_same_job_sent_again_is_one_job(server):
    first = new_job(1)
    server.queue.submit([first], server.now)
    assert server.queue.submit([first, new_job(2)], server.now)[0].id == first[0].id
    assert server.queue.counts()["queued"] == 2
    changed = (first[0], new_job(3)[1])
    other = type(first[0]).new(first[0].id, "local", changed[1], 0.0)
    with pytest.raises(ConflictError, match="another one"):
        server.queue.submit([(other, changed[1]), new_job(4)], server.now)
    assert server.queue.counts()["queued"] == 2, "all or none"


def test_each_owner_has_limits_of_its_own(tmp_path):
    queue = Queue(Journal(tmp_path / "jobs.sqlite"), results=lambda _: None, limits=Limits(3, 1, 5))
    queue.submit([new_job(1, "a"), new_job(2, "a"), new_job(3, "b")], 0.0)
    queue.submit([new_job(4, "b")], 0.0)
    assert [job.owner for job in queue.waiting()] == ["a", "b"], "one of each may run"
    queue.start(queue.waiting()[0].id, "w", 0.0)
    assert [job.owner for job in queue.waiting()] == ["b"]
    with pytest.raises(LimitReached, match="1 jobs wait and 3 more were sent; at most 3 may wait"):
        queue.submit([new_job(number, "a") for number in (5, 6, 7)], 0.0)
    queue.close()


def test_jobs_are_listed_page_by_page(server):
    ids = submit(server, *range(5))
    server.queue.cancel(ids[1], server.now)
    assert [job.id for job in server.queue.listed(Selection("local", limit=2))] == ids[:2:-1]
    assert [job.id for job in server.queue.listed(Selection("local", before=ids[2]))] == ids[1::-1]
    assert [job.id for job in server.queue.listed(Selection("local", states=OVER))] == [ids[1]]
    assert server.queue.listed(Selection("somebody")) == []
    assert server.queue.forget(0) == [ids[1]] and server.queue.find(ids[1]) is None


def test_two_servers_cannot_have_one_journal(tmp_path, monkeypatch):
    monkeypatch.setattr("piying.serve.journal.LOCK_SECONDS", 0.05)
    journal = Journal(tmp_path / "jobs.sqlite")
    with pytest.raises(PiyingError, match="another server uses it"):
        Journal(tmp_path / "jobs.sqlite")
    journal.close()
    (tmp_path / "jobs.sqlite").write_text("no journal " * 1000)
    with pytest.raises(PiyingError, match="file is not a database"):
        Journal(tmp_path / "jobs.sqlite")


def test_a_text_that_no_file_can_hold_is_kept(server):
    """Half of a surrogate pair is what JavaScript leaves of a cut text."""
    job, asked = new_job(1, prompt="a\ud83d")
    server.queue.submit([(job, asked)], server.now)
    assert server.queue.asked(job.id) == asked


def test_a_workflow_keeps_the_order_of_its_nodes():
    """Outputs run and are counted in it; to tell jobs apart it does not matter."""
    nodes = {name: {"class_type": "SaveImage", "inputs": {"b": 1, "a": 2}} for name in ("10", "9")}
    asked, other = Asked(nodes), Asked(dict(reversed(nodes.items())))
    read = Asked.from_json(asked.to_json())
    assert json.dumps(read.workflow) == json.dumps(nodes)
    assert asked.checksum() == other.checksum() != Asked({"9": nodes["9"]}).checksum()
