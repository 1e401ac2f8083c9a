"""Every call is answered once, by its own rows' scores, whatever arrives and whatever fails

What cannot be answered in time is refused, and nobody takes all.
"""

import asyncio
import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalai_nb.serving.scoring.admission import Admission
from scalai_nb.serving.scoring.cost import HEAVY, Cost, Plan
from scalai_nb.serving.scoring.batching import AWAKE, Engine, Hooks
from scalai_nb.serving.scoring.calls import Call
from scalai_nb.serving.scoring import lateness
from scalai_nb.metrics import Metrics
from scalai_nb.serving.refusal import Refusal
from scalai_nb.serving.scoring.validation import Rows

BAD = 666.0  # a number that the stand-in cannot bear
FAST, SLOW = Cost(1e-5, 1e-7), Cost(1.0, 1e-3)


class Doubles:
    "Stands in for a scorer: twice the first number"

    name, version = "doubles", "1"

    def __init__(self, seconds=0.0):
        self.seconds, self.batches, self.threads = seconds, [], set()

    def score(self, numbers, others=()):
        self.batches.append(len(numbers))
        self.threads.add(threading.get_ident())
        if self.seconds:
            time.sleep(self.seconds * len(numbers))
        if BAD in numbers:
            raise ValueError("not this one")
        return 2 * numbers[:, 0]


class Asked:
    "Calls and how they ended"

    def __init__(self, engine):
        self.engine, self.ends, self.calls = engine, [], []

    def __call__(self, values, **fields):
        "Ask for the scores of `values`"
        i, rows = len(self.calls), Rows(np.array([[v] for v in values], np.float32))
        self.ends.append([])
        call = Call(
            self.engine.scorer,
            rows,
            str(i),
            lambda scores: self.ends[i].append(scores.tolist()),
            lambda e: self.ends[i].append(e.status),
            **fields,
        )
        self.calls.append(call)
        self.engine.add(call)
        return call

    async def done(self):
        async with asyncio.timeout(30):
            while self.engine.busy:
                await asyncio.sleep(0)


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def engine(scorer=None, admission=None, **options):
    return Engine(
        scorer or Doubles(), asyncio.get_running_loop(), admission or Admission(10.0), **options
    )


pytestmark = pytest.mark.usefixtures("quiet")


def doubled(values):
    return [2.0 * v for v in values]


# ---- laws

values = st.lists(st.sampled_from([1.0, 2.0, 3.0, BAD]), min_size=1, max_size=9)
arrivals = st.lists(
    st.tuples(values, st.sampled_from(["", "gone", "late"]), st.booleans()), max_size=25
)


@settings(deadline=None, max_examples=80)
@given(arrivals, st.integers(1, 8), st.booleans())
def test_every_call_ends_once_and_as_it_should(arriving, most, heavy):
    async def work():
        logged = []

        def on_batch(scorer, calls, numbers, others, scores):
            assert sum(len(c.rows) for c in calls) == len(numbers) == len(scores)
            logged.extend(calls)

        e = engine(
            hooks=Hooks(on_batch),
            most=most,
            cost=Cost(*(SLOW if heavy else FAST).__dict__.values()),
        )
        asked = Asked(e)
        for numbers, fate, pause in arriving:
            call = asked(numbers, deadline=0.0 if fate == "late" else float("inf"))
            call.gone = fate == "gone"
            if pause:
                await asyncio.sleep(0)
        await asked.done()
        for (numbers, fate, _), call, ends in zip(arriving, asked.calls, asked.ends, strict=True):
            expected = {
                "gone": [],
                "late": [504],
                "": [500] if BAD in numbers else [doubled(numbers)],
            }[fate]
            # one who left, or whose time ran out, may have been answered before the engine saw it
            assert ends == expected
            assert logged.count(call) == (ends == [doubled(numbers)])
        a = e.admission
        assert (a.calls, a.rows, a.bytes, a.work, a.held, a.full) == (0, 0, 0, 0.0, {}, False)
        assert all(n <= max(most, 1) for n in e.scorer.batches)

    run(work())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_batches_partition_the_rows(sizes):
    async def work():
        e = engine(most=16)
        asked = Asked(e)
        for i, n in enumerate(sizes):
            asked([float(i)] * n)
        await asked.done()
        assert asked.ends == [[doubled([float(i)] * n)] for i, n in enumerate(sizes)]
        assert sum(e.scorer.batches) == sum(sizes) and max(e.scorer.batches) <= 16

    run(work())


@given(st.lists(st.tuples(st.integers(1, 10**5), st.floats(1e-6, 10)), max_size=50))
def test_a_plan_is_never_without_rows(batches):
    plan = Plan(Cost(), latency=0.1, most=256)
    for rows, seconds in batches:
        plan.learn(max(1, rows // 3), rows, seconds)
        assert 1 <= plan.rows <= 256 and plan.row > 0 and plan.cost.batch > 0


# ---- batches


def test_what_arrives_in_one_turn_is_one_batch():
    async def work():
        e = engine()
        asked = Asked(e)
        for i in range(50):
            asked([float(i)])
        await asked.done()
        assert e.scorer.batches == [50]

    run(work())


def test_what_queued_while_a_batch_ran_is_the_next():
    async def work():
        e = engine(Doubles(0.02), cost=Cost(*SLOW.__dict__.values()), admission=Admission(1e6))
        asked = Asked(e)
        asked([1.0])
        while not e.scorer.batches:
            await asyncio.sleep(0)  # it runs
        for i in range(7):
            asked([float(i)])
        await asked.done()
        assert e.scorer.batches == [1, 7]

    run(work())


def test_the_loop_is_free_while_a_heavy_model_scores():
    async def work():
        e = engine(Doubles(0.05), cost=Cost(*SLOW.__dict__.values()))
        asked, turns = Asked(e), 0
        asked([1.0])
        while e.busy:
            turns += 1
            await asyncio.sleep(0)
        assert (
            turns > 10
            and e.scorer.threads.isdisjoint({threading.get_ident()})
            and asked.ends == [[[2.0]]]
        )

    run(work())


def test_measurement_decides_where_to_score_and_is_not_torn():
    plan = Plan(Cost(HEAVY, 1e-7), latency=0.1, most=256)
    assert plan.heavy
    for _ in range(100):
        plan.learn(1, 1, 0.8 * HEAVY)
    assert plan.heavy  # not clearly cheaper
    for _ in range(100):
        plan.learn(1, 1, 0.3 * HEAVY)
    assert not plan.heavy
    for _ in range(100):
        plan.learn(1, 1, 0.8 * HEAVY)
    assert not plan.heavy
    for _ in range(100):
        plan.learn(1, 1, 1.2 * HEAVY)
    assert plan.heavy


def test_a_model_that_becomes_heavy_goes_to_the_thread():
    async def work():
        e = engine(Doubles(0.005), cost=Cost(*FAST.__dict__.values()))
        asked = Asked(e)
        for _ in range(200):
            asked([1.0])
            await asked.done()
            if len(e.scorer.threads) > 1:
                break
        assert e.plan.heavy and len(e.scorer.threads) > 1

    run(work())


def test_a_huge_call_holds_nobody_up():
    async def work():
        e = engine(most=64)
        asked = Asked(e)
        asked([1.0] * 64 * 100)
        for _ in range(5):
            await asyncio.sleep(0)
        asked([2.0])
        order = []
        while not all(asked.ends):
            order += [i for i, end in enumerate(asked.ends) if end and i not in order]
            await asyncio.sleep(0)
        assert order == [1] and len(e.scorer.batches) < 110 and asked.ends[0] == [[2.0] * 6400]

    run(work())


def test_huge_calls_take_turns():
    async def work():
        e = engine(most=10)
        asked = Asked(e)
        for _ in range(3):
            asked([1.0] * 100)
        ended = []
        while e.busy:
            ended += [len(e.scorer.batches) for end in asked.ends[len(ended) :] if end]
            await asyncio.sleep(0)
        assert min(ended) >= 28  # not one after the other: the first would be done after 10

    run(work())


# ---- failures


def test_an_answer_that_cannot_be_written_is_that_calls_alone():
    async def work():
        e = engine()
        asked = Asked(e)

        def broken(scores):
            raise RuntimeError("no")

        asked([1.0])
        asked([2.0]).answer = broken
        asked([3.0]).fail = broken
        asked([BAD]).fail = broken
        await asked.done()
        assert asked.ends == [[[2.0]], [500], [[6.0]], []] and e.admission.calls == 0

    run(work())


def test_a_log_that_fails_costs_no_answer():
    async def work():
        def on_batch(*batch):
            raise OSError("disk")

        asked = Asked(engine(hooks=Hooks(on_batch)))
        asked([1.0])
        await asked.done()
        assert asked.ends == [[[2.0]]]

    run(work())


def test_one_bad_row_among_many_calls_is_counted_once(caplog, monkeypatch):
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)

    async def work():
        metrics = Metrics()
        e = engine(metrics=metrics)
        asked = Asked(e)
        for v in (1.0, BAD, 3.0):
            asked([v])
        await asked.done()
        assert asked.ends == [[[2.0]], [500], [[6.0]]]
        assert metrics.counters["scalai_errors_total", "doubles", "score"] == 1
        (said,) = caplog.records
        assert "failed on the call" in said.getMessage() and said.exc_info

    run(work())


def test_metrics_of_batches_and_of_what_was_shed():
    async def work():
        metrics = Metrics()
        e = engine(metrics=metrics)
        asked = Asked(e)
        asked([1.0, 2.0])
        asked([1.0], deadline=0.0)
        asked([1.0]).gone = True
        await asked.done()
        assert (
            metrics.histograms["scalai_batch_rows", "doubles", "1"][-1] == 2
            and metrics.gauges["scalai_queue_rows",] == 0
        )
        assert [metrics.counters["scalai_shed_total", r] for r in ("deadline", "gone")] == [1, 1]

    run(work())


# ---- admission


def refused(admission, client):
    try:
        admission.check(client)
    except Refusal as e:
        return e.status, e.retry
    return None


def test_overload_is_refused_and_what_is_accepted_is_in_time():
    "Offered far more than a model of 2 ms a row can do: a short queue, quick refusals, never idle"

    async def work():
        admission, metrics = Admission(0.2), Metrics()
        e = engine(Doubles(0.002), admission, cost=Cost(1e-6, 0.002), metrics=metrics)
        asked, status, most = Asked(e), [], 0.0
        start = time.perf_counter()
        while time.perf_counter() - start < 1.5:
            for _ in range(5):
                status.append(refused(admission, "c"))
                if status[-1] is None:
                    asked([1.0])
            most = max(most, admission.work)
            await asyncio.sleep(0.001)
        await asked.done()
        accepted = status.count(None)
        assert all(asked.ends) and {s for s in status if s} == {(503, 1.0)}
        assert accepted < len(status) / 2 and most <= 0.2  # seconds of work that ever waited
        assert sum(e.scorer.batches) == accepted and admission.calls == 0 and not admission.full

    run(work())


@pytest.mark.parametrize("times", [0.1, 1.0, 10.0])
def test_the_clock_says_how_long_the_queue_may_be(monkeypatch, times):
    "Work that takes a tenth of its estimate, or ten times as long: the queue is as long in seconds"
    clock, loop = [100.0], SimpleNamespace(call_soon=lambda *_: None)
    monkeypatch.setattr(lateness, "perf_counter", lambda: clock[0])
    queue = lateness.Lateness(latency=0.1)
    for _ in range(3):
        queue.add(0.001, loop)
    for _ in range(int(5 / times / 0.001)):  # five seconds in which somebody always waits
        clock[0] += 0.001 * times
        queue.over(0.001, more=True)
        queue.add(0.001, loop)
    waiting = 3
    while not queue.full:
        queue.add(0.001, loop)
        waiting += 1
    assert waiting * 0.001 * times == pytest.approx(queue.budget, abs=0.002 + 0.001 * times)


def test_a_pause_is_no_pace(monkeypatch):
    "Nobody waited for an hour: that says nothing of how fast work is done"
    clock, loop = [100.0], SimpleNamespace(call_soon=lambda *_: None)
    monkeypatch.setattr(lateness, "perf_counter", lambda: clock[0])
    queue = lateness.Lateness(latency=0.1)
    for _ in range(10):
        queue.add(0.001, loop)
        clock[0] += 3600
        queue.over(0.001, more=False)
    assert queue.pace == 1.0 and queue.work == 0.0


def test_a_turn_of_the_loop_takes_no_more_than_it_can_answer():
    "Where the model costs nothing, the time that the loop has been reading counts"

    async def work():
        admission = Admission(0.1)
        e = engine(admission=admission, cost=Cost(1e-6, 1e-8))
        asked, start = Asked(e), time.perf_counter()
        while not admission.full:
            asked([1.0])
        assert time.perf_counter() - start < 5 and refused(admission, "c") == (503, 1.0)
        await asked.done()
        assert not admission.full and refused(admission, "c") is None and all(asked.ends)

    run(work())


def _work(seconds: float) -> None:
    "Take processor time"
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_long_turns_of_the_loop_let_fewer_in_and_short_ones_more():
    async def work():
        admission = Admission(0.1)
        asked, whole = Asked(engine(admission=admission, cost=Cost(1e-6, 1e-8))), admission.budget

        async def turn(busy):
            while not admission.full:
                asked([1.0])
            # what the estimate knows nothing of
            asyncio.get_running_loop().call_soon(_work, busy)
            await asked.done()
            await asyncio.sleep(0)

        for _ in range(4):
            await turn(busy=0.06)
        assert admission.budget < whole / 2
        for _ in range(60):  # no overload any more
            asked([1.0])
            await asked.done()
        assert admission.budget == whole

    run(work())


def test_a_lone_call_enters_however_dear_it_is():
    async def work():
        admission = Admission(0.1)
        e = engine(admission=admission, cost=Cost(10.0, 1.0))
        assert refused(admission, "c") is None
        asked = Asked(e)
        asked([1.0])
        assert admission.full and refused(admission, "c")
        await asked.done()
        assert not admission.full and refused(admission, "c") is None

    run(work())


def test_memory_bounds_the_queue():
    async def work():
        admission = Admission(1e9, most=4 * 100)  # a hundred numbers
        asked = Asked(engine(admission=admission))
        asked([1.0] * 1000)  # alone it enters
        with pytest.raises(Refusal, match="memory") as e:
            asked([1.0])
        assert e.value.status == 503 and e.value.retry
        await asked.done()
        asked([1.0])
        await asked.done()
        assert asked.ends == [[[2.0] * 1000], [], [[2.0]]]

    run(work())


def test_the_greedy_one_of_two_is_told_so():
    async def work():
        admission, metrics = Admission(1.0, metrics := Metrics()), metrics
        asked, told = Asked(engine(admission=admission, cost=Cost(0.05, 1e-3))), []
        refused(admission, "modest")
        while not (told and told[-1]):
            told.append(refused(admission, "greedy"))
            if not told[-1]:
                asked([1.0], client="greedy")
        assert (
            told[-1] == (429, 1.0) and refused(admission, "modest") is None and not admission.full
        )
        assert metrics.counters["scalai_shed_total", "share"] == 1
        await asked.done()

    run(work())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=200))
def test_a_client_that_asks_little_is_never_refused_for_the_greed_of_others(others, order):
    "Greedy clients come in any order; one with nothing queued enters when the queue is not full"
    admission, later = Admission(1.0), []
    loop = SimpleNamespace(call_soon=lambda f, *args: later.append((f, args)))
    admission.check("modest")
    for i in order:
        greedy = f"greedy {i % others}"
        if not refused(admission, greedy):
            admission.enter(SimpleNamespace(client=greedy, cost=0.05, size=1, bytes=4), loop)
        while later:
            (f, args), later[:] = later[0], later[1:]
            f(*args)
    held = admission.held
    assert (
        not admission.full or len(held) > 1
    )  # never one alone, as the modest one was here a moment ago
    assert all(h <= admission.budget / 2 + 0.051 for h in held.values())
    assert refused(admission, "modest") is None or admission.work > admission.budget


def test_no_work_when_idle():
    async def work():
        loop = asyncio.get_running_loop()
        asked = Asked(engine())
        asked([1.0])
        await asked.done()
        await asyncio.sleep(2 * AWAKE)
        await asyncio.sleep(0)
        assert not loop._ready and all(timer.cancelled() for timer in loop._scheduled)

    asyncio.run(work())
