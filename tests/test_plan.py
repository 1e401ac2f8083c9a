"The graph of a pipeline: what it refuses, its order, and what has to run again and why"

import json
import os
import random
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from rich.console import Console
from test_step import notebook

from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import (
    DatasetNotFound,
    GraphError,
    ModelNotFound,
    ParameterError,
    StepError,
    VersionNotFound,
)
from scalai_nb.pipeline.drawing import _lanes, draw_plan
from scalai_nb.pipeline.pipeline import Edge, Pipeline, heads, owners, pipelines
from scalai_nb.pipeline.plan import Plan
from scalai_nb.pipeline.reading import surroundings
from scalai_nb.pipeline.staleness import Cache, Key, key

FLIGHTS = {
    "00_use_case": ("goals: Out = 'goals'", ""),
    "01_ingest": (
        "flights: Out = 'flights'; weather: Out = 'weather'",
        "import scalai_nb as sn\nsn.from_frame",
    ),
    "02_quality": (
        "flights: In = 'flights'; quality: Out = 'quality'",
        "import scalai_nb as sn\nsn.summarize",
    ),
    "03_features": (
        (
            "flights: In = 'flights'; weather: In = 'weather'; features: Out = 'features'; "
            "months: list[int] = [1, 2]"
        ),
        "x = 1",
    ),
    "04_train": (
        "features: In = 'features'; late: Out[Model] = 'late-flight'; n: int = 1",
        "n + 1",
    ),
    "05_evaluate": (
        (
            "features: In = 'features'; late: In[Model] = 'late-flight'; goals: In = 'goals'; "
            "evaluation: Out = 'evaluation'"
        ),
        "y = 1",
    ),
    "06_release": (
        "late: In[Model] = 'late-flight'; evaluation: In = 'evaluation'; release: Out = 'release'",
        "",
    ),
    "07_replay": (
        (
            "late: In[Model] = 'late-flight'; release: In = 'release'; features: In = 'features'; "
            "replay: Out = 'replay'"
        ),
        "import scalai_nb as sn\nsn.drift",
    ),
}
NAMES = [stem.partition("_")[2] for stem in FLIGHTS]


@pytest.fixture
def env(tmp_path):
    "A project with a small scalai_nb of its own, which shadows the real one"
    (tmp_path / "scalai_nb/describe").mkdir(parents=True)
    for name, text in {
        "settings.ini": "[laptop]",
        "scalai_nb/__init__.py": (
            "_WHERE = {'describe.drift': ['drift'], 'describe.summary': ['summarize'], "
            "'data.sources': ['from_frame']}"
        ),
        "scalai_nb/describe/drift.py": "def drift(a, b): return a - b",
        "scalai_nb/describe/summary.py": "from math import sqrt",
    }.items():
        (tmp_path / name).write_text(text)
    return SimpleNamespace(
        root=tmp_path,
        pipelines=str(tmp_path / "nbs"),
        runs=str(tmp_path / "runs"),
        lake=str(tmp_path / "lake"),
        tracking=f"sqlite:///{tmp_path}/t.db",
    )


@pytest.fixture
def write(env, tmp_path):
    "Write notebooks of pipeline `p`: stem -> contract, or (contract, code)"

    def write(steps, pipeline="p", **kw):
        for stem, step in steps.items():
            contract, *code = step if isinstance(step, tuple) else (step,)
            notebook(
                tmp_path / "nbs" / pipeline / f"{stem}.ipynb",
                contract.replace("; ", "\n"),
                *code,
                **kw,
            )
        return Pipeline.load(pipeline, env)

    return write


# Finding


def test_where_a_pipeline_is_found(env, write, tmp_path, monkeypatch):
    write({"02_b": "", "10_c": "", "1_a": "", "scratch": "not: even = valid", "x_01": ""})
    (
        notebook(tmp_path / "nbs/alone.ipynb"),
        notebook(tmp_path / "far/one.ipynb"),
        notebook(tmp_path / "nbs/.ipynb_checkpoints/01_a-checkpoint.ipynb"),
    )
    notebook(tmp_path / "nbs/v1.2/01_a.ipynb")
    (tmp_path / "nbs/empty").mkdir()
    assert (
        list(pipelines(env)) == ["alone", "p", "v1.2"]
        and pipelines(SimpleNamespace(pipelines=str(tmp_path / "none"))) == {}
    )
    assert [s.name for s in Pipeline.load("p", env).steps] == ["a", "b", "c"]
    assert [s.name for s in Pipeline.load(tmp_path / "nbs/p", env).steps] == ["a", "b", "c"]
    one = Pipeline.load(tmp_path / "nbs/p/02_b.ipynb", env)
    assert (one.name, [s.name for s in one.steps]) == ("p", ["b"])
    assert (
        Pipeline.load("alone", env).name == "alone"
        and Pipeline.load(str(tmp_path / "far/one.ipynb"), env).name == "one"
    )
    monkeypatch.chdir(tmp_path / "nbs")
    assert Pipeline.load("./p", env).name == Pipeline.load("../nbs/p/02_b.ipynb", env).name == "p"


def test_what_is_not_a_pipeline(env, write, tmp_path):
    write({"01_a": ""})
    with pytest.raises(GraphError, match=r"'q' is not in the pipelines of .*/nbs; known: p\."):
        Pipeline.load("q", env)
    (tmp_path / "nbs/empty").mkdir()
    with pytest.raises(GraphError, match="empty: has no steps; name its notebooks 01_name.ipynb"):
        Pipeline.load(tmp_path / "nbs/empty", env)
    with pytest.raises(StepError, match=r"01_a\.ipynb:cell 2 line 1: x: 'a' is not of type int"):
        write({"01_a": "x: int = 'a'"})


def test_overrides_reach_their_step(env, write):
    write(FLIGHTS, "flights")
    p = Pipeline.load(
        "flights", env, {"features": {"months": "[1, 2, 3]"}, "train": {"features": "features@v1"}}
    )
    assert (
        p["features"].values["months"] == [1, 2, 3]
        and p["04_train"].reads["features"].ref == "v1"
        and p["quality"].overrides == {}
    )
    with pytest.raises(
        ParameterError, match="'feature' is not in the steps of flights; .*Did you mean 'features'"
    ):
        Pipeline.load("flights", env, {"feature": {}})
    with pytest.raises(ParameterError, match=r"features\.months: 'x' is not of type"):
        Pipeline.load("flights", env, {"features": {"months": "x"}})
    with pytest.raises(ParameterError, match="'nine' is not in the steps of flights"):
        p["nine"]


# The graph


def test_the_flights_graph(write):
    p = write(FLIGHTS, "flights")
    assert [s.name for s in p.steps] == NAMES
    assert {(e.source, e.target) for e in p.edges} == {
        ("ingest", "quality"),
        ("ingest", "features"),
        ("features", "train"),
        ("features", "evaluate"),
        ("train", "evaluate"),
        ("use_case", "evaluate"),
        ("train", "release"),
        ("evaluate", "release"),
        ("train", "replay"),
        ("release", "replay"),
        ("features", "replay"),
    }
    assert (
        p.before("features") == {"ingest"}
        and p.after("train") == {"evaluate", "release", "replay"}
        and p.after("use_case") == {"evaluate", "release", "replay"}
        and p.after("quality") == set()
    )


def test_numbers_only_decide_where_the_graph_does_not(write):
    assert [
        s.name
        for s in write(
            {"01_last": "a: In = 'a'", "02_x": "", "03_first": "a: Out = 'a'", "04_y": ""}
        ).steps
    ] == ["x", "first", "last", "y"]


def test_a_version_of_an_input_is_waited_for_only_from_before(write):
    "name@ref may be what the last run left behind: feedback is no cycle"
    p = write(
        {
            "01_a": (
                "d: In = 'drift@main'; m: In[Model] = 'm@champion'; a: Out = 'a'; own: In = "
                "'a@main'"
            ),
            "02_train": "a: In = 'a'; m: Out[Model] = 'm'",
            "03_watch": "m: In[Model] = 'm@champion'; d: Out = 'drift'",
        }
    )
    assert p.edges == [Edge("a", "train", "a"), Edge("train", "watch", "m")]


@pytest.mark.parametrize(
    ("steps", "where", "says"),
    [
        (
            {"01_a": "x: Out = 'd'", "02_b": "y: In = 'z'; x: Out = 'd'"},
            "02_b.ipynb:cell 2 line 2: d is written by ",
            "01_a.ipynb:cell 2 line 1 already; rename one of the two.",
        ),
        (
            {"01_a": "x: Out = 'd'", "02_b": "x: Out[Model] = 'd'"},
            "02_b.ipynb:cell 2 line 1: d is written by ",
            "already",
        ),
        (
            {"01_a": "x: Out = 'd'; y: Out = 'd'"},
            "01_a.ipynb:cell 2 line 2: d is written by ",
            "01_a.ipynb:cell 2 line 1 already",
        ),
        (
            {"01_a": "x: Out[Model] = 'd'", "02_b": "x: In = 'd'"},
            "02_b.ipynb:cell 2 line 1: d is a model, written by a; write In[Model].",
            "",
        ),
        (
            {"01_a": "x: Out = 'd'", "02_b": "x: In[Model] = 'd'"},
            "02_b.ipynb:cell 2 line 1: d is a dataset, written by a; write In.",
            "",
        ),
        (
            {"01_a": "", "02_a": ""},
            "02_a.ipynb: is named a, as is 01_a.ipynb; rename one of the two.",
            "",
        ),
        (
            {"01_a": "i: int = 1; x: In = 'y'; z: Out = 'x'", "02_b": "x: In = 'x'; y: Out = 'y'"},
            "01_a.ipynb:cell 2 line 2: is part of the cycle ",
            "write 'y@main' to read what the last run wrote",
        ),
        (
            {
                "01_a": "p: In = 'y@main'; x: In = 'y'; z: Out = 'x'",
                "02_b": "x: In = 'x'; y: Out = 'y'",
            },
            "01_a.ipynb:cell 2 line 2: is part of the cycle ",
            "'y@main'",
        ),
        (
            {"01_a": "x: In[Model] = 'x'; z: Out[Model] = 'x'"},
            "01_a.ipynb:cell 2 line 1: is part of the cycle a -> a; write 'x@latest' to read",
            "or do not read it.",
        ),
        (
            {
                "01_a": "c: In = 'c'; a: Out = 'a'",
                "02_b": "a: In = 'a'; b: Out = 'b'",
                "03_c": "b: In = 'b'; c: Out = 'c'",
                "04_d": "a: In = 'a'",
            },
            "01_a.ipynb:cell 2 line 1: is part of the cycle ",
            " -> ",
        ),
    ],
)
def test_graphs_that_are_refused(write, steps, where, says):
    with pytest.raises(GraphError) as e:
        write(steps)
    assert where in str(e.value) and says in str(e.value)


def test_the_remedy_for_a_cycle_works(write):
    assert (
        write(
            {"01_a": "x: In = 'y@main'; z: Out = 'x'", "02_b": "x: In = 'x'; y: Out = 'y'"}
        ).before("a")
        == set()
    )


# What needs the world


@pytest.mark.parametrize(
    ("contract", "says"),
    [
        (
            "a = 1; x: int",
            "01_a.ipynb:cell 2 line 2: x has no value; pass -p a.x=… or write a default.",
        ),
        ("x: In", "x has no value"),
        (
            "t: Secret = 'SCALAI_NOT_SET'",
            (
                "01_a.ipynb:cell 2 line 1: the environment variable SCALAI_NOT_SET is not set; "
                "export it and start again."
            ),
        ),
        (
            "x: In = 'flihgts'",
            (
                "01_a.ipynb:cell 2 line 1: 'flihgts' is not in the lake, and no step before "
                "writes it; known: flights. Did you mean 'flights'?"
            ),
        ),
        (
            "x: In = 'flights@main'",
            "'flights@main' is not in the lake, and no step before writes it",
        ),
        ("x: In[Model] = 'late'", "'late' is not in the registry, and no step before writes it"),
    ],
)
def test_what_validation_refuses(env, write, contract, says):
    p = write({"01_a": contract, "02_b": "f: Out = 'flights'"})
    with pytest.raises(GraphError) as e:
        p.validate(env, head=lambda *ref: None)
    assert says in str(e.value)


def test_an_unknown_kernel(env, write):
    p = write({"01_a": ""}, kernel="scalai-gpuu")
    with pytest.raises(
        GraphError,
        match=(
            r"01_a\.ipynb: 'scalai-gpuu' is not in the installed kernels; known: .*python3.* "
            "Run: scalai kernel install"
        ),
    ):
        p.validate(env, head=lambda *ref: None)


def test_validation_asks_only_for_what_no_step_before_writes(env, write, monkeypatch):
    monkeypatch.setenv("SCALAI_TOKEN", "correct horse")
    p, asked = write(FLIGHTS, "flights"), []
    p.validate(env, head=lambda *ref: asked.append(ref))
    assert asked == []
    p = write(
        {
            "01_a": "x: In = 'x@v1'; m: In[Model] = 'm'; t: Secret = 'SCALAI_TOKEN'; o: Out = 'o'",
            "02_b": "o: In = 'o@v2'",
        }
    )
    p.validate(env, head=lambda *ref: asked.append(ref) or "v")
    assert asked == [("dataset", "x", "v1"), ("model", "m", None)]


class Stores:
    "A lake and a registry that know one version each"

    def version(self, name, ref=None):
        if name != "flights":
            raise DatasetNotFound(name)
        if ref not in (None, "v1"):
            raise VersionNotFound(ref)
        return SimpleNamespace(id=f"id-{ref}", content=f"id-{ref}")

    def get(self, name, ref="champion"):
        if name != "late":
            raise ModelNotFound(name)
        return SimpleNamespace(version={"latest": 3, "champion": 2}[ref], path=Path())


def test_heads_ask_the_stores(env, tmp_path):
    head = heads(env, Stores(), Stores())
    assert [
        head("dataset", "flights"),
        head("dataset", "flights", "v1"),
        head("dataset", "flights", "v2"),
        head("dataset", "x"),
    ] == ["id-None", "id-v1", None, None]
    assert [head("model", "late"), head("model", "late", "champion"), head("model", "x")] == [
        "3",
        "2",
        None,
    ]


def test_what_is_remembered_of_a_lake_is_what_the_lake_says(env, tmp_path, monkeypatch):
    "Writes, branches that are published or dropped, tags, restores and removals, in any order"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(surroundings, "_YOUNG", -1)  # as if each write were long ago
    lake, chance = Lake(env.lake), random.Random(3)

    def write(branch="main"):
        rows, state = xr.Dataset({"x": ("row", [chance.random()])}), {"owner": f"{chance.random()}"}
        lake.write("numbers", rows, branch=branch, state=state)

    acts = {
        "write": write,
        "tag": lambda: lake.tag("numbers", "a-tag"),
        "branch": lambda: write("a-branch"),
        "publish": lambda: lake.publish("numbers", "a-branch"),
        "drop": lambda: lake.drop("numbers", "a-branch"),
        "restore": lambda: lake.restore("numbers", chance.choice(lake.log("numbers")).id),
        "remove": lambda: shutil.rmtree(Path(env.lake) / "numbers"),
    }
    order = "write tag branch publish branch drop restore remove write branch publish write"
    for act in order.split():
        acts[act]()
        truth, remembered = heads(env, lake), heads(env)
        for ref in [None, "main", "a-tag", "a-branch"]:
            assert truth("dataset", "numbers", ref) == remembered("dataset", "numbers", ref), act
        there = "numbers" in lake.names()
        assert owners(env)("numbers") == (lake.state("numbers")["owner"] if there else None), act
    newest, owner = truth("dataset", "numbers"), lake.state("numbers")["owner"]
    monkeypatch.setattr(Lake, "__init__", lambda *_: pytest.fail("the lake was opened"))
    assert heads(env)("dataset", "numbers") == newest and owners(env)("numbers") == owner


def test_asking_creates_nothing(env, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert (
        heads(env)("dataset", "flights") is None
        and heads(env)("model", "late") is None
        and owners(env)("flights") is None
        and sorted(tmp_path.rglob("*")) == before
    )


# The key

BASE = {
    "contract": "c",
    "code": "d",
    "parameters": {"n": "1", "gone": "0"},
    "inputs": {"flights": "abc123456", "gone": "x"},
    "library": {"m": "1", "old": "1"},
    "python": "3.11",
}


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, []),
        ({"contract": "x"}, ["contract"]),
        ({"code": "x"}, ["code"]),
        ({"parameters": {"n": "[1, 2]", "new": "1"}}, ["parameter n: 1 -> [1, 2]"]),
        ({"parameters": {"n": "9" * 50}}, ["parameter n: 1 -> " + "9" * 39 + "…"]),
        ({"inputs": {"flights": "def456789", "new": "y"}}, ["input flights: abc123 -> def456"]),
        ({"inputs": {"flights": None}}, ["input flights: abc123 -> none"]),
        ({"library": {"m": "2", "new": "1"}}, ["library m", "library new", "library old"]),
        ({"python": "3.13"}, ["python 3.11 -> 3.13"]),
        (
            {"code": "x", "contract": "y", "python": "3.12"},
            ["contract", "code", "python 3.11 -> 3.12"],
        ),
    ],
)
def test_a_key_says_what_changed(change, reasons):
    assert Key(BASE).changes(Key(BASE | change)) == reasons
    assert (Key(BASE).digest == Key(BASE | change).digest) == (not change)


def test_parts_of_a_key(write, env):
    p = write(FLIGHTS, "flights")
    parts = key(p["features"].bind({"months": "[3]"}), {"flights": "v1", "weather": "v2"}).parts
    assert parts["parameters"] == {
        "flights": "'flights'",
        "weather": "'weather'",
        "features": "'features'",
        "months": "[3]",
    }
    assert (
        parts["inputs"] == {"flights": "v1", "weather": "v2"}
        and parts["library"] == {}
        and parts["python"].startswith("3.")
    )
    assert (
        key(p["features"].bind({"months": [1, 2]}), {}).digest
        == key(p["features"], {}).digest
        != key(p["features"].bind({"months": [2, 1]}), {}).digest
    )
    assert json.loads(json.dumps(parts)) == parts


# The cache


def test_the_cache_keeps_entries_and_survives_rubbish(env):
    cache, k = Cache(env, "p"), Key(BASE)
    assert cache.get("a") is None
    entry = cache.put("a", k, {"flights": ("dataset", "v1")}, run="r1", seconds=1.5, rows=10)
    assert (
        cache.get("a") == entry
        and entry.outputs == {"flights": ["dataset", "v1"]}
        and entry.finished.startswith("20")
        and os.listdir(cache.folder) == ["a.json"]
    )
    assert (
        Cache(env, SimpleNamespace(name="p")).get(SimpleNamespace(name="a")) == entry
        and Cache(env, "q").get("a") is None
    )
    whole = (cache.folder / "a.json").read_text()
    for rubbish in (
        "",
        whole[:-9],
        "[]",
        "{}",
        '{"key": {}, "outputs": {}}',
        '{"outputs": {}}',
        whole.replace('"rows"', '"row"'),
    ):
        (cache.folder / "a.json").write_text(rubbish)
        assert cache.get("a") is None
    (cache.folder / "a.json").write_bytes(b"\xff\xfe")
    assert cache.get("a") is None


def test_an_entry_is_replaced_as_a_whole(env, monkeypatch):
    cache = Cache(env, "p")
    entry = cache.put("a", Key(BASE), {}, run="r1")
    monkeypatch.setattr(
        "scalai_nb.pipeline.staleness.json.dump",
        lambda record, file, **kw: (file.write("{"), 1 / 0),
    )
    with pytest.raises(ZeroDivisionError):
        cache.put("a", Key(BASE), {}, run="r2")
    monkeypatch.undo()
    assert cache.get("a") == entry and os.listdir(cache.folder) == ["a.json"]
    threads = [
        threading.Thread(
            target=lambda i=i: [
                cache.put("a", Key(BASE), {}, run=f"r{i}", seconds=j) and cache.get("a") or 1 / 0
                for j in range(20)
            ]
        )
        for i in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert cache.get("a").seconds == 19 and os.listdir(cache.folder) == ["a.json"]


# The plan


class World:
    "Versions of everything, and a runner that only pretends"

    def __init__(self, env, write, steps=FLIGHTS):
        self.env, self.write, self.versions, self.count = env, write, {}, 0
        write(steps, "flights")

    def head(self, kind, name, ref=None):
        return self.versions.get(name)

    def plan(self, overrides=None, **kw):
        return Plan.make(
            Pipeline.load("flights", self.env, overrides), self.env, head=self.head, **kw
        )

    def why(self, *args, **kw):
        return {p.step.name: p.reasons for p in self.plan(*args, **kw).steps if p.status == "stale"}

    def run(self, *args, **kw):
        plan, ran = self.plan(*args, **kw), []
        for p in plan.steps:
            now = plan.decide(p.step.name, self.versions)
            if now.status == "stale":
                ran.append(p.step.name)
                for ref in p.step.writes.values():
                    self.count += 1
                    self.versions[ref.name] = f"v{self.count:05}x"
                plan.cache.put(
                    p.step,
                    now.key,
                    {r.name: (r.kind, self.versions[r.name]) for r in p.step.writes.values()},
                    run="r",
                    seconds=2.0,
                )
        return ran


@pytest.fixture
def world(env, write):
    return World(env, write)


def test_a_second_run_finds_everything_in_the_cache(world):
    assert world.why() == {n: ["never run"] for n in NAMES}
    assert world.run() == NAMES and world.why() == {} and world.run() == []


AFTER_TRAIN = ["evaluate", "release", "replay"]


@pytest.mark.parametrize(
    ("stem", "code", "ran"),
    [
        ("05_evaluate", "y = 2", AFTER_TRAIN),
        ("07_replay", "import scalai_nb as sn\nsn.drift()", ["replay"]),
        (
            "01_ingest",
            "import scalai_nb as sn\nsn.from_frame\n1",
            [n for n in NAMES if n != "use_case"],
        ),
        ("05_evaluate", "# prose\ny   = 1   # more", []),
        ("00_use_case", "", []),
    ],
)
def test_a_change_of_code_runs_what_depends_on_it(world, stem, code, ran):
    world.run()
    world.write(
        {stem: (FLIGHTS[stem][0], code)}, "flights", heading="# New words\n\n> Other promise"
    )
    assert [n for n, why in world.why().items() if "code" in why] == ran[:1]
    assert list(world.why()) == ran and world.run() == ran


def test_why_says_which_part_changed(world):
    world.run()
    world.write(
        {"04_train": (FLIGHTS["04_train"][0].replace("n: int = 1", "n: float = 1.0"), "n + 1")},
        "flights",
    )
    assert world.why()["train"] == ["contract", "parameter n: 1 -> 1.0"]
    world.write({"04_train": FLIGHTS["04_train"]}, "flights")
    why = world.why({"features": {"months": "[1, 2, 3]"}})
    assert (
        why["features"] == ["parameter months: [1, 2] -> [1, 2, 3]"]
        and why["train"] == ["after features"]
        and why["evaluate"] == ["after features", "after train"]
    )
    assert "use_case" not in why and "quality" not in why


def test_a_default_passed_by_hand_changes_nothing(world):
    world.run()
    assert world.why({"features": {"months": "[1,2]"}}) == {}
    assert (
        world.run({"features": {"months": "[3]"}})
        and world.why({"features": {"months": "[3]"}}) == {}
        and "features" in world.why()
    )


def test_touching_the_library_runs_only_what_uses_it(world, tmp_path):
    package = tmp_path / "scalai_nb"
    world.run()
    (package / "describe/drift.py").write_text(
        'def drift(a, b):\n    "What moved"\n    return a - b  # so far'
    )
    assert world.why() == {}
    (package / "describe/drift.py").write_text("def drift(a, b): return b - a")
    assert world.why() == {"replay": ["library scalai_nb.describe.drift"]}
    (package / "describe/summary.py").write_text("from .drift import drift")
    assert world.why() == {
        "quality": ["library scalai_nb.describe.drift", "library scalai_nb.describe.summary"],
        "replay": ["library scalai_nb.describe.drift"],
    }


def test_outputs_that_somebody_touched(world):
    world.run()
    world.versions["quality"] = "by hand"
    del world.versions["evaluation"]
    why = world.why()
    assert why == {
        "quality": ["output quality was changed since"],
        "evaluate": ["output evaluation is gone"],
        "release": ["after evaluate"],
        "replay": ["after release"],
    }


def test_inputs_from_outside(env, write):
    world = World(
        env,
        write,
        {"01_a": "raw: In = 'raw@v1'; m: In[Model] = 'm'; a: Out = 'a'", "02_b": "a: In = 'a'"},
    )
    world.versions.update(raw="abcdef1", m="1")
    plan = world.plan()
    assert plan.steps[0].inputs == {"raw@v1": "abcdef1", "m": "1"} and plan.steps[1].inputs == {}
    world.run()
    world.versions["raw"], world.versions["m"] = "ghijkl1", "2"
    assert world.why() == {
        "a": ["input raw@v1: abcdef -> ghijkl", "input m: 1 -> 2"],
        "b": ["after a"],
    }


def test_forcing(world):
    assert world.run() and world.why(force=True) == {
        n: ["forced"] + [f"after {b}" for b in NAMES if b in world.plan().pipeline.before(n)]
        for n in NAMES
    }
    assert (
        list(world.why(from_step="04_train")) == ["train", *AFTER_TRAIN]
        and world.run(from_step="train") == ["train", *AFTER_TRAIN]
        and world.run(force=True) == NAMES
    )
    assert (
        world.plan(from_step="train").decide("replay", world.versions).reasons == ["forced"]
        and world.plan().decide("replay", world.versions).reasons == []
    )
    with pytest.raises(
        ParameterError, match="'trian' is not in the steps of flights; .*Did you mean 'train'"
    ):
        world.why(from_step="trian")


def test_a_rerun_that_writes_the_same_version_stops_there(world):
    "The plan says `after`; the runner, knowing the version, finds the next step cached"
    world.run()
    world.write({"03_features": (FLIGHTS["03_features"][0], "x = 2")}, "flights")
    plan = world.plan()
    assert [p.status for p in plan.steps if p.step.name == "train"] == ["stale"]
    assert plan.decide("train", {"features": world.versions["features"]}).status == "cached"
    assert plan.decide("train", {}).status == "cached" and plan.decide(
        "train", {"features": "other12"}
    ).reasons == [f"input features: {world.versions['features'][:6]} -> other1"]


def test_a_plan_as_json(world):
    world.run()
    d = json.loads(json.dumps(world.plan({"features": {"months": [9]}}).to_dict()))
    step = next(s for s in d["steps"] if s["name"] == "features")
    assert (
        d["pipeline"],
        step["status"],
        step["writes"],
        step["seconds"],
        step["run"],
        step["title"],
    ) == ("flights", "stale", ["features"], 2.0, "r", "A step")
    assert (
        ["ingest", "features", "weather"] in d["edges"]
        and step["inputs"]["flights"] == world.versions["flights"]
        and step["reads"] == ["flights", "weather"]
    )


# The drawing


def drawn(plan, width=100):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    with console.file:
        console.print(draw_plan(plan))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_drawing_fits_100_columns_and_says_why(world):
    assert drawn(world.plan())[-1] == "8 of 8 steps have to run."
    world.run()
    assert drawn(world.plan())[-1] == "Every step is cached: nothing has to run." and drawn(
        world.plan()
    )[0].startswith("✓ ")
    world.write({"05_evaluate": (FLIGHTS["05_evaluate"][0], "y = 2")}, "flights")
    lines = drawn(world.plan({"features": {"months": [1, 2, 3]}}))
    assert (
        max(map(len, lines)) <= 100
        and lines[-1] == "5 of 8 steps have to run; they took 10.0 s last time."
    )
    find = lambda name: next(i for i, line in enumerate(lines) if f" {name} " in line)
    assert (
        "●" in lines[find("features")]
        and "parameter months: [1, 2] -> [1, 2, 3]" in lines[find("features")]
        and lines[find("features")].endswith("2.0 s")
    )
    assert (
        "○" in lines[find("train")]
        and "after features" in lines[find("train")]
        and "features → late-flight" in lines[find("train") + 1]
    )
    assert (
        "●" in lines[find("evaluate")]
        and "code" in lines[find("evaluate")]
        and "after features, train" in lines[find("evaluate") + 1]
        and "cached" in lines[find("ingest")]
    )
    assert max(map(len, drawn(world.plan(), 60))) <= 60


def graph(edges, n):
    "A pipeline of `n` steps, of which only the graph matters"
    names = [f"s{i}" for i in range(n)]
    return Pipeline(
        "g",
        None,
        [SimpleNamespace(name=name) for name in names],
        [Edge(names[a], names[b], "x") for a, b in edges],
    )


@settings(deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.sets(
                st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(
                    lambda e: e[0] < e[1]
                ),
                max_size=25,
            ),
        )
    )
)
def test_the_rails_can_be_followed(case):
    "From the drawing alone, each step's rails lead back to exactly the steps that it waits for"
    n, edges = case
    owner, above = {}, ""
    for i, (left, right, below) in enumerate(_lanes(graph(edges, n))):
        row, at = left + "●" + right, len(left) // 2
        assert len(left) % 2 == 0
        joined = {c for c in range(len(row) // 2 + 1) if row[2 * c : 2 * c + 1] in tuple("├┼┤╰┴╯")}
        if above[2 * at : 2 * at + 1] == "│":
            joined.add(at)
        assert {owner[c] for c in joined} == {a for a, b in edges if b == i}
        for c in joined - {at}:  # a horizontal line runs all the way from the mark
            low, high = sorted((c, at))
            assert set(row[2 * low + 1 : 2 * high]) <= set("─┼┴│├┤╰╯") and all(
                row[x] == "─" for x in range(2 * low + 1, 2 * high, 2)
            )
        ends = {c for c in joined if row[2 * c] in "╰┴╯"}
        assert not any(below[2 * c : 2 * c + 1] == "│" for c in ends)
        owner[at], above = i, below
        assert (below[2 * at : 2 * at + 1] == "│") == any(a == i for a, _ in edges)
