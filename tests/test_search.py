"""Searches: what they find; nothing lost or done twice, on threads or where workers die"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from scalai_nb.compute.cluster import connect, start
from scalai_nb.environment import Environment, environment
from scalai_nb.errors import ParameterError, RunActive, WorkFailed
from scalai_nb.learn.linear.regression import LinearRegression, LogisticRegression
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.search import search as module
from scalai_nb.models.search.judged import OnRows
from scalai_nb.models.search.question import digest
from scalai_nb.models.search.search import search
from scalai_nb.models.search.space import Budget, Space, distributions, points, values
from scalai_nb.models.search.study import SearchPolicy, journal
from scalai_nb.tracking.outbox import spool, waiting

LINE = {"x": (-1.0, 1.0)}


class Seen:
    "Takes note of calls; not a part of what an objective is known by, as a list would be"

    def __init__(self):
        self.all = []

    def __call__(self, x):
        self.all.append(x)
        return len(self.all)


def height(params):
    return -((params["x"] - 0.5) ** 2)


@pytest.fixture
def env(tmp_path, monkeypatch):
    "An environment of its own, whose records stay in the spool"
    monkeypatch.setattr(module, "deliver", lambda env: "")
    return environment(
        "laptop", runs=str(tmp_path / "runs"), tracking=f"sqlite:///{tmp_path}/tracking.db"
    )


def look(objective, space=LINE, budget=5, env=None, **kw):
    def options(kind):
        return {f.name: kw.pop(f.name) for f in fields(kind) if f.name in kw}

    policy, rows = SearchPolicy(**{"progress": False, **options(SearchPolicy)}), options(OnRows)
    return search(
        objective,
        space,
        budget,
        env=env,
        policy=policy,
        rows=OnRows(**rows) if rows else None,
        **kw,
    )


def told(env) -> list[dict]:
    return [json.loads(p.read_text()) for p in waiting(env)]


# ---- words ----


@pytest.mark.parametrize(
    "space",
    [
        {},
        None,
        [],
        {"x": ()},
        {"x": (1,)},
        {"x": (2, 1)},
        {"x": (0, 1, "log")},
        {"x": (1, 2, "lin")},
        {"x": ("a", "b")},
        {"x": (True, False)},
        {"x": []},
        {"x": 1},
        {"x": [1]},
    ],
)
def test_a_space_that_says_nothing(space, env):
    with pytest.raises(ParameterError, match="low, high"):
        look(height, space, env=env)


@pytest.mark.parametrize(
    "budget", [0, -3, 1.5, None, "", "0 trials", "soon", "0s", "10 trials, 0s"]
)
def test_a_budget_of_nothing(budget, env):
    with pytest.raises(ParameterError, match="is not a budget; write"):
        look(height, budget=budget, env=env)


def test_other_bad_words(env):
    for says, call in {
        (
            "'mdian' is not in the pruners; known: None, halving, median. Did you mean 'median'"
        ): lambda: look(height, pruner="mdian", env=env),
        "'up' is not in the directions": lambda: look(height, direction="up", env=env),
        "'a/b' cannot name a search": lambda: look(height, name="a/b", env=env),
        "the objective is a int; pass a function": lambda: look(3, env=env),
        "an estimator is judged on rows": lambda: look(
            LogisticRegression(), {"C": (0.1, 1.0)}, env=env
        ),
    }.items():
        with pytest.raises(ParameterError, match=says):
            call()
    assert not (Path(env.runs) / "searches").exists() and not told(env)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3),
        st.one_of(
            st.tuples(st.integers(-9, 9), st.integers(10, 30)),
            st.tuples(st.floats(1e-6, 1), st.floats(2, 9), st.just("log")),
            st.lists(
                st.one_of(st.none(), st.text(max_size=2), st.tuples(st.integers())),
                min_size=2,
                max_size=4,
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_every_point_of_a_space_is_in_it(given, seed):
    import optuna

    space = Space.of(given)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name, value in values(space, study.ask(distributions(space)).params).items():
        assert (
            value in given[name]
            if isinstance(given[name], list)
            else given[name][0] <= value <= given[name][1] and type(value) is type(given[name][0])
        )
    assert Budget.of(f"{seed + 1} trials").trials == seed + 1


# ---- what is found ----


def test_one_trial_at_a_time_is_the_same_every_time_and_good(env):
    a, b = (look(height, budget=30, env=env, name=name) for name in "ab")
    assert [t.params for t in a.trials] == [t.params for t in b.trials] and a.best.value > -0.01
    assert [t.params for t in look(height, budget=30, env=env, seed=1).trials] != [
        t.params for t in a.trials
    ]
    assert look(lambda p: -height(p), budget=30, env=env, direction="minimize").best.value < 0.01


def test_a_small_space_is_tried_through_once(env):
    tried = []

    def objective(params):
        tried.append((params["k"], params["n"]))
        return params["n"]

    found = look(objective, {"k": ["a", None], "n": (1, 3)}, 50, env=env)
    assert (
        sorted(tried, key=str) == sorted(((k, n) for k in ("a", None) for n in (1, 2, 3)), key=str)
        and len(found.trials) == 6
    )
    assert points(Space.of({"n": (0, 10**9)}), 100) is None


def test_whole_numbers_are_not_tried_twice_before_all_were(env):
    found = look(lambda p: p["n"], {"n": (0, 20)}, 15, env=env)
    assert len({t.params["n"] for t in found.trials}) == 15


def test_a_metric_decides_and_all_are_kept(env):
    found = look(lambda p: {"loss": p["x"], "auc": -p["x"]}, metric="auc", env=env)
    assert (
        found.best.value
        == found.best.metrics["auc"]
        == -found.best.metrics["loss"]
        == max(t.value for t in found.trials)
    )
    with pytest.raises(
        WorkFailed, match="'acu' is not in what the objective returned; known: auc, loss"
    ):
        look(lambda p: {"loss": 1, "auc": 2}, metric="acu", env=env)


def test_a_hopeless_trial_is_ended_early(env):
    worked = []

    def objective(params, report):
        for step in range(20):
            worked.append(step)
            report(step, height(params) * (1 + 1 / (step + 1)))
        return height(params)

    for pruner in ("median", "halving"):
        worked.clear()
        found = look(objective, budget=30, pruner=pruner, env=env)
        pruned = [t for t in found.trials if t.status == "pruned"]
        assert (
            len(pruned) > 5
            and len(worked) == sum(len(t.steps) for t in found.trials) < 20 * 30
            and max(t.value for t in pruned) < found.best.value
        )
    worked.clear()
    assert {t.status for t in look(objective, budget=5, pruner=None, env=env).trials} == {
        "completed"
    } and len(worked) == 100


def test_trials_that_fail_are_failures_of_their_own(env):
    def objective(params):
        if params["x"] < 0:
            raise ZeroDivisionError("below")
        return float("nan") if params["x"] < 0.3 else params["x"]

    found = look(objective, budget=20, env=env)
    assert {t.error for t in found.trials} == {
        "ZeroDivisionError: below",
        "ValueError: the objective returned nan; it must be a finite number, or a dict of such",
        None,
    }
    assert (
        found.best.value > 0.3
        and list(found.table.status)[0] == "completed"
        and list(found.table.status)[-1] == "failed"
    )
    for bad, says in (
        (lambda p: None, "returned None"),
        (lambda p: "a", "returned 'a'"),
        (lambda p: {}, "returned {}"),
        (lambda p: float("inf"), "returned inf"),
        (lambda p: {"auc": None}, "returned {'auc': None}"),
        (lambda p: sys.exit(3), "SystemExit: 3"),
    ):
        with pytest.raises(
            WorkFailed, match=f"no trial of the search 'search' succeeded; the first: .*{says}"
        ):
            look(bad, budget=2, env=env)


def test_time_is_a_budget(env):
    def objective(params):
        time.sleep(0.1)
        return params["x"]

    assert 1 < len(look(objective, budget="1s", env=env).trials) <= 11
    assert len(look(objective, budget="3 trials, 1h", env=env, name="short").trials) == 3


def test_threads_try_at_once(env):
    barrier = threading.Barrier(4, timeout=20)

    def objective(params):
        barrier.wait()
        return params["x"]

    assert len(look(objective, budget=8, jobs=4, env=env).completed) == 8


def test_what_is_shown(env):
    found = look(
        lambda p, report: report(0, p["x"]) or p["x"] - (p["k"] == "a"),
        {"x": (1e-3, 1.0, "log"), "k": ["a", ("b",)]},
        20,
        env=env,
        pruner=None,
    )
    assert (
        "Search search: 20 trials completed, 0 pruned, 0 failed; the best is trial" in repr(found)
        and "<table" in found._repr_html_()
    )
    assert list(found.table.columns) == [
        "trial",
        "status",
        "value",
        "x",
        "k",
        "steps",
        "seconds",
        "attempts",
        "error",
    ] and list(found.table.value) == sorted(found.table.value, reverse=True)
    assert set(found.importance) == {"x", "k"} and abs(sum(found.importance.values()) - 1) < 1e-6
    axes = found.plot().axes
    assert {a.get_title() for a in axes} == {"trial by trial", "x", "k"} and {
        a.get_title(): a.get_xscale() for a in axes
    }["x"] == "log"
    assert (
        look(height, budget=1, env=env).importance == {} and look(height, budget=1, env=env).plot()
    )


def test_progress_says_what_a_trial_came_to(env, capsys):
    look(height, budget=2, env=env, progress=True)
    look(height, budget=3, env=env, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("trial 0 of 2: -")
        and "; best: -" in lines[1]
        and lines[2] == "search search: 2 trials are there already"
        and lines[3].startswith("trial 2 of 3: ")
    )


# ---- nothing twice, nothing lost ----


def test_the_same_question_is_not_asked_twice(env):
    calls = Seen()

    def objective(params):
        calls(1)
        return params["x"]

    first = look(objective, env=env)
    records = len(told(env))
    assert (
        look(objective, env=env).trials == first.trials
        and len(calls.all) == 5
        and len(told(env)) == records
    )
    assert len(look(objective, budget=7, env=env).trials) == 7 == len(calls.all)
    assert [t.number for t in look(objective, env=env).trials] == list(range(7))
    look(objective, {"x": (-2.0, 1.0)}, env=env)
    assert len(calls.all) == 12
    look(objective, env=env, resume=False)
    assert len(calls.all) == 17 and len(list(Path(env.runs).glob("searches/*/trials*.jsonl"))) == 3


def test_objectives_on_one_line_are_different_questions(env):
    a, b = (look(f, budget=2, env=env) for f in (lambda p: 1, lambda p: 2))
    assert (a.best.value, b.best.value) == (1, 2)
    c = look(
        lambda p, scale=3: scale, budget=2, env=env
    )  # a second argument with a default is no report
    assert c.best.value == 3


def test_what_an_objective_refers_to_is_part_of_the_question():
    def made(scale, table, other=None):
        def helper(x):
            return scale * x

        return lambda p: helper(p["x"]) + float(table.x.sum()) + (other or 0)

    ds = xr.Dataset({"x": ("row", np.arange(3.0))})
    assert digest(made(1, ds)) == digest(made(1, ds.copy(deep=True))) != digest(made(2, ds))
    assert digest(made(1, ds)) != digest(made(1, ds + 1)) and digest(made(1, ds)) != digest(
        made(1, ds, 1)
    )
    assert digest(LogisticRegression(C=1)) != digest(LogisticRegression(C=2)) and digest(
        height
    ) == digest(height)


def test_an_interrupted_search_goes_on_as_it_would_have(env):
    whole = look(height, budget=12, env=env, name="whole")
    folder = Path(env.runs) / "searches"
    for cut in (
        3,
        7,
    ):  # the file as a kill leaves it: the last trial has begun, the last line is cut short
        record = next(folder.glob("whole-*/trials.jsonl"))
        lines = record.read_text().splitlines(keepends=True)
        kept = next(
            i
            for i, line in enumerate(lines)
            if json.loads(line).get("user_attr", {}).get("attempt", {}).get("number") == cut
        )
        record.write_text("".join(lines[: kept + 1]) + lines[kept + 1][:30])
        again = look(height, budget=12, env=env, name="whole")
        assert [(t.params, t.value) for t in again.trials] == [
            (t.params, t.value) for t in whole.trials
        ]
        assert [t.attempts for t in again.trials] == [
            1 + (n in (3, 7) and n <= cut) for n in range(12)
        ]


KILLED = """
import os, signal
from scalai_nb.environment import environment
from scalai_nb.models.search.search import SearchPolicy, search
import scalai_nb.models.search.search as module
module.deliver = lambda env: ""
calls = []
def objective(params, report):
    calls.append(1)
    print(params["x"], flush=True)
    if len(calls) == int(os.environ["KILL"]): os.kill(os.getpid(), signal.SIGKILL)
    for step in range(3): report(step, params["x"] * step)
    return params["x"]
env = environment("laptop", runs=os.environ["RUNS"], tracking="sqlite:////dev/null/no")
found = search(objective, {"x": (0.0, 1.0)}, 12, env=env, policy=SearchPolicy(progress=False))
print([t.attempts for t in found.trials])
"""


def test_a_lock_that_a_killed_process_left_is_not_waited_for(env):
    look(height, budget=1, env=env)
    (path,) = Path(env.runs).glob("searches/*/trials.jsonl")
    Path(f"{path}.lock").touch()
    clock = time.monotonic()
    assert len(look(height, budget=2, env=env).trials) == 2
    assert time.monotonic() - clock < 20


def test_a_proposal_that_was_not_used_is_no_trial(env):
    "As a kill leaves it between Optuna's proposal and its number"
    whole = look(height, budget=6, env=env, name="whole")
    look(height, budget=3, env=env)
    (path,) = Path(env.runs).glob("searches/search-*/trials.jsonl")
    study = optuna.load_study(study_name="search", storage=journal(path))
    study.ask({"x": optuna.distributions.FloatDistribution(-1, 1)})
    study.enqueue_trial({"x": 0.25})
    again = look(height, budget=6, env=env)
    assert [(t.params, t.value) for t in again.trials] == [
        (t.params, t.value) for t in whole.trials
    ]


def test_a_search_that_was_killed_resumes_where_it_was(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)

    def go(kill, runs):
        done = subprocess.run(
            [sys.executable, str(tmp_path / "killed.py")],
            env={**os.environ, "KILL": str(kill), "RUNS": str(tmp_path / runs)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    code, whole, err = go(0, "a")
    assert code == 0, err
    code, first, _ = go(5, "b")
    assert code == -signal.SIGKILL and first == whole[:5]
    code, rest, err = go(0, "b")
    assert (
        code == 0
        and first[:4] + rest[:-1] == whole[:-1]
        and rest[-1] == str([1] * 4 + [2] + [1] * 7)
    ), err


def test_two_searches_of_one_name(env):
    inside = []

    def objective(params):
        if not inside:
            inside.append(1)
            with pytest.raises(
                RunActive, match="a search 'search' is under way already, in process"
            ):
                look(height, env=env)
        return params["x"]

    look(objective, env=env)
    look(height, env=env)


def test_ctrl_c_leaves_a_search_that_resumes(env):
    xs = [t.params["x"] for t in look(lambda p: p["x"], env=env, name="other").trials]
    seen = Seen()

    def interrupted(params):
        if seen(params["x"]) == 3:
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            time.sleep(0.5)
        return params["x"]

    with pytest.raises(KeyboardInterrupt):
        look(interrupted, env=env)
    found = look(interrupted, env=env)
    assert (
        [t.params["x"] for t in found.trials] == xs
        and seen.all == [*xs[:3], *xs[2:]]
        and found.trials[2].attempts == 2
    )


def test_in_a_step_the_record_belongs_to_the_key_of_the_step(env, tmp_path, monkeypatch):
    (tmp_path / "context.json").write_text(
        json.dumps({"checkpoints": str(tmp_path / "checkpoints" / "abc")})
    )
    monkeypatch.setenv("SCALAI_STEP", str(tmp_path / "context.json"))
    look(height, env=env)
    assert (
        list((tmp_path / "checkpoints/abc/searches").glob("search-*/trials.jsonl"))
        and not (Path(env.runs) / "searches").exists()
    )


# ---- in the tracker ----


def test_each_trial_is_in_the_tracker_as_it_ends(env, monkeypatch):
    monkeypatch.setenv("SCALAI_TRACKED", "flights/step-1")
    seen = []

    def objective(params, report):
        seen.append([r["name"] for r in told(env)])
        if params["x"] < -0.5:
            raise ValueError("low")
        for step in range(5):
            report(step, params["x"])
        return {"height": params["x"], "cost": 2}

    found = look(objective, budget=15, env=env, name="hill")
    assert seen[0] == ["hill"] and seen[2] == ["hill", "hill 0", "hill 1"]
    first, *trials, last = told(env)
    assert (
        first["status"] == "running"
        and first["parent"] == "flights/step-1"
        and first["id"] == last["id"]
        and last["status"] == "completed"
    )
    assert (
        last["metrics"]["height"] == found.best.value
        and {t["parent"] for t in trials} == {first["id"]}
        and {t["experiment"] for t in trials} == {"flights"}
    )
    assert [t["metrics"].get("value") for t in trials] == [t.value for t in found.trials] and {
        t["status"] for t in trials
    } == {"completed", "cancelled", "failed"}
    assert trials[0]["params"] == {"x": str(found.trials[0].params["x"])} and spool(env)


def test_a_tracker_that_is_down_and_one_that_is_none(env, monkeypatch, capsys):
    monkeypatch.undo()
    down = replace(env, tracking="http://127.0.0.1:9")
    assert (
        look(height, env=down, budget=2, progress=True).best
        and "4 records wait for http://127.0.0.1:9" in capsys.readouterr().out
        and len(waiting(down)) == 4
    )
    look(height, env=replace(env, trackers="none"), budget=2, name="untold")
    assert len(waiting(down)) == 4


# ---- estimators ----


def rows(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    ds = xr.Dataset(
        {
            "hour": ("row", rng.uniform(5, 23, n)),
            "wind": ("row", rng.normal(10, 4, n)),
            "day": ("row", np.sort(rng.integers(0, 30, n))),
        }
    )
    p = 1 / (1 + np.exp(-(ds.hour - 15) / 4))
    return ds.assign(
        late=("row", (rng.random(n) < p.values).astype("int8")),
        delay=ds.hour * 2 + rng.normal(0, 1, n),
        kind=("row", np.array(["a", "b", "c"], object)[np.digitize(ds.hour, [11, 17])]),
    )


def test_an_estimator_is_judged_on_rows_that_it_has_not_seen(env):
    from sklearn.metrics import roc_auc_score

    ds, folds = rows(), [(np.arange(1000), np.arange(1000, 1500))]
    found = look(
        LogisticRegression(),
        {"C": [0.01, 1.0]},
        5,
        env,
        data=ds,
        label="late",
        transform=Transform(["hour", "wind"]),
        split=folds,
    )
    t = Transform(["hour", "wind"]).fit(ds.isel(row=slice(0, 1000)))
    model = LogisticRegression(C=found.best.params["C"]).fit(
        t.transform(ds.isel(row=slice(0, 1000))).values, ds.late.values[:1000]
    )
    assert (
        abs(
            found.best.value
            - roc_auc_score(
                ds.late.values[1000:],
                model.predict_proba(t.transform(ds.isel(row=slice(1000, None))).values)[:, 1],
            )
        )
        < 1e-5
    )
    assert found.direction == "maximize" and set(found.best.metrics) == {
        "roc_auc",
        "roc_auc fold 0",
    }


def test_folds_are_reported_and_prune(env):
    from sklearn.ensemble import RandomForestClassifier

    found = look(
        RandomForestClassifier(5, random_state=0),
        {"max_depth": (1, 12), "max_features": [1, 2]},
        14,
        env,
        data=rows(),
        label="late",
        transform=Transform(["hour", "wind"]),
        split="day",
    )
    assert (
        any(t.status == "pruned" and len(t.steps) < 5 for t in found.trials)
        and len(found.best.steps) == 5
    )
    assert (
        abs(found.best.value - np.mean([v for k, v in found.best.metrics.items() if "fold" in k]))
        < 1e-12
    )


def test_numbers_and_several_classes(env):
    from sklearn.linear_model import Ridge, SGDClassifier

    ds, t = rows(), Transform(["hour", "wind"])
    assert (
        look(
            Ridge(), {"alpha": (1e-3, 1e3, "log")}, 6, env, data=ds, label="delay", transform=t
        ).direction
        == "minimize"
    )
    several = look(
        SGDClassifier(loss="log_loss", random_state=0),
        {"alpha": (1e-6, 1.0, "log")},
        6,
        env,
        data=ds,
        label="kind",
        transform=t,
    )
    assert (
        several.direction == "minimize"
        and 0 < several.best.value < 1
        and "log_loss" in several.best.metrics
    )
    assert (
        look(
            LinearRegression(),
            {"alpha": (1e-3, 1e3, "log")},
            3,
            env,
            data=ds.chunk(row=400),
            label="delay",
            transform=t,
            metric="r2",
        ).best.value
        > 0.9
    )


def test_bad_words_about_an_estimator(env):
    ds, t = rows(100), Transform(["hour"])
    for says, kw in {
        "'c' is not in the parameters of LogisticRegression; known: C": {"space": {"c": (1, 2)}},
        "transform= is missing": {"transform": None},
        "'auc' is not in the measures": {"metric": "auc"},
    }.items():
        with pytest.raises(ParameterError, match=says):
            look(
                LogisticRegression(),
                **{
                    "space": {"C": (0.1, 1.0)},
                    "data": ds,
                    "label": "late",
                    "transform": t,
                    "env": env,
                    **kw,
                },
            )


# ---- on a cluster ----


def cluster_env(address="local"):
    return Environment(
        name="test", root=Path("/"), cluster=address, workers=2, memory=2_000_000_000
    )


@pytest.fixture(scope="module")
def client():
    with start(cluster_env()) as address, connect(cluster_env(address)) as client:
        yield client


def test_workers_try_at_once_and_prune(env, client):
    def objective(params, report):
        import os, time

        for step in range(10):
            report(step, -((params["x"] - 0.5) ** 2) * (1 + 1 / (step + 1)))
            time.sleep(0.005)
        return {"height": -((params["x"] - 0.5) ** 2), "pid": os.getpid(), "at": time.time()}

    found = look(objective, budget=20, env=env, client=client)
    pids, pruned = (
        {t.metrics["pid"] for t in found.completed},
        [t for t in found.trials if t.status == "pruned"],
    )
    assert (
        pids == set(client.run(os.getpid).values())
        and any(0 < len(t.steps) < 10 for t in pruned)
        and found.best.value > -0.1
    )
    assert (
        len(look(objective, budget=24, env=env, client=client).trials) == 24
    )  # the same client again


def test_a_worker_that_is_killed_costs_its_trial_once(env, client, tmp_path):
    def objective(params, report, folder=str(tmp_path)):
        import os, signal
        from pathlib import Path

        report(0, params["x"])
        if params["x"] > 0 and not (mark := Path(folder, "killed")).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        for step in range(1, 4):
            report(step, params["x"])
        return params["x"]

    found = look(objective, budget=8, env=env, client=client, pruner=None)
    assert (
        (tmp_path / "killed").exists()
        and [t.status for t in found.trials] == ["completed"] * 8
        and sorted(t.attempts for t in found.trials) == [1] * 7 + [2]
    )
    assert {len(t.steps) for t in found.trials} == {4}


def test_the_only_worker_is_killed(env, tmp_path):
    def objective(params, folder=str(tmp_path)):
        import os, signal
        from pathlib import Path

        if not (mark := Path(folder, "killed")).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return params["x"]

    with connect(
        Environment(name="test", root=Path("/"), workers=1, memory=2_000_000_000)
    ) as alone:
        assert [
            (t.status, t.attempts) for t in look(objective, budget=3, env=env, client=alone).trials
        ] == [("completed", 2), ("completed", 1), ("completed", 1)]


def test_workers_that_are_threads_and_a_bad_report(env):
    with connect(Environment(name="test", root=Path("/"), cluster="none")) as here:
        found = look(lambda p, report: report(0, p["x"]) or p["x"], budget=4, env=env, client=here)
        assert [len(t.steps) for t in found.trials] == [1] * 4
        for bad, says in (
            (lambda p, report: report(-1, 0), "step -1 is below 0"),
            (lambda p, report: report(0, "a"), "could not convert"),
            (lambda p, report: 1 / 0, "division by zero"),
        ):
            with pytest.raises(WorkFailed, match=says):
                look(bad, budget=2, env=env, client=here)


def test_ctrl_c_lets_go_of_the_workers(env, client):
    def objective(params, report):
        import time

        for step in range(1000):
            report(step, 0)
            time.sleep(0.02)
        return 0

    threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        look(objective, budget=4, env=env, client=client)
    assert client.submit(lambda: 1, pure=False).result(timeout=10) == 1  # not after 20 s
    assert look(lambda p: 1, budget=2, env=env, client=client).best.value == 1


def test_the_estimator_travels_with_its_rows(env, client):
    kw = {"data": rows(), "label": "late", "transform": Transform(["hour", "wind"]), "env": env}
    here = look(LogisticRegression(), {"C": [0.001, 0.1, 10.0]}, 3, name="here", **kw)
    there = look(
        LogisticRegression(), {"C": [0.001, 0.1, 10.0]}, 3, name="there", client=client, **kw
    )
    assert [(t.params, round(t.value, 9)) for t in here.trials] == [
        (t.params, round(t.value, 9)) for t in there.trials
    ]
