"Versions, aliases, the way back, a history that shows an edit; one promoter wins, no crash loses"

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression

from scalai_nb.errors import (
    Conflict,
    ContractViolation,
    ModelMismatch,
    ModelNotFound,
    ParameterError,
    VersionNotFound,
)
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.registry import catalog
from scalai_nb.models.registry.history import append
from scalai_nb.models.package.package import package
from scalai_nb.models.registry.registry import Registry
from scalai_nb.tracking.mlflow_sink import client

HOURS = xr.Dataset({"hour": ("row", np.arange(24.0))})


def late_after(hour):
    t = Transform(["hour"]).fit(HOURS)
    return package(
        t, LogisticRegression().fit(t.transform(HOURS).values, HOURS.hour > hour), name="late"
    )


@pytest.fixture(scope="module")
def model():
    return late_after(15)


@pytest.fixture
def four(registry, model):
    "A registry with four versions of `late`, none promoted"
    for auc in (0.70, 0.71, 0.72, 0.73):
        registry.register(model, "late", metrics={"auc": auc})
    return registry


def aliases(registry):
    return {a: v.version for v in registry.versions("late") for a in v.aliases}


def test_register_and_get(registry, model):
    first = registry.register(
        model, "late", metrics={"auc": np.float32(0.5)}, tags={"run": "r1", "step": 6}
    )
    second = registry.register(model, "late")
    assert (first.version, second.version, str(second)) == (1, 2, "late@2")
    assert (
        first.metrics == {"auc": 0.5}
        and first.tags == {"run": "r1", "step": "6"}
        and second.tags == {}
    )
    assert (
        first.path == Path(registry.env.models) / "late" / "1"
        and (first.path / "model.onnx").is_file()
    )
    assert registry.names() == ["late"] and registry.versions("late") == [second, first]
    assert (
        registry.get("late", 1)
        == registry.get("late", "1")
        == registry.get("late@1")
        == registry.get("late@1", "latest")
        == first
    )
    assert registry.get("late", "latest") == second
    np.testing.assert_array_equal(registry.load("late", 1).predict(HOURS), model.predict(HOURS))
    assert sorted(p.name for p in first.path.parent.iterdir()) == ["1", "2"]


def test_register_as_challenger(four, model):
    four.promote("late", 2)
    v = four.register(model, "late", alias="challenger")
    assert v.aliases == ("challenger",) and aliases(four) == {"champion": 2, "challenger": 5}
    assert (
        four.register(model, "late", alias="challenger").version == 6
        and aliases(four)["challenger"] == 6
    )
    with pytest.raises(ParameterError, match="'previous' cannot be given"):
        four.register(model, "late", alias="previous")
    assert len(four.versions("late")) == 6


def test_another_contract_than_the_champion_has(four, model):
    "It needs a column that nobody sends"
    minutes = HOURS.assign(minute=HOURS.hour * 60)
    t = Transform(["hour", "minute"]).fit(minutes)
    other = package(
        t, LogisticRegression().fit(t.transform(minutes).values, minutes.hour > 15), name="late"
    )
    assert four.register(other, "late").version == 5  # nobody serves yet
    four.promote("late", 1)
    with pytest.raises(
        ContractViolation,
        match=(
            "another contract than late@1, which serves: it needs 'minute', a number, .* "
            "contract=.new. if that is meant"
        ),
    ):
        four.register(other, "late")
    assert len(four.versions("late")) == 5 and sorted(
        p.name for p in four.get("late").path.parent.iterdir()
    ) == ["1", "2", "3", "4", "5", "history.jsonl"]
    assert (
        four.register(other, "late", contract="new").version == 6
        and four.register(other, "later").version == 1
    )
    four.promote("late", 6)
    assert four.register(model, "late").version == 7  # it asks for less
    with pytest.raises(ParameterError, match='contract=.old. is not known; accepted: "new"'):
        four.register(model, "late", contract="old")


def test_a_broken_champion_is_replaced_knowingly(four, model):
    four.promote("late", 1)
    (four.get("late").path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelMismatch, match="model.onnx is not the file"):
        four.register(model, "late")
    assert four.register(model, "late", contract="new").version == 5


def test_a_verdict_moves_nothing(four):
    four.promote("late", 1)
    v = four.judged(
        "late", 2, "refused: late fails auc", by="gate", evidence={"gate": {"passed": False}}
    )
    assert v.version == 2 and aliases(four) == {"champion": 1}
    last = four.history("late")[-1]
    assert (last["action"], last["version"], last["former"], last["alias"], last["by"]) == (
        "judge",
        2,
        1,
        "",
        "gate",
    ) and four.verify("late") == 2
    four.promote("late", 2)
    four.judged("late", 3, "passed", evidence={})
    assert (
        four.rollback("late").version == 1
        and aliases(four) == {"champion": 1}
        and four.verify("late") == 5
    )


def test_what_is_not_there(four, tmp_path):
    with pytest.raises(
        ModelNotFound, match="'lat' is not in the registry; known: late. Did you mean 'late'"
    ):
        four.get("lat")
    with pytest.raises(
        VersionNotFound,
        match="'champion' is not in the versions and aliases of late; known: 1, 2, 3, 4, latest",
    ):
        four.get("late")
    with pytest.raises(VersionNotFound, match="'9'"):
        four.promote("late", 9)
    with pytest.raises(ModelNotFound):
        four.rollback("lat")
    assert four.history("late") == []


def test_asking_makes_nothing(tmp_path):
    empty = Registry(
        SimpleNamespace(
            models=str(tmp_path / "models"), tracking=f"sqlite:///{tmp_path}/tracking.db"
        )
    )
    assert empty.names() == []
    for ask in (empty.get, empty.history, empty.versions, empty.load):
        with pytest.raises(ModelNotFound, match="known: none"):
            ask("late")
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_no_mlflow(four):
    four.promote("late", 2)
    code = f"""
    import sys
    from types import SimpleNamespace
    from scalai_nb.models.registry.registry import Registry
    r = Registry(SimpleNamespace(**{vars(four.env)!r}))
    print(r.get("late").version, len(r.versions("late")), len(r.history("late")), \
"mlflow" in sys.modules, "xarray" in sys.modules)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["2", "4", "1", "False", "False"]


def test_the_file_and_mlflow_say_the_same(four):
    four.promote("late", 2)
    four.promote("late", 3)
    four.promote("late", 3, alias="shadow")
    c = client(four.env)
    c.delete_model_version("late", "4")
    shown = lambda rows: [
        (name, v, created, dict(tags), sorted(a)) for name, v, created, tags, a in rows
    ]
    rows = shown(four._rows())
    assert rows == shown(catalog._rows_of_server(c)) and [r[1] for r in rows] == [1, 2, 3]
    assert [r[4] for r in rows] == [[], ["previous"], ["champion", "shadow"]]


def test_many_pages(four):
    c = client(four.env)
    for size in (1, 2, 3, 4, 5):
        assert sorted(
            int(v.version)
            for v in catalog._every(c.search_model_versions, "name='late'", size=size)
        ) == [1, 2, 3, 4]
    assert catalog._every(c.search_model_versions, "name='lat'") == []


def test_promotions_and_the_way_back(four):
    for version in (1, 2, 4):
        four.promote(
            "late",
            version,
            reason=f"better than {version - 1}",
            by="Ada",
            evidence={"gate": "passed"},
        )
    assert aliases(four) == {"champion": 4, "previous": 2}
    assert four.rollback("late", "alarms", by="Grace").version == 2 and aliases(four) == {
        "champion": 2,
        "previous": 1,
    }
    assert four.rollback("late").version == 1 and aliases(four) == {"champion": 1}
    with pytest.raises(VersionNotFound, match="no champion before 1"):
        four.rollback("late")
    four.promote("late", 3)
    assert aliases(four) == {"champion": 3, "previous": 1}
    first, *_, fourth, fifth, sixth = history = four.history("late")
    assert (first["action"], first["by"], first["reason"], first["former"]) == (
        "promote",
        "Ada",
        "better than 0",
        None,
    )
    assert first["evidence"] == {
        "digest": four.get("late", 1).digest,
        "metrics": {"auc": 0.70},
        "gate": "passed",
    }
    assert (fourth["action"], fourth["by"], fourth["version"], fourth["former"]) == (
        "rollback",
        "Grace",
        2,
        4,
    )
    assert (
        fifth["by"] and sixth["time"] > first["time"] and four.verify("late") == len(history) == 6
    )


def test_another_alias_leaves_the_champion_alone(four):
    four.promote("late", 1)
    four.promote("late", 2)
    four.promote("late", "latest", alias="challenger")
    assert aliases(four) == {"champion": 2, "previous": 1, "challenger": 4}
    four.promote("late", "challenger")
    assert aliases(four) == {"champion": 4, "previous": 2}  # a champion is no challenger
    four.promote("late", 3, alias="challenger")
    assert four.rollback("late").version == 2 and aliases(four) == {
        "champion": 2,
        "previous": 1,
        "challenger": 3,
    }


def test_promoting_the_champion_again_writes_nothing(four):
    four.promote("late", 2)
    assert four.promote("late", 2).version == 2 and len(four.history("late")) == 1


def test_an_alias_set_by_hand_is_respected(four):
    "Somebody used MLflow's own interface"
    four.promote("late", 1)
    client(four.env).set_registered_model_alias("late", "champion", "3")
    four.promote("late", 2)
    assert (
        aliases(four) == {"champion": 2, "previous": 3} and four.history("late")[-1]["former"] == 3
    )
    assert four.rollback("late").version == 3
    client(four.env).set_registered_model_alias("late", "champion", "4")
    assert four.rollback("late").version == 3 and aliases(four) == {"champion": 3, "previous": 1}


def test_expected(four):
    four.promote("late", 1, expected=0)
    for wrong in (0, 2):
        with pytest.raises(Conflict, match="late@champion is version 1 and not"):
            four.promote("late", 3, expected=wrong)
        with pytest.raises(Conflict):
            four.rollback("late", expected=wrong)
    assert aliases(four) == {"champion": 1} and len(four.history("late")) == 1


def together(*calls):
    "Call all at once; results or exceptions"
    barrier = Barrier(len(calls))

    def run(call):
        barrier.wait()
        try:
            return call()
        except Exception as e:
            return e

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_of_two_promoters_one_wins(four):
    four.promote("late", 1)
    for round in range(4):
        seen = four.get("late").version
        rivals = [v for v in (1, 2, 3, 4) if v != seen][:2]
        results = together(
            *(
                lambda v=v, seen=seen: Registry(four.env).promote("late", v, expected=seen)
                for v in rivals
            )
        )
        lost = [r for r in results if isinstance(r, Conflict)]
        won = [r for r in results if not isinstance(r, Exception)]
        assert len(lost) == len(won) == 1 and four.get("late").version == won[0].version
        assert four.verify("late") == round + 2


def test_of_two_processes_one_wins(four, tmp_path):
    "Two people at two terminals, who both saw version 1"
    four.promote("late", 1)
    code = f"""
    import sys, time
    from pathlib import Path
    from types import SimpleNamespace
    from scalai_nb.errors import Conflict
    from scalai_nb.models.registry.registry import Registry
    from scalai_nb.tracking.mlflow_sink import client
    r, mine = Registry(SimpleNamespace(**{vars(four.env)!r})), sys.argv[1]
    client(r.env)
    Path("{tmp_path}", f"ready{{mine}}").touch()
    while not all(Path("{tmp_path}", f"ready{{n}}").exists() for n in (2, 3)): time.sleep(0.001)
    try: print("won", r.promote("late", mine, expected=1, by=mine).version)
    except Conflict as e: print("lost", e)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = lambda n: subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(n)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = sorted(p.communicate(timeout=120)[0].strip() for p in [start(2), start(3)])
    winner = four.get("late").version
    assert said == [
        (
            f"lost late@champion is version {winner} and not 1, as it was when you looked; look "
            "again, then decide."
        ),
        f"won {winner}",
    ]
    assert four.verify("late") == 2 and four.history("late")[-1]["by"] == str(winner)


def test_without_the_lock_both_would_win(four, monkeypatch):
    from contextlib import nullcontext

    four.promote("late", 1)
    barrier, record = Barrier(2), Registry._record
    monkeypatch.setattr(Registry, "_lock", lambda self: nullcontext())
    monkeypatch.setattr(Registry, "_record", lambda *a: (barrier.wait(), record(*a))[1])
    results = together(
        *(lambda v=v: Registry(four.env).promote("late", v, expected=1) for v in (2, 3))
    )
    assert not any(isinstance(r, Conflict) for r in results)


def test_registering_at_once_numbers_all(registry, model):
    results = together(*(lambda: Registry(registry.env).register(model, "late") for _ in range(4)))
    assert sorted(v.version for v in results) == [1, 2, 3, 4]
    assert all((v.path / "manifest.json").is_file() for v in results)


def test_a_promoter_killed_in_the_middle_has_promoted(four):
    four.promote("late", 1)
    code = f"""
    import os, signal
    from types import SimpleNamespace
    from scalai_nb.models.registry import registry
    registry._apply = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    registry.Registry(SimpleNamespace(**{vars(four.env)!r})).promote("late", 2)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (
        aliases(four) == {"champion": 1} and four.verify("late") == 2
    )  # MLflow was not told, and the lock is free
    with pytest.raises(Conflict, match="is version 2 and not 1"):
        four.promote("late", 3, expected=1)
    assert aliases(four) == {"champion": 2, "previous": 1}


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [lines[0].replace("Ada", "Eve"), *lines[1:]],
        lambda lines: [*lines[:2], lines[2].replace("Ada", "Eve")],
        lambda lines: [*lines[:2], lines[2].replace('"version": 3', '"version": 4')],
        lambda lines: lines[:1] + lines[2:],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [*lines[:2], lines[2][:-20]],
        lambda lines: lines[:1],
        lambda lines: [],
    ],
    ids=["first", "last", "version", "removed", "swapped", "torn", "cut short", "emptied"],
)
def test_an_edited_history_is_found(four, edit):
    for version in (1, 2, 3):
        four.promote("late", version, by="Ada")
    assert four.verify("late") == 3
    path = four._history("late")
    path.write_text("".join(line + "\n" for line in edit(path.read_text().splitlines())))
    with pytest.raises(ModelMismatch, match="restore the file"):
        four.verify("late")


def test_a_history_written_anew_is_found(four):
    "A whole chain with right hashes, but not the one that MLflow saw"
    four.promote("late", 1, by="Ada")
    four.promote("late", 2, by="Ada")
    path = four._history("late")
    records = [
        {k: v for k, v in r.items() if k not in ("hash", "before")} | {"by": "Eve"}
        for r in four.history("late")
    ]
    path.unlink()
    for record in records:
        append(path, record)
    with pytest.raises(ModelMismatch, match="does not end with the last promotion"):
        four.verify("late")


def test_a_full_disk_leaves_the_history_whole(four, monkeypatch):
    four.promote("late", 1)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        four.promote("late", 2)
    monkeypatch.undo()
    assert four.verify("late") == 1 and aliases(four) == {"champion": 1}
    assert four.promote("late", 3).version == 3 and four.verify("late") == 2


def test_a_broken_package_is_not_promoted(four):
    four.promote("late", 1)
    (four.get("late", 2).path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelMismatch, match="model.onnx is not the file that was packaged"):
        four.promote("late", 2)
    assert aliases(four) == {"champion": 1} and len(four.history("late")) == 1


def test_another_package_in_its_place_is_refused(four):
    v = four.get("late", 1)
    shutil.rmtree(v.path)
    late_after(10).save(v.path)
    with pytest.raises(ModelMismatch, match="not the package that was registered as late@1"):
        four.load("late", 1)
    shutil.rmtree(v.path)
    with pytest.raises(ModelNotFound, match="no model package"):
        four.load("late", 1)


def test_files_of_a_lost_version_are_not_overwritten(registry, model):
    stray = Path(registry.env.models) / "late" / "1"
    stray.mkdir(parents=True)
    (stray / "mine.txt").write_text("keep")
    with pytest.raises(Conflict, match="move it away"):
        registry.register(model, "late")
    assert (
        registry.names() == []
        and (stray / "mine.txt").read_text() == "keep"
        and [p.name for p in stray.parent.iterdir()] == ["1"]
    )


@pytest.mark.parametrize("name", ["", "a/b", "../late", "late@1", ".late", "late flight"])
def test_names_that_cannot_be(registry, model, name):
    with pytest.raises(ParameterError, match="cannot name a model"):
        registry.register(model, name)
    assert not Path(registry.env.models).exists()


def test_tags_that_cannot_be(registry, model):
    with pytest.raises(ParameterError, match="does not take the tags of late: .*a@b"):
        registry.register(model, "late", tags={"a@b": 1})
    assert registry.names() == [] and list((Path(registry.env.models) / "late").iterdir()) == []


@pytest.mark.parametrize("alias", ["latest", "previous", "3", "v3", "", "Champion!"])
def test_aliases_that_cannot_be(four, alias):
    with pytest.raises(ParameterError, match="cannot be given"):
        four.promote("late", 1, alias=alias)
    assert aliases(four) == {}


def test_history_is_one_json_object_a_line(four):
    four.promote("late", 1, reason="line\nbreak, “quotes”")
    (line,) = four._history("late").read_text().splitlines()
    assert json.loads(line)["reason"] == "line\nbreak, “quotes”"


# ---- a server


@pytest.mark.slow
def test_over_a_server(mlflow_server, model, tmp_path):
    "The same registry, whose names and aliases are on an MLflow server"
    registry = Registry(SimpleNamespace(models=str(tmp_path / "models"), tracking=mlflow_server))
    with pytest.raises(ModelNotFound, match="known: none"):
        registry.get("late")
    for auc in (0.70, 0.71, 0.72):
        registry.register(model, "late", metrics={"auc": auc}, tags={"run": "r1"})
    registry.register(model, "other", alias="challenger")
    assert registry.names() == ["late", "other"] and [
        v.version for v in registry.versions("late")
    ] == [3, 2, 1]
    assert registry.get("late@2").metrics == {"auc": 0.71} and registry.get("late@2").tags == {
        "run": "r1"
    }
    registry.promote("late", 1, expected=0)
    registry.promote("late", 3, alias="challenger")
    registry.promote("late", "challenger", by="Ada", expected=1)
    assert (
        aliases(registry) == {"champion": 3, "previous": 1}
        and registry.get("other", "challenger").version == 1
    )
    results = together(
        *(lambda v=v: Registry(registry.env).promote("late", v, expected=3) for v in (1, 2))
    )
    assert sorted(type(r).__name__ for r in results) == ["Conflict", "ModelVersion"]
    assert registry.rollback("late", "alarms").version == 3 and aliases(registry) == {
        "champion": 3,
        "previous": 1,
    }
    assert [r["action"] for r in registry.history("late")] == [
        "promote",
        "promote",
        "promote",
        "promote",
        "rollback",
    ] and registry.verify("late") == 5
    np.testing.assert_array_equal(registry.load("late").predict(HOURS), model.predict(HOURS))
    path = registry._history("late")
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:3]))
    with pytest.raises(ModelMismatch, match="does not end with the last promotion"):
        registry.verify("late")
