"""Scoring a dataset offline: the scores of Model.predict, whatever the blocks and wherever scored

Whole or not at all, and resumed.
"""

import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

import scalai_nb as sn
from scalai_nb.data.categories import coded
from scalai_nb.errors import (
    Conflict,
    ContractViolation,
    DatasetNotFound,
    ModelNotFound,
    ParameterError,
    WorkFailed,
)
from scalai_nb.serving import offline as batch
from scalai_nb.serving.offline import Destination, score

ROWS = 7003


@pytest.fixture(scope="module")
def flights():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "flight": ("row", np.arange(ROWS)),
            "temp": ("row", np.where(rng.random(ROWS) < 0.05, np.nan, rng.normal(50, 20, ROWS))),
            "hour": ("row", rng.integers(5, 23, ROWS)),
            "carrier": (
                "row",
                rng.integers(-1, 2, ROWS).astype("i1"),
                {"categories": ["AA", "UA"]},
            ),
            "tail": ("row", rng.choice(np.array(["N1", "N2", None], object), ROWS)),
            "at": ("row", np.datetime64("2013-01-01", "us") + np.arange(ROWS).astype("m8[m]")),
            "late": ("row", rng.random(ROWS) < 0.3),
        }
    )


@pytest.fixture(scope="module")
def models(flights):
    "By kind: each takes numbers, a time, categories and strings"
    t = sn.Transform(["temp", "hour", "at"], ["carrier", "tail"]).fit(flights)
    contract = sn.Contract.infer(flights, label="late", key="flight", time="at")
    X, y = t.transform(flights), flights.late.values
    return {
        "linear": sn.package(t, sn.LogisticRegression().fit(X, y), contract, name="late"),
        "trees": sn.package(
            t, sn.BoostedTrees(rounds=20, max_depth=3).fit(X, y), contract, name="late"
        ),
    }


@pytest.fixture
def model(models):
    return models["trees"]


@pytest.fixture
def env(tmp_path):
    return SimpleNamespace(lake=str(tmp_path / "lake"))


@pytest.fixture
def lake(env):
    return sn.Lake(env.lake)


@pytest.fixture(scope="module")
def client():
    with sn.connect(sn.environment("laptop", workers=2, cluster="local")) as client:
        yield client


def parquet(ds, folder: Path) -> Path:
    "Rows as Parquet, in row groups of 500"
    table = pa.Table.from_pandas(sn.to_frame(ds), preserve_index=False)
    folder.mkdir()
    for i, start in enumerate(range(0, len(table), 3000)):
        pq.write_table(table.slice(start, 3000), folder / f"{i}.parquet", row_group_size=500)
    return folder


def kept(lake) -> list[str]:
    return sorted(p.name for p in (lake.path / ".scoring").glob("*/*.npy"))


# ---- the same scores


@pytest.mark.parametrize("kind", ["linear", "trees"])
@pytest.mark.parametrize("block", [1, 77, 2500, 10**6])
def test_the_cut_changes_nothing(models, flights, env, kind, block):
    some = flights.isel(row=slice(0, 2001)) if block == 1 else flights  # 2,000 are many
    expected = models[kind].predict(some)
    lazy = some.chunk(row=max(block, 50))
    for data in (lazy,) if block == 1 else (some, lazy):
        assert np.array_equal(score(data, models[kind], block=block, env=env), expected)


def test_few_rows_are_scored_as_predict_scores_few(model, flights, env):
    few = flights.isel(row=slice(0, 1500))
    assert np.array_equal(score(few, model, block=100, env=env), model.predict(few))


def test_each_source_gives_the_same(model, flights, env, lake, tmp_path):
    expected, folder = model.predict(flights), parquet(flights, tmp_path / "files")
    lake.write("flights", flights)
    for data in (
        "flights",
        lake.read("flights"),
        folder,
        str(folder),
        sorted(folder.iterdir()),
        pq.read_table(folder),
    ):
        assert np.array_equal(score(data, model, block=500, env=env), expected)
        score(data, model, to="scored", block=500, env=env)
        scored = lake.read("scored").compute()
        assert (
            np.array_equal(scored.score, expected)
            and np.array_equal(scored.flight, flights.flight)
            and np.array_equal(scored["at"], flights["at"])
        )


def test_rows_keep_their_coordinates(model, flights, env):
    known = flights.assign_coords(gate=("row", np.arange(ROWS)))
    assert (
        score(known, model, env=env)
        .compute()
        .drop_attrs()
        .identical(model.predict(known).drop_attrs())
    )


def test_a_cluster_gives_the_same(model, flights, env, lake, client, tmp_path):
    expected, folder = model.predict(flights), parquet(flights, tmp_path / "files")
    persisted = flights.chunk(row=900).persist()
    for data in (folder, flights.chunk(row=800), persisted, flights):
        assert np.array_equal(
            score(data, model, client=client, block=500, env=env).compute(), expected
        )
        score(data, model, to="scored", client=client, block=500, env=env)
        assert np.array_equal(lake.read("scored").score, expected)
    with pytest.raises(ParameterError, match="pass its client"):
        score(persisted, model, env=env)


# ---- models


def test_a_model_is_found_by_path_and_by_name(model, flights, registry, tmp_path):
    env = SimpleNamespace(**vars(registry.env), lake=str(tmp_path / "lake"))
    model.save(tmp_path / "package")
    registry.register(model, "late", alias="champion")
    expected = model.predict(flights)
    for given, version in (
        (tmp_path / "package", model),
        (str(tmp_path / "package"), model),
        ("late", "1"),
        ("late@champion", "1"),
        ("late@1", "1"),
    ):
        score(flights, given, to="scored", env=env)
        found = sn.Lake(env.lake).read("scored")
        assert np.array_equal(found.score, expected) and found.attrs["model"] == "late"
        assert found.attrs["version"] == (version if version == "1" else found.attrs["digest"][:12])
        assert (found.version == found.attrs["version"]).all()
    with pytest.raises(ModelNotFound, match="Did you mean 'late'"):
        score(flights, "lte", env=env)
    with pytest.raises(ModelNotFound):
        score(flights, "no/such/package", env=env)


# ---- whole or not at all


def test_the_scores_say_what_they_are_of(model, flights, env, lake):
    for _ in range(2):
        lake.write("flights", flights)
    old, new = reversed(lake.log("flights"))
    to = Destination("scored", name="risk", keep=["carrier", "tail"])
    version = score("flights", model, to=to, env=env)
    scored = lake.read("scored")
    assert (
        list(scored) == ["carrier", "tail", "risk", "version"]
        and scored.attrs["source"] == f"flights@{new.id}"
    )
    assert (
        version == lake.version("scored")
        and version.rows == ROWS
        and coded(scored.carrier).attrs == flights.carrier.attrs
    )
    score(f"flights@{old.id}", model, to="scored", env=env)
    assert lake.read("scored").attrs["source"] == f"flights@{old.id}" and [
        v.rows for v in lake.log("scored")
    ] == [ROWS, ROWS]
    assert not list((lake.path / ".scoring").glob("*/"))  # nothing is left behind
    with pytest.raises(ParameterError, match="cannot replace 'flights'"):
        score("flights", model, to="flights", env=env)
    with pytest.raises(DatasetNotFound, match="Did you mean 'flights'"):
        score("flihgts", model, to="scored", env=env)


def test_who_wrote_meanwhile_is_not_overwritten(model, flights, env, lake):
    def meddle(done, total):
        if done == total:
            lake.write("scored", flights[["flight"]], "somebody else's")

    for before in (False, True):
        if before:
            lake.write("scored", flights[["flight"]], "before")
        with pytest.raises(Conflict, match="somebody else's"):
            score(flights.chunk(row=2000), model, to="scored", env=env, block=500, progress=meddle)
        assert list(lake.read("scored")) == ["flight"]
        assert len(kept(lake)) == 4  # what was scored is not lost
        done = []
        score(
            flights.chunk(row=2000),
            model,
            to="scored",
            env=env,
            block=500,
            progress=lambda n, total, done=done: done.append(n),
        )
        assert done == [4] and "score" in lake.read("scored")


def test_two_of_the_same_job_do_not_meet(model, flights, env):
    def again(done, total):
        score(flights.chunk(row=2000), model, to="scored", env=env, block=500)

    with pytest.raises(Conflict, match="has been writing 'scored-"):
        score(flights.chunk(row=2000), model, to="scored", env=env, block=500, progress=again)


# ---- interrupted


def stop_at(n: int):
    "A progress that ends the job when `n` blocks are done"

    def progress(done, total):
        if done == n:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("where", ["here", "cluster"])
def test_a_job_goes_on_where_it_was_interrupted(
    model, flights, env, lake, tmp_path, where, request
):
    folder, expected = parquet(flights, tmp_path / "files"), model.predict(flights)
    options = {
        "to": "scored",
        "env": env,
        "block": 500,
        "client": request.getfixturevalue("client") if where == "cluster" else None,
    }
    with pytest.raises(KeyboardInterrupt):
        score(folder, model, progress=stop_at(5), **options)
    before, done = kept(lake), []
    assert 5 <= len(before) < 15 and "scored" not in lake.names()
    times = {p: p.stat().st_mtime_ns for p in (lake.path / ".scoring").glob("*/*.npy")}

    def look(n, total):
        done.append(n)
        assert all(
            p.stat().st_mtime_ns == t for p, t in times.items()
        )  # what was done is not done again

    score(folder, model, progress=look, **options)
    assert done[0] >= 5 and done[-1] == 15 and np.array_equal(lake.read("scored").score, expected)


def test_other_data_another_model_or_resume_false_begin_anew(models, flights, env, lake, tmp_path):
    folder = parquet(flights, tmp_path / "files")

    def first(data, model, **options):
        "How many blocks are done when a job begins; it is ended after two more"
        seen = []

        def progress(done, total):
            seen.append(done)
            if len(seen) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            score(data, model, to="scored", env=env, block=500, progress=progress, **options)
        return seen[0]

    assert first(folder, models["trees"]) == 0
    assert first(folder, models["trees"]) >= 2
    assert first(folder, models["linear"]) == 0
    assert first(folder, models["trees"], resume=False) == 0
    os.utime(next(folder.iterdir()), (1, 1))
    assert first(folder, models["trees"]) == 0


def test_a_killed_worker_costs_its_blocks_only(model, flights, env, lake, tmp_path):
    folder = parquet(flights, tmp_path / "files")
    with sn.connect(sn.environment("laptop", workers=2, cluster="local")) as client:

        def kill(done, total):
            if done == 4:
                os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

        score(folder, model, to="scored", env=env, block=500, client=client, progress=kill)
    assert np.array_equal(lake.read("scored").score, model.predict(flights))


# ---- what is wrong


def test_errors_name_the_block(model, flights, env, tmp_path):
    folder = parquet(flights, tmp_path / "files")
    path = sorted(folder.iterdir())[1]
    path.write_bytes(path.read_bytes()[:4] + b"\xff" * 3000 + path.read_bytes()[3004:])
    with pytest.raises(WorkFailed, match=r"Block 6 \(from row 3000 on\).*1\.parquet"):
        score(folder, model, to="scored", env=env, block=500)
    with pytest.raises(ContractViolation, match="'hour'"):
        score(flights.drop_vars("hour"), model, env=env)
    with pytest.raises(ParameterError, match="An iterator does not say"):
        score(iter([flights]), model, env=env)


def test_memory_is_bounded_by_blocks_not_by_rows(model, flights, env, tmp_path, monkeypatch):
    "No more than two blocks are in work here"
    now, most, load = [0], [0], batch._scores

    def counted(*args):
        now[0] += 1
        most[0] = max(most[0], now[0])
        try:
            return load(*args)
        finally:
            now[0] -= 1

    monkeypatch.setattr(batch, "_scores", counted)
    score(parquet(flights, tmp_path / "files"), model, to="scored", env=env, block=500)
    assert 1 <= most[0] <= 2


def test_the_description_of_the_work_is_small(model, flights, tmp_path):
    "A task says where rows and package are; it does not carry them"
    blocks = sn.Blocks.of(parquet(flights, tmp_path / "files"), rows=500)
    assert max(len(pickle.dumps(p)) for p in batch._pieces(blocks)) < 3000
