"""A grid over the parameters of notebooks: what runs, what is left alone, how bad words are met"""

import re
import signal
import threading
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from sklearn.linear_model import LogisticRegression

import scalai_nb as sn
from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.errors import ParameterError, RunActive, RunFailed
from scalai_nb.goals import Goal
from scalai_nb.models.registry.registry import Registry
from scalai_nb.models.search.study import alone
from scalai_nb.pipeline.reading.imports import Closure
from scalai_nb.pipeline.progress import Plain
from scalai_nb.pipeline.run import all_runs, load_run
from scalai_nb.pipeline.runner import run
from scalai_nb.pipeline.sweeps.apart import apart as env_apart
from scalai_nb.pipeline.sweeps.grid import combine, parse_grid, reached
from scalai_nb.pipeline.sweeps.sweep import Row, SweepOptions, ranked, sweep
from scalai_nb.pipeline.sweeps.sweep_tables import draw, show
from toy import Project, shared_forks

NUMBERS = """import numpy as np, xarray as xr
from scalai_nb.pipeline import write
write(numbers, xr.Dataset({"x": ("row", np.arange(size, dtype=float))}))"""

DATASETS = {  # quick steps without a model: numbers -> fit -> check
    "01_numbers": ('numbers: Out = "numbers"\nsize: int = 5\nerror: Goal = "<= 3"', NUMBERS),
    "02_fit": (
        (
            'numbers: In = "numbers"\n'
            'fitted: Out = "fitted"\n'
            "depth: int = 1\n"
            'kinds: list[str] = ["a"]\n'
            'kind: str = "a"'
        ),
        (
            "from scalai_nb.pipeline import read, write\n"
            "ds = read(numbers).load()\n"
            "assert depth != 13, 'thirteen'\n"
            "print('depth', depth)\n"
            "write(fitted, ds * depth)"
        ),
    ),
    "03_check": (
        'fitted: In = "fitted"\nchecked: Out = "checked"',
        "from scalai_nb.pipeline import read, write\nwrite(checked, read(fitted).load() + 1)",
    ),
}

TRAIN = """import numpy as np, xarray as xr, scalai_nb as sn
from sklearn.linear_model import LogisticRegression
from scalai_nb.pipeline import read, write
ds = read(numbers).load()
t = sn.Transform(numeric=["x"]).fit(ds)
fitted = LogisticRegression(C=C).fit(t.transform(ds).values, ds.x.values > 2)
write(scorer, sn.package(t, fitted, name=scorer), metrics={"auc": 1 - abs(C - 2), "size": C})"""

RELEASE = """import scalai_nb as sn
from scalai_nb.pipeline import read, write
model = read(scorer)
before = read(champion).card["name"]
registry = sn.Registry(sn.environment())
registry.promote("score", "latest", reason=f"after {before}")
write(release, read(numbers))"""

MODELS = {
    "01_numbers": ('numbers: Out = "numbers"\nsize: int = 5\nauc: Goal = ">= 0.9"', NUMBERS),
    "02_train": ('numbers: In = "numbers"\nscorer: Out[Model] = "score"\nC: float = 1.0', TRAIN),
    "03_release": (
        (
            'numbers: In = "numbers"\n'
            'scorer: In[Model] = "score"\n'
            'champion: In[Model] = "score@champion"\n'
            'release: Out = "release"'
        ),
        RELEASE,
    ),
}


def project(path: Path, steps: dict, database: Path | None = None):
    "The environment of a project with a pipeline `toy`"
    p = Project(path, database=database)
    for name, (contract, code) in steps.items():
        p.step(
            name,
            (
                "from scalai_nb.pipeline import Goal, In, "
                f"{'Model, ' * ('Model' in contract)}Out\n"
                f"{contract}"
            ),
            code,
        )
    return environment("laptop", settings=path / "settings.ini", trackers="none")


def quiet() -> Console:
    return Console(file=StringIO(), width=200, highlight=False)


def text(shown) -> str:
    (console := Console(file=StringIO(), width=250, highlight=False)).print(shown)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setattr(
        "scalai_nb.pipeline.step.closure", lambda *_: Closure({}, frozenset())
    )  # nothing is stale because somebody edits the library meanwhile


@pytest.fixture(autouse=True)
def forks(monkeypatch):
    "One fork server for all that is run here"
    for module in ("sweeps.sweep", "execution.forkserver"):
        monkeypatch.setattr(f"scalai_nb.pipeline.{module}.ForkServer", shared_forks)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return project(tmp_path_factory.mktemp("datasets"), DATASETS)


# ---- words ----


def test_a_grid_is_what_the_contracts_make_of_it(datasets):
    _, combinations = combine(
        "toy",
        datasets,
        parse_grid(["fit.depth=1,2", "fit.kinds=['a','b'],['c']", "fit.kind='x,y'"]),
    )
    assert [list(c.values.values()) for c in combinations] == [
        [d, k, "'x,y'"] for d in (1, 2) for k in (["a", "b"], ["c"])
    ]
    assert combinations[0].label == "fit.depth=1 fit.kinds=['a', 'b'] fit.kind=\"'x,y'\""
    assert len({c.pipeline.name for c in combinations}) == 4 and all(
        re.fullmatch(r"[\w.-]+", c.pipeline.name) for c in combinations
    )


@pytest.mark.parametrize(
    ("words", "parameters", "says"),
    [
        (["fit.depth=4,six"], {}, "fit.depth: 'six' is not of type int; write a value such as 7."),
        (["fit.depth=4,"], {}, "fit.depth: '' is not of type int"),
        (
            ["fit.dpeth=4"],
            {},
            (
                "'dpeth' is not in the parameters of fit; known: depth, fitted, kind, kinds, "
                "numbers. Did you mean 'depth'?"
            ),
        ),
        (
            ["fti.depth=4"],
            {},
            "'fti' is not in the steps of toy; known: check, fit, numbers. Did you mean 'fit'?",
        ),
        (["fit.depth"], {}, "write, say, -p train.months=[1,2]"),
        (["fit.depth=4,4"], {}, "the grid has fit.depth=4 twice"),
        (
            ["fit.depth=4"],
            {"fit": {"depth": "3"}},
            "fit.depth is given twice, with -p and with --sweep",
        ),
        (["fit.fitted=a,b"], {}, "fit.fitted: the name of an output cannot vary"),
        ([], {}, "the grid is empty"),
    ],
)
def test_bad_words_are_named_before_anything_runs(datasets, words, parameters, says):
    with pytest.raises(ParameterError, match=re.escape(says)):
        sweep("toy", parse_grid(words), datasets, parameters)
    assert not all_runs(datasets)


def test_until_must_depend_on_the_grid(datasets):
    with pytest.raises(
        ParameterError,
        match="'numbers' is not in the steps that the grid reaches; known: check, fit",
    ):
        sweep("toy", parse_grid(["fit.depth=1"]), datasets, until="numbers")


def test_a_combination_runs_up_to_the_first_model(tmp_path):
    whole, _ = combine("toy", env := project(tmp_path, MODELS), {"train": {"C": [1]}})
    assert reached(whole, {"numbers"}) == ["numbers", "train"] and reached(whole, {"train"}) == [
        "train"
    ]
    assert (
        reached(whole, {"train"}, "release")
        == ["train", "release"]
        == reached(whole, {"train"}, "03_release")
    )
    assert combine("toy", env, {"numbers": {"size": [5, 6]}})[1][1].pipeline.edges == [
        ("numbers", "train", "numbers")
    ]


def test_the_best_is_first():
    rows = [
        Row({}, "completed", metrics={"a": a, "b": b}, missed=m)
        for a, b, m in ((1, 5, ()), (3, 4, ("b",)), (2, 6, ()))
    ]
    goals = {"b": Goal("<= 9"), "a": Goal(">= 0")}
    assert [r.metrics["a"] for r in ranked(rows, {"a": goals["a"]})[0]] == [2, 1, 3]
    assert [r.metrics["b"] for r in ranked(rows, goals)[0]] == [5, 6, 4] and ranked(rows, goals)[
        1
    ] == "b"
    assert [r.metrics["a"] for r in ranked([*rows, Row({}, "completed")], {}, "a")[0][:2]] == [2, 1]
    with pytest.raises(ParameterError, match="'c' is not in the metrics of the sweep; known: a, b"):
        ranked(rows, goals, "c")


# ---- runs ----


@pytest.mark.slow
def test_shared_steps_run_once_and_nothing_is_published(datasets):
    assert "numbers to run" in text(
        draw(*combine("toy", datasets, {"fit": {"depth": [1, 2]}}), datasets)
    )
    two = SweepOptions(jobs=2)
    done = sweep(
        "toy", {"fit": {"depth": [1, 2]}}, datasets, until="check", console=quiet(), options=two
    )
    assert [(r.values, r.status, r.error) for r in done.rows] == [
        ({"fit.depth": d}, "completed", None) for d in (1, 2)
    ]
    runs = all_runs(datasets)
    assert sorted([s.name for s in r.steps] for r in runs) == [["fit", "check"]] * 2 + [["numbers"]]
    assert {r.pipeline for r in runs} == {"toy"} and {r.about.get("combination") for r in runs} == {
        None,
        "fit.depth=1",
        "fit.depth=2",
    }
    lake = Lake(datasets.lake)
    assert lake.names() == ["numbers"]
    for row in done.rows:  # what each has written can be read by its version
        version = dict(load_run(datasets, row.run).step("check").written)["checked"]
        assert lake.read("checked", version).x.values.tolist() == [
            1 + row.values["fit.depth"] * x for x in range(5)
        ]

    # again: nothing runs; the pipeline itself has not been run beyond what was shared, and does not
    # become a part of the sweep
    before = len(runs)
    again = sweep("toy", {"fit": {"depth": [2, 1]}}, datasets, until="check", console=quiet())
    assert [(r.status, r.run) for r in again.rows] == [
        ("cached", r.run) for r in done.rows[::-1]
    ] and len(all_runs(datasets)) == before
    assert "nothing to run" in text(
        draw(*combine("toy", datasets, {"fit": {"depth": [1, 2]}}, until="check"), datasets)
    )
    own = run("toy", datasets, show=Plain(quiet()))
    assert {s.name: s.status for s in own.steps} == {
        "numbers": "cached",
        "fit": "completed",
        "check": "completed",
    }
    assert (
        sweep("toy", {"fit": {"depth": [1, 2]}}, datasets, until="check", console=quiet())
        .rows[0]
        .status
        == "cached"
    )

    # another input: everything again
    changed = sweep(
        "toy", {"fit": {"depth": [2]}}, datasets, {"numbers": {"size": 3}}, console=quiet()
    )
    assert [r.status for r in changed.rows] == ["completed"]
    assert lake.read(
        "fitted", dict(load_run(datasets, changed.rows[0].run).step("fit").written)["fitted"]
    ).x.values.tolist() == [0, 2, 4]
    assert lake.read("fitted").x.values.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]  # what the pipeline's own run has published


@pytest.mark.slow
def test_a_failed_combination_does_not_stop_the_others(datasets):
    done = sweep("toy", {"fit": {"depth": [13, 3]}}, datasets, console=(console := quiet()))
    assert [(r.values["fit.depth"], r.status) for r in done.rows] == [
        (3, "completed"),
        (13, "failed"),
    ] and "thirteen" in done.rows[1].error
    assert (
        [r.values["fit.depth"] for r in done.failed] == [13]
        and "1 of 2 combinations completed" in text(show(done))
        and "thirteen" in text(show(done))
    )
    assert "fit.depth=13  02_fit ✘ failed" in console.file.getvalue()
    assert not [b for b in Lake(datasets.lake).names() if b == "fitted@depth-13"]
    fast = sweep(
        "toy",
        {"fit": {"depth": [13, 3, 4]}},
        datasets,
        console=quiet(),
        options=SweepOptions(fail_fast=True, force=True),
    )
    assert [r.status for r in fast.rows] == ["failed", "not_run", "not_run"] and len(
        fast.failed
    ) == 3


def test_a_shared_step_that_fails_ends_the_sweep(tmp_path):
    env = project(
        tmp_path, {**DATASETS, "01_numbers": ('numbers: Out = "numbers"\nsize: int = 5', "1 / 0")}
    )
    with pytest.raises(
        RunFailed,
        match="with the steps that all combinations share, is failed; see: scalai show toy-",
    ):
        sweep("toy", {"fit": {"depth": [1]}}, env, console=quiet())


def test_one_sweep_of_a_pipeline_at_a_time(datasets):
    with (
        alone(Path(datasets.runs) / "sweeps", "toy", "sweep"),
        pytest.raises(RunActive, match="a sweep 'toy' is under way already, in process"),
    ):
        sweep("toy", {"fit": {"depth": [1]}}, datasets)


@pytest.mark.slow
def test_ctrl_c_ends_the_sweep_and_it_resumes(tmp_path):
    slow = (
        DATASETS["02_fit"][0],
        DATASETS["02_fit"][1].replace(
            "write(", "import time; time.sleep(30 if depth == 2 else 0)\nwrite("
        ),
    )
    env = project(tmp_path, {**DATASETS, "02_fit": slow})

    def interrupt():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(
            "depth 2" in p.read_text()
            for p in tmp_path.glob(".scalai/runs/*/steps/02_fit.outputs.jsonl")
        ):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = sweep("toy", {"fit": {"depth": [1, 2, 3]}}, env, console=quiet())
    thread.join()
    assert [r.status for r in done.rows] == ["completed", "cancelled", "not_run"]
    again = sweep("toy", {"fit": {"depth": [1, 3]}}, env, console=quiet())
    assert [r.status for r in again.rows] == ["cached", "completed"]


@pytest.mark.slow
def test_models_of_a_sweep_stay_out_of_the_registry(tmp_path, database):
    env, registry = project(tmp_path, MODELS, database), None
    ds = xr.Dataset({"x": ("row", np.arange(5.0))})
    t = sn.Transform(numeric=["x"]).fit(ds)
    registry = Registry(env)
    registry.register(
        sn.package(
            t, LogisticRegression().fit(t.transform(ds).values, ds.x.values > 2), name="in service"
        ),
        "score",
        {"auc": 0.9},
    )
    registry.promote("score", 1)
    history = (Path(env.models) / "score" / "history.jsonl").read_text()
    two = SweepOptions(jobs=2)
    grid = {"train": {"C": [1, 2.5]}}
    done = sweep("toy", grid, env, until="release", console=quiet(), options=two)
    assert [(r.values["train.C"], r.status, r.missed) for r in done.rows] == [
        (2.5, "completed", ("auc",)),
        (1, "completed", ("auc",)),
    ], done.rows
    assert done.by == "auc" and done.rows[0].metrics == {"auc": 0.5, "size": 2.5}
    assert done.command == "scalai run toy -p 'train.C=2.5'" and done.command in text(show(done))
    assert [(v.version, v.aliases) for v in registry.versions("score")] == [(1, ("champion",))]
    assert (Path(env.models) / "score" / "history.jsonl").read_text() == history
    apart = Registry(
        env_apart(env, "toy")
    )  # each has been promoted there, and compared with the champion, which was lent
    assert [v.version for v in apart.versions("score")] == [3, 2, 1] and {
        r["reason"] for r in apart.history("score")
    } == {"after in service"}
    assert [
        r.status
        for r in sweep(
            "toy", {"train": {"C": [1, 2.5]}}, env, until="release", console=quiet()
        ).rows
    ] == ["cached"] * 2
