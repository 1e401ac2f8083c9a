"""Boosted trees: the same wherever the rows are, interrupted or not, whichever worker dies

Memory is bounded; what is wrong is said before it costs.
"""

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import xgboost
from dask import array as da
from distributed import Client, LocalCluster
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

from scalai_nb.compute.cluster import connect
from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import Environment
from scalai_nb.errors import ContractViolation, ParameterError, WorkFailed
from scalai_nb.learn.trees import ranks
from scalai_nb.learn.trees.boosting import joined
from scalai_nb.learn.features.rows import Rows
from scalai_nb.learn.features.transform import Transform
from scalai_nb.learn.trees.trees import BoostedTrees, Execution

LOCAL = Environment(name="test", root=None, cluster="local", workers=2, memory=2_000_000_000)
N, F = 270_000, 6
NAMES = [f"x{i}" for i in range(F)]
RANDOM = {"params": {"subsample": 0.7, "colsample_bytree": 0.7, "colsample_bynode": 0.8}}


def data(n=N, seed=0, missing=0.05):
    "Features, one in twenty missing, and labels that need two of them at once"
    r = np.random.default_rng(seed)
    X = r.normal(size=(n, F)).astype(np.float32)
    y = X[:, 0] * X[:, 1] + r.normal(size=n) > 0
    X[r.random((n, F)) < missing] = np.nan
    return X, y


X, Y = data()
TABLE = xr.Dataset({**{n: ("row", X[:, i]) for i, n in enumerate(NAMES)}, "late": ("row", Y)})
LAZY = TABLE.chunk(row=50_000)


def grown(model) -> dict:
    "All that XGBoost writes of its trees, but for what was written on them"
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    return json.loads(booster.save_raw("json"))["learner"] | {"attributes": None}


class Enough(Exception):
    "What interrupts a fit"


def stop_at(round_):
    def progress(done, total):
        if done >= round_:
            raise Enough

    return progress


@contextlib.contextmanager
def interrupted():
    with pytest.raises(Enough):
        yield


# ---- scikit-learn's contract


@pytest.mark.parametrize(
    "estimator", [BoostedTrees(10), BoostedTrees(10, objective="reg:squarederror")]
)
def test_contract(estimator):
    done = check_estimator(estimator, on_skip=None, on_fail=None)
    left = {
        "check_array_api_input",  # it wants SCIPY_ARRAY_API
        "check_sample_weight_equivalence_on_dense_data",
    }  # XGBoost's quantiles of weighted rows are not those of repeated rows
    assert {c["check_name"] for c in done if c["status"] != "passed"} <= left


# ---- the same trees wherever the rows are


@pytest.fixture(scope="module")
def plain():
    "The trees of XGBoost itself"
    train = xgboost.QuantileDMatrix(X, Y)
    return grown(
        xgboost.train(
            {
                "objective": "binary:logistic",
                "seed": 0,
                "seed_per_iteration": True,
                "tree_method": "hist",
            },
            train,
            5,
        )
    )


def source(rows, X=X, y=Y):
    "Blocks in a buffer that is filled again and again"
    buffer = np.empty((rows, F), np.float32)

    def blocks():
        for i in range(0, len(X), rows):
            part = buffer[: len(X[i : i + rows])]
            part[:] = X[i : i + rows]
            yield part, y[i : i + rows]

    return Rows(blocks)


def stored(folder, kind):
    "The table in a lake, or in Parquet files"
    if kind == "parquet":
        pq.write_table(
            pa.table({n: TABLE[n].values for n in TABLE}),
            folder / "a.parquet",
            row_group_size=100_000,
        )
        return folder
    Lake(folder / "lake").write("flights", TABLE)
    return Lake(folder / "lake").read("flights")


@pytest.mark.parametrize(
    ("kind", "memory"),
    [
        *((k, None) for k in ("array", "dataset", "lazy", "dask", "source", "parquet", "lake")),
        ("array", "1 MB"),
        ("source", 10**6),
        ("lake", "1 MB"),
    ],
)
def test_the_trees_are_those_of_xgboost_wherever_the_rows_are(kind, memory, plain, tmp_path):
    given = {
        "array": lambda: (X, Y),
        "dataset": lambda: (TABLE, "late"),
        "lazy": lambda: (LAZY, "late"),
        "source": lambda: (source(10_000),),
        "dask": lambda: (da.from_array(X, chunks=(70_000, 4)), da.from_array(Y, chunks=70_000)),
    }.get(kind) or (lambda: (stored(tmp_path, kind), "late"))
    assert grown(BoostedTrees(5, execution=Execution(memory=memory)).fit(*given())) == plain


def test_a_transform_makes_the_features_on_the_way():
    t = Transform(numeric=NAMES[1:], categorical=["x0"]).fit(
        rounded := TABLE.assign(x0=TABLE.x0.fillna(0).round().astype(int))
    )
    whole = BoostedTrees(5).fit(t.transform(rounded), Y)
    model = BoostedTrees(5).fit(rounded.chunk(row=70_000), "late", transform=t)
    assert (
        grown(model) == grown(whole) == grown(BoostedTrees(5).fit(t.blocks(rounded, label="late")))
    )
    np.testing.assert_array_equal(
        model.predict_proba(rounded, transform=t), whole.predict_proba(t.transform(rounded))
    )
    assert (
        list(model.importance()) == list(whole.importance()) == t.feature_names
        and max(model.importance("total_gain"), key=model.importance("total_gain").get) == "x1"
    )


def test_small_blocks_are_joined_to_pages_and_survive_a_buffer_that_is_filled_again():
    pages = [
        (x.copy(), y.copy())
        for x, y, _ in joined(((X, y, None) for X, y in source(1000, X[:10_500], Y)), 2500 * F)
    ]
    assert [len(x) for x, *_ in pages] == [2500] * 4 + [500]
    np.testing.assert_array_equal(np.concatenate([x for x, *_ in pages]), X[:10_500])


def test_weights_and_classes_count_as_in_xgboost():
    w = np.random.default_rng(1).random(N).astype(np.float32)
    params = {"objective": "binary:logistic", "tree_method": "hist", "seed_per_iteration": True}
    theirs = xgboost.train(params, xgboost.QuantileDMatrix(X, Y, weight=w), 5)
    np.testing.assert_array_equal(
        BoostedTrees(5).fit(X, Y, w).predict_proba(X)[:, 1], theirs.inplace_predict(X)
    )
    assert grown(BoostedTrees(5).fit(LAZY.assign(w=("row", w)), "late", "w")) == grown(
        BoostedTrees(5).fit(X, Y, w)
    )
    rare = np.flatnonzero(~Y | (np.arange(N) % 20 == 0))
    heavy = BoostedTrees(5, class_weight="balanced").fit(X[rare], Y[rare])
    assert (
        heavy.predict(X[rare]).mean()
        > 0.25
        > 0.05
        > BoostedTrees(5).fit(X[rare], Y[rare]).predict(X[rare]).mean()
    )


def test_classes_of_any_kind_and_numbers():
    name = np.array(["no", "maybe", "yes"], object)[(X[:, 2] > 0.5).astype(int) + Y]
    model = BoostedTrees(8).fit(X, name)
    assert (
        model.classes_.tolist() == ["maybe", "no", "yes"]
        and model.predict_proba(X[:9]).shape == (9, 3)
        and model.score(X, name) > 0.6
    )
    y = np.nan_to_num(X[:, 0]) ** 2
    numbers = BoostedTrees(30, objective="reg:squarederror").fit(X, y)
    assert (
        numbers.score(X, y) > 0.9
        and not hasattr(numbers, "predict_proba")
        and not hasattr(numbers, "classes_")
    )
    assert (BoostedTrees(8, objective="count:poisson").fit(X, np.round(y)).predict(X) >= 0).all()


def test_predictions_of_dask_arrays_are_lazy_and_a_model_survives_pickle():
    model = pickle.loads(pickle.dumps(BoostedTrees(5).fit(X, Y)))
    lazy = da.from_array(X, chunks=(70_000, 4))
    for method in ("predict", "predict_proba"):
        ours, whole = getattr(model, method)(lazy), getattr(model, method)(X)
        assert (
            isinstance(ours, da.Array) and ours.shape == whole.shape and ours.dtype == whole.dtype
        )
        np.testing.assert_array_equal(ours.compute(), whole)


# ---- early stopping


def test_the_rounds_after_the_best_one_are_left_out():
    few, check = slice(0, 2000), slice(2000, 10_000)
    model = BoostedTrees(200, early_stopping=10).fit(
        X[few], Y[few], validation=(X[check], Y[check])
    )
    best = int(np.argmin(model.history_))
    assert (
        model.metric_ == "logloss"
        and len(model.history_) == best + 11 < 200
        and model.best_iteration_ == best == model.get_booster().best_iteration
    )
    assert model.get_booster().num_boosted_rounds() == best + 1 and grown(model) != grown(
        BoostedTrees(200).fit(X[few], Y[few])
    )
    np.testing.assert_array_equal(
        model.predict_proba(X[check]),
        BoostedTrees(best + 1).fit(X[few], Y[few]).predict_proba(X[check]),
    )
    more = BoostedTrees(200, early_stopping=5, params={"eval_metric": "auc"}).fit(
        X[few], Y[few], validation=(X[check], Y[check])
    )
    assert more.best_iteration_ == np.argmax(more.history_) and np.isclose(
        max(more.history_), roc_auc_score(Y[check], more.predict_proba(X[check])[:, 1]), atol=1e-5
    )


# ---- interrupted and resumed


@pytest.mark.parametrize(
    "options", [{}, RANDOM, {"early_stopping": 3}], ids=["plain", "random", "early stopping"]
)
def test_a_fit_that_was_interrupted_goes_on_to_the_same_trees(options, tmp_path):
    how = (
        {"validation": (X[:2000], ~Y[:2000])} if "early_stopping" in options else {}
    )  # the metric gets worse at once
    model = BoostedTrees(17, execution=Execution(every=2), **options)
    whole = BoostedTrees(17, **options).fit(TABLE, "late", **how)
    with interrupted():
        model.fit(TABLE, "late", checkpoint=tmp_path, progress=stop_at(3 if how else 13), **how)
    said = []
    model.fit(
        TABLE, "late", checkpoint=tmp_path, progress=lambda done, total: said.append(done), **how
    )
    assert (
        said[0] == (2 if how else 12)
        and grown(model) == grown(whole)
        and model.history_ == whole.history_
        and not list(tmp_path.iterdir())
    )


def test_a_checkpoint_of_other_rows_or_settings_is_refused(tmp_path):
    with interrupted():
        BoostedTrees(9, execution=Execution(every=2)).fit(
            X, Y, checkpoint=tmp_path, progress=stop_at(4)
        )
    for model, x, y in (
        (BoostedTrees(9, max_depth=3), X, Y),
        (BoostedTrees(9), X + 1, Y),
        (BoostedTrees(9), X, ~Y),
        (BoostedTrees(9), X[1:], Y[1:]),
    ):
        with pytest.raises(
            ParameterError, match="was begun with other rows or settings; delete it"
        ):
            model.fit(x, y, checkpoint=tmp_path)
    (tmp_path / "trees.state").write_bytes(b"PK")
    with pytest.raises(ParameterError, match="is no state, or is damaged"):
        BoostedTrees(9).fit(X, Y, checkpoint=tmp_path)


# ---- what is wrong is said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"late": ("row", np.where(np.arange(N) == 70, np.nan, Y))},
            r"the label 'late': Block 0.*a label is missing|the label 'late': .*NaN",
        ),
        (
            {"late": ("row", np.where(np.arange(N) == 70, None, Y.astype(object)))},
            "the label 'late': .*a label is missing",
        ),
        (
            {"late": ("row", np.where(np.arange(N) == 70, -1, Y), {"categories": ["no", "yes"]})},
            "The label 'late' is missing in 1 rows",
        ),
        ({"late": ("row", np.zeros(N, int))}, "The label 'late' holds one class only, 0"),
        ({"x3": ("row", np.full(N, np.inf, np.float32))}, "Input X contains infinity"),
        ({"w": ("row", -np.ones(N))}, "weights are numbers from 0 on"),
        ({"w": ("row", np.zeros(N))}, "The weights of all rows are 0"),
    ],
)
def test_what_is_wrong_with_the_rows_is_said(change, words):
    ds = TABLE.assign(change)
    with pytest.raises(ContractViolation, match=words):
        BoostedTrees(2).fit(ds, "late", "w" if "w" in ds else None)


def test_missing_numbers_of_a_regression_are_refused():
    with pytest.raises(ContractViolation, match="the label 'x0': .*Input y contains NaN"):
        BoostedTrees(2, objective="reg:squarederror").fit(TABLE, "x0")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds": 0}, "rounds=0 is not known"),
        ({"execution": Execution(every=2.5)}, "every=2.5 is not known"),
        ({"objective": "rank:ndcg"}, "objective='rank:ndcg' is not known"),
        ({"params": {"max_dept": 3}}, "'max_dept' is no parameter"),
        ({"params": {"min_child_weight": "x"}}, "Invalid Parameter format for min_child_weight"),
        ({"params": {"eta": 3}}, "params holds 'eta'; use learning_rate= for it"),
        ({"params": {"booster": "dart"}}, "params holds 'booster'; leave it to BoostedTrees"),
        ({"params": {"eval_metric": "nope"}}, "Unknown metric function nope"),
        ({"early_stopping": 3}, "pass validation= to fit"),
        ({"execution": Execution(memory="much")}, "memory='much' is not known"),
        (
            {"objective": "reg:squarederror", "class_weight": "balanced"},
            "class_weight= is for classes",
        ),
        ({"class_weight": "heavy"}, "class_weight='heavy' is not known"),
    ],
)
def test_options_that_are_not_known(options, words):
    with pytest.raises(ParameterError, match=words):
        BoostedTrees(**{"rounds": 2, **options}).fit(X[:100], Y[:100])


def test_a_card_that_is_not_there():
    if not xgboost.build_info()["USE_CUDA"]:
        pytest.skip("XGBoost was built without CUDA")
    with pytest.raises(WorkFailed, match="there is no card that XGBoost can use"):
        BoostedTrees(2, execution=Execution(device="cuda")).fit(X[:100], Y[:100])


def test_validation_rows_that_do_not_fit():
    model = BoostedTrees(2)
    with pytest.raises(ContractViolation, match="have 2 features; accepted: 6"):
        model.fit(X, Y, validation=(X[:, :2], Y))
    with pytest.raises(
        ContractViolation, match="have the class 7, which no training row has; known: 0, 1"
    ):
        model.fit(X, Y.astype(int), validation=(X, np.full(N, 7)))


# ---- bounded memory


@pytest.mark.slow
def test_memory_is_bounded_when_the_rows_are_many(tmp_path):
    "1 M rows × 50: 200 MB of float32, 120 MB as bytes; 30 MB of budget: a file, gone at the end"
    script = textwrap.dedent("""
        import sys, tempfile
        import numpy as np
        from scalai_nb.learn.features.rows import Rows
        from scalai_nb.learn.trees.trees import BoostedTrees, Execution
        from scalai_nb.bench.compare import resident
        tempfile.tempdir = sys.argv[1]
        def blocks(count):
            for i in range(count):
                X = np.random.default_rng(i).standard_normal((62_500, 50), dtype=np.float32)
                yield X, X[:, 0] > 0
        BoostedTrees(1, execution=Execution(memory="5 MB")).fit(Rows(lambda: blocks(4)))  \
# what is loaded on the way, and what few rows take by it
        peak = lambda: resident("VmHWM") / 1e6  # ru_maxrss is that of who started this process, too
        before = peak()
        BoostedTrees(2, execution=Execution(memory="30 MB")).fit(Rows(lambda: blocks(16)))
        print(peak() - before)
    """)
    more = float(
        subprocess.run(
            [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
        ).stdout
    )
    assert more < 100 and not list(tmp_path.iterdir()), more


# ---- on a cluster


@pytest.fixture(scope="module")
def client():
    with connect(LOCAL, threads_per_worker=1) as client:
        yield client


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lake")
    Lake(folder).write("flights", TABLE)
    return Lake(folder).read("flights")


def forest() -> BoostedTrees:
    "Trees in three segments, between which workers may be lost"
    return BoostedTrees(12, execution=Execution(every=4), **RANDOM)


@pytest.fixture(scope="module")
def whole(client, lake):
    "The model of an uninterrupted fit on the cluster"
    return forest().fit(lake, "late", client=client)


def test_workers_grow_the_same_trees_from_whatever_they_read(client, lake, whole):
    here = forest().fit(TABLE, "late")
    assert (
        abs(
            roc_auc_score(Y, whole.predict_proba(TABLE)[:, 1])
            - roc_auc_score(Y, here.predict_proba(TABLE)[:, 1])
        )
        < 0.003
    )
    even = LAZY.chunk(
        row=150_000
    )  # blocks of about the lake's size, so that the shares are the same
    lazy, held = (
        BoostedTrees(5).fit(ds, "late", client=client) for ds in (even, client.persist(even))
    )
    arrays = BoostedTrees(5).fit(
        even[NAMES].to_dataarray("feature").transpose("row", "feature").data.rechunk((150_000, F)),
        even.late.data,
        client=client,
    )
    assert grown(lazy) == grown(held) == grown(arrays)


@pytest.mark.parametrize("kind", ["memory", "lazy", "pair", "source"])
def test_validation_rows_may_be_anywhere(kind, client, lake):
    few = slice(0, 50_000)
    rows = {
        "memory": lambda: TABLE.isel(row=few),
        "lazy": lambda: LAZY.isel(row=few),
        "pair": lambda: (X[few], Y[few]),
        "source": lambda: source(8000, X[few], Y[few]),
    }[kind]()
    model = BoostedTrees(4, early_stopping=3).fit(lake, "late", client=client, validation=rows)
    assert np.isclose(
        model.history_[-1], log_loss(Y[few], model.predict_proba(TABLE.isel(row=few))), atol=1e-5
    )


def test_a_killed_worker_costs_no_tree(client, lake, whole, caplog):
    pids = list(client.run(os.getpid).values())

    def kill(done, total):
        if done >= 6 and pids:
            os.kill(pids.pop(), signal.SIGKILL), pids.clear()

    with caplog.at_level(logging.WARNING, "scalai_nb"):
        model = forest().fit(lake, "late", client=client, progress=kill)
    assert grown(model) == grown(whole) and not pids
    assert sum("A worker was lost" in r.message for r in caplog.records) == 1


def test_a_result_that_went_with_its_worker_is_not_awaited(client):
    "The scheduler would compute it again, on that worker only"
    address, pid = next(iter(client.run(os.getpid).items()))
    future = client.submit(sum, (1, 2), workers=[address], pure=False)
    assert ranks._ended(client, future, address) == 3
    os.kill(pid, signal.SIGKILL)
    while future.done():
        time.sleep(0.05)
    begun = time.monotonic()
    assert (
        isinstance(ranks._ended(client, future, address), TimeoutError)
        and time.monotonic() - begun < 30
    )
    client.wait_for_workers(2, timeout=60)


@pytest.mark.slow
def test_a_cluster_that_is_gone_leaves_a_checkpoint_for_one_of_another_size(
    client, lake, whole, tmp_path
):
    model = forest()
    with interrupted():
        model.fit(lake, "late", client=client, checkpoint=tmp_path, progress=stop_at(9))
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            memory_limit=0,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as one,
    ):
        model.fit(lake, "late", client=one, checkpoint=tmp_path)
    assert grown(model) == grown(whole) and not list(tmp_path.iterdir())


def test_what_kills_every_worker_ends_the_fit(client, monkeypatch):
    monkeypatch.setattr(ranks, "TRIES", 1)

    def end(x):
        return os.kill(os.getpid(), signal.SIGKILL) if x.size > 1 else x

    deadly = LAZY.assign(
        x0=LAZY.x0.copy(data=LAZY.x0.data.map_blocks(end, meta=np.empty(0, np.float32)))
    )
    with pytest.raises(WorkFailed, match="Workers were lost 1 times without one round more"):
        BoostedTrees(3).fit(deadly, "late", client=client)
    client.wait_for_workers(2, timeout=60)


def test_two_fits_at_once_take_turns(client, lake):
    with ThreadPoolExecutor(2) as pool:
        models = list(
            pool.map(
                lambda seed: BoostedTrees(3, params={"seed": seed, "subsample": 0.5}).fit(
                    lake, "late", client=client
                ),
                (0, 0),
            )
        )
    assert grown(models[0]) == grown(models[1])


def test_an_error_on_a_worker_is_the_error_here(client):
    bad = LAZY.assign(
        x3=LAZY.x3.copy(data=LAZY.x3.data.map_blocks(lambda x: x + np.float32(np.inf)))
    )
    with pytest.raises(ContractViolation, match="Input X contains infinity"):
        BoostedTrees(3).fit(bad, "late", client=client)
    with pytest.raises(ParameterError, match="'max_dept' is no parameter"):
        BoostedTrees(3, params={"max_dept": 3}).fit(LAZY, "late", client=client)
    with pytest.raises(ContractViolation, match="The label 'late' holds one class only"):
        BoostedTrees(3).fit(LAZY.assign(late=LAZY.late | True), "late", client=client)
