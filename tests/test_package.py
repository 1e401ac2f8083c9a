"A package scores as the estimator does, to 1e-5, and is whole, unchanged and self-checking"

import json
import pickle
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression

from scalai_nb.compute.state import fingerprint
from scalai_nb.errors import (
    Conflict,
    ContractViolation,
    ModelMismatch,
    ModelNotFound,
    ParameterError,
)
from scalai_nb.describe.drift import drift
from scalai_nb.describe.summary import summarize
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.package import card as cards
from scalai_nb.models.package import graph as graphs
from scalai_nb.models.package import heads
from scalai_nb.models.package import package as packages
from scalai_nb.models.package import runtime
from scalai_nb.models.package.package import (
    BATCH,
    Model,
    digest,
    estimate,
    example_rows,
    files,
    package,
)

needs_xgboost = pytest.mark.skipif(
    not find_spec("xgboost"), reason="xgboost is not installed: extra `trees`"
)
NUMERIC, CATEGORICAL = ("temp", "hour", "cloudy", "time"), ("carrier", "origin", "month")


def table(rows, seed=0, new=False):
    "Flights with holes; whole numbers, so that rows meet thresholds exactly; `new` adds categories"
    rng = np.random.default_rng(seed)
    hole = lambda share=0.1: rng.random(rows) < share
    time = np.datetime64("2013-01-01", "ns") + rng.integers(0, 90 * 86400, rows) * np.timedelta64(
        1, "s"
    )
    time[hole()] = np.datetime64("NaT", "s")
    return xr.Dataset(
        {
            "temp": ("row", np.where(hole(), np.nan, rng.normal(60, 18, rows).round())),
            "hour": ("row", rng.integers(0, 24, rows)),
            "cloudy": ("row", hole(0.4)),
            "time": ("row", time),
            "carrier": (
                "row",
                rng.integers(-1, 4 + new, rows).astype("i1"),
                {"categories": ["UA", "AA", "WN", "B6", "new"]},
            ),
            "origin": (
                "row",
                rng.choice(
                    np.array(["JFK", "LGA", "EWR", None, *(["", "BOS"] if new else [])], object),
                    rows,
                ),
            ),
            "month": ("row", rng.integers(1, 13 + new, rows)),
        }
    )


def late(ds, seed=0):
    z = (
        (ds.hour - 14) / 4
        + ds.cloudy
        + (ds.carrier == 1) * 1.5
        - ds.temp.isnull() * 2
        + (ds.origin == "JFK")
        - 1
    )
    return np.random.default_rng(seed).random(ds.sizes["row"]) < 1 / (1 + np.exp(-z.values))


def fitted(kind="linear", rows=4000, numeric=NUMERIC, categorical=CATEGORICAL, **options):
    transform = Transform(numeric, categorical, **options).fit(ds := table(rows))
    if kind == "linear":
        return transform, LogisticRegression(max_iter=2000).fit(
            transform.transform(ds).values, late(ds)
        )
    from xgboost import XGBClassifier

    trees = XGBClassifier(n_estimators=60, max_depth=6, learning_rate=0.2, n_jobs=1)
    return transform, trees.fit(transform.transform(ds).values, late(ds))


def parity(transform, estimator, rows=100_000):
    ds = table(rows, seed=1, new=transform.unseen == "zero")
    got, expected = package(transform, estimator).predict(ds), estimate(transform, estimator, ds)
    assert got.dtype == np.float32 and got.dims == ("row",) and 0.1 < expected.std()
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"scale": False, "numeric": NUMERIC[:3]}, {"unseen": "error"}]
)
def test_a_linear_package_scores_as_the_estimator(options):
    parity(*fitted(**options))


@needs_xgboost
@pytest.mark.parametrize("options", [{}, {"scale": False, "impute": None}, {"impute": None}])
def test_a_tree_package_scores_as_the_estimator(options):
    parity(*fitted("trees", **options))


OPTIONS = {
    "median": {"impute": "median"},
    "a number": {"numeric": NUMERIC[:3], "impute": -1.5},
    "indicator": {"indicator": True},
    "indicator, missing kept": {"impute": None, "indicator": True},
    "clip": {"clip": (0.05, 0.9)},
    "clip, missing kept": {"impute": None, "clip": (0.05, 0.9)},
    "log": {"numeric": NUMERIC[:3], "log": True},
    "robust": {"scale": "robust"},
    "minmax": {"scale": "minmax", "clip": (0.01, 0.99)},
    "bucket": {"bucket": 5},
    "bucket, missing kept": {"impute": None, "bucket": 5, "indicator": True},
    "frequency": {"frequency": True},
    "max_categories": {"max_categories": 3},
    "other": {"max_categories": 3, "unseen": "other"},
    "min_count": {"min_count": 1200},
    "of each column": {
        "numeric": {
            "temp": {"bucket": 4},
            "hour": {"log": True, "indicator": True, "impute": 3},
            "cloudy": {"scale": None},
            "time": {"clip": (0.1, 1), "indicator": True},
        },
        "categorical": {
            "carrier": {"frequency": True},
            "origin": {"min_count": 2000},
            "month": {"max_categories": 5, "unseen": "other"},
        },
    },
}


def features_of_the_graph(transform, ds):
    "(row, feature) that ONNX Runtime makes of the raw columns"
    g = graphs.Graph()
    model = graphs.finished(
        g, graphs.inputs(transform), graphs.feature_nodes(g, transform), "features", width=None
    )
    arrays = {n: a.reshape(-1, 1) for n, a in transform.raw(ds).items()}
    return runtime.session(model.SerializeToString()).run(None, arrays)[0]


def nasty(rows=5000):
    "Rows with infinite values and with categories that were not seen"
    ds = table(rows, seed=1, new=True)
    ds["temp"][:4] = np.array([np.inf, -np.inf, 1e30, -0.0])
    return ds


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_in_the_graph(name):
    "The graph's features are those of transform, bit for bit"
    transform = Transform(**{"numeric": NUMERIC, "categorical": CATEGORICAL} | OPTIONS[name]).fit(
        table(4000)
    )
    np.testing.assert_array_equal(
        features_of_the_graph(transform, nasty()), transform.transform(nasty())
    )


NUMBERS = st.fixed_dictionaries(
    {},
    optional={
        "impute": st.sampled_from(["mean", "median", None]),
        "indicator": st.booleans(),
        "clip": st.sampled_from([(0.02, 0.98), (0, 0.5), None]),
        "scale": st.sampled_from(["standard", "robust", "minmax", None]),
    },
)
BUCKETS = st.fixed_dictionaries(
    {"bucket": st.integers(2, 12)},
    optional={"impute": st.sampled_from(["mean", "median", None]), "indicator": st.booleans()},
)
CATEGORIES = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"min_count": st.integers(1, 1500), "max_categories": st.integers(1, 5)}
    ),
    st.fixed_dictionaries({"max_categories": st.integers(1, 5), "unseen": st.just("other")}),
    st.just({"frequency": True}),
)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({n: st.one_of(NUMBERS, BUCKETS) for n in NUMERIC}),
    st.booleans(),
    st.fixed_dictionaries(dict.fromkeys(CATEGORICAL, CATEGORIES)),
)
def test_any_options_are_in_the_graph(numeric, log, categorical):
    if log and "bucket" not in numeric["temp"]:
        numeric = numeric | {"temp": numeric["temp"] | {"log": True}}
    transform = Transform(numeric, categorical).fit(SUMMARY_OF_TABLE)
    np.testing.assert_array_equal(
        features_of_the_graph(transform, NASTY), transform.transform(NASTY)
    )


SUMMARY_OF_TABLE, NASTY = summarize(table(4000)), nasty(500)


@pytest.mark.parametrize("name", [n for n in OPTIONS if "kept" not in n])
def test_a_linear_package_of_every_option(name):
    parity(*fitted(**OPTIONS[name]), rows=5000)


@needs_xgboost
@pytest.mark.parametrize(
    "name",
    [
        "indicator, missing kept",
        "clip, missing kept",
        "log",
        "bucket, missing kept",
        "of each column",
    ],
)
def test_a_tree_package_of_options(name):
    parity(*fitted("trees", **OPTIONS[name]), rows=20_000)


def test_a_bug_planted_in_the_features_is_caught(monkeypatch):
    log = graphs._log
    monkeypatch.setattr(graphs, "_log", lambda g, x: g.node("Add", log(g, x), np.float64(1e-3)))
    with pytest.raises((ModelMismatch, AssertionError)):
        parity(*fitted(**OPTIONS["log"]), rows=1000)


def test_a_hashed_column_cannot_be_packaged():
    ds = table(400)
    transform = Transform(["temp"], {"origin": {"hash": 4}}).fit(ds)
    with pytest.raises(
        ParameterError,
        match="'origin' is hashed, for which ONNX has no operation; accepted: one-hot",
    ):
        package(transform, LogisticRegression().fit(transform.transform(ds).values, late(ds)))


@needs_xgboost
@pytest.mark.parametrize("bug", [
    lambda n: {**n, "missing_left": 1 - np.array(n["missing_left"])},
    lambda n: {**n, "threshold": np.nextafter(n["threshold"], np.float32(np.inf))},
    lambda n: {**n, "value": n["value"] + np.float32(1e-4)},
    lambda n: {**n, "left": np.where(np.array(n["left"]) < 0, -1, n["right"]), "right": n["left"]},
], ids=["missing goes the other way", "<= for <", "leaves", "left for right"])  # fmt: skip
def test_a_bug_planted_in_the_trees_is_caught(monkeypatch, bug):
    transform, estimator = fitted("trees", scale=False, impute=None)
    tree = heads._xgboost_tree
    monkeypatch.setattr(heads, "_xgboost_tree", lambda t: bug(tree(t)))
    with pytest.raises((ModelMismatch, AssertionError)):
        parity(transform, estimator)


def test_a_graph_that_disagrees_is_never_given_out(monkeypatch):
    transform, estimator = fitted()
    linear = heads.HEADS["LogisticRegression"]
    monkeypatch.setitem(
        heads.HEADS,
        "LogisticRegression",
        lambda g, x, e: g.node("Add", linear(g, x, e), np.float32(1e-3)),
    )
    with pytest.raises(
        ModelMismatch, match=r"late row 0: the graph scores 0\.\d+, expected 0\.\d+"
    ):
        package(transform, estimator, name="late")


@needs_xgboost
def test_early_stopping_uses_the_best_round():
    from xgboost import XGBClassifier

    transform, _ = fitted()
    X, y = transform.transform(ds := table(3000)).values, late(ds)
    trees = XGBClassifier(
        n_estimators=400, learning_rate=0.5, early_stopping_rounds=3, base_score=0.3, n_jobs=1
    )
    trees.fit(X[:2000], y[:2000], eval_set=[(X[2000:], y[2000:])], verbose=False)
    assert trees.best_iteration < trees.get_booster().num_boosted_rounds() - 1
    parity(transform, trees, 5000)


def test_an_estimator_fitted_on_a_frame_is_packaged_without_a_warning():
    transform, _ = fitted()
    ds = table(1000)
    parity(
        transform,
        LogisticRegression(max_iter=2000).fit(transform.transform(ds).to_pandas(), late(ds)),
        1000,
    )


def test_a_column_without_any_category_has_no_feature():
    ds = table(500).assign(origin=("row", np.full(500, None, object)))
    transform = Transform(["hour"], ["origin"]).fit(ds)
    parity(transform, LogisticRegression().fit(transform.transform(ds).values, late(ds)), 500)


def test_what_cannot_be_packaged():
    from sklearn.svm import SVC

    transform, linear = fitted()
    X, y = transform.transform(ds := table(400)).values, late(ds)
    with pytest.raises(ParameterError, match="SVC gives no probabilities; calibrate it"):
        package(transform, SVC().fit(X, y))
    four = LogisticRegression(max_iter=3000).fit(X, y + 2 * (X[:, 0] > 1))
    assert package(transform, four).predict(ds).shape == (400, 4)
    with pytest.raises(ParameterError, match="features and the transform"):
        package(Transform(["temp"]).fit(ds), linear)
    with pytest.raises(ParameterError, match="use impute='mean'"):
        package(fitted(impute=None, kind="trees")[0] if find_spec("xgboost") else transform, linear)
    with pytest.raises(ParameterError, match="'created' is filled in"):
        package(transform, linear, card={"created": "long ago"})


@needs_xgboost
def test_trees_that_cannot_be_packaged():
    from xgboost import XGBClassifier

    transform, _ = fitted()
    X, y = transform.transform(ds := table(400)).values, late(ds)
    for options, sentence in [
        ({"objective": "binary:hinge"}, "accepted: gbtree and binary:logistic, reg:logistic"),
        ({"missing": -1.0}, "accepted: NaN"),
    ]:
        with pytest.raises(ParameterError, match=sentence):
            package(transform, XGBClassifier(n_estimators=3, n_jobs=1, **options).fit(X, y))


@pytest.fixture(scope="module")
def model():
    card = {
        "purpose": "Warn of late flights",
        "goals": {"recall": ">= 0.60"},
        "metrics": {"roc_auc": np.float32(0.75), "gap": np.nan},
        "slices": {"UA": {"auc": 0.7, "rows": 12}, "A|A": {"auc": None}},
        "limits": ["New York only"],
        "owner": "flights team",
    }
    return package(*fitted(rows=1000), name="late-flight", card=card)


def test_blocks_dask_and_order_do_not_matter(model):
    ds = table(3000, seed=2, new=True).assign_coords(flight=("row", np.arange(3000)))
    whole = model.predict(ds)
    assert whole.flight.values.tolist() == list(range(3000))
    np.testing.assert_array_equal(model.predict(ds, block=77), whole)
    np.testing.assert_array_equal(model.predict(ds.chunk(row=1001), block=500), whole)
    np.testing.assert_array_equal(model.predict(ds.isel(row=slice(None, None, -1))), whole[::-1])
    assert model.predict(ds.isel(row=slice(0))).shape == (0,)


def test_strings_and_codes_score_alike(model):
    ds = table(500)
    names = np.array([*ds.carrier.attrs["categories"], None], object)[ds.carrier.values]
    np.testing.assert_array_equal(
        model.predict(ds.assign(carrier=("row", names))), model.predict(ds)
    )


def test_a_missing_column_is_named(model):
    with pytest.raises(ContractViolation, match="'hour' is not in the columns"):
        model.predict(table(3).drop_vars("hour"))


def test_saved_and_loaded_is_the_same(model, tmp_path):
    ds = table(1000, seed=3, new=True)
    again = Model.load(model.save(tmp_path / "new" / "folder"))
    assert again.predict(ds).identical(model.predict(ds))
    assert (
        digest(again) == digest(model) and again.card == model.card and again.name == "late-flight"
    )
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["folder"]
    assert set(files(model)) == {
        "model.onnx",
        "card.json",
        "card.md",
        "transform.json",
        "contract.json",
        "examples.json",
        "manifest.json",
    }
    assert len(json.loads((tmp_path / "new/folder/examples.json").read_text())["scores"]) == 100


def test_the_contract_goes_along(tmp_path):
    from scalai_nb.data.contract import Contract

    contract = Contract.infer(table(1000), pii=["carrier"])
    model = package(*fitted(rows=1000), contract=contract)
    again = Model.load(model.save(tmp_path / "m"))
    assert again.contract == contract and digest(again) == digest(model)


def test_a_model_travels_to_a_worker(model):
    ds = table(10)
    expected = model.predict(ds)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(ds), expected)


@pytest.fixture(scope="module")
def full():
    "A package with every file there can be"
    return package(*fitted("trees", rows=1000), name="late-flight", summary=SUMMARY_OF_TABLE)


@needs_xgboost
def test_the_summary_goes_along(full, tmp_path):
    again = Model.load(full.save(tmp_path / "m"))
    assert fingerprint(again.summary) == fingerprint(SUMMARY_OF_TABLE) and digest(again) == digest(
        full
    )
    assert drift(again.summary, table(1000, seed=5)).to_frame().size


@needs_xgboost
@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "card.json",
        "card.md",
        "transform.json",
        "contract.json",
        "examples.json",
        "booster.ubj",
        "summary.zip",
    ],
)
def test_a_changed_or_lost_file_is_named(full, tmp_path, name):
    path = full.save(tmp_path / "m") / name
    data = path.read_bytes()
    for broken in (data + b" ", data[: len(data) // 2], b"", bytes([data[0] ^ 1]) + data[1:]):
        path.write_bytes(broken)
        with pytest.raises(ModelMismatch, match=f"{name} is not the file that was packaged"):
            Model.load(tmp_path / "m")
    path.unlink()
    with pytest.raises(ModelMismatch, match=name):
        Model.load(tmp_path / "m")


def test_a_file_too_many_is_named(model, tmp_path):
    folder = model.save(tmp_path / "m")
    (folder / ".DS_Store").write_text("")
    assert Model.load(folder).card == model.card
    (folder / "booster.ubj").write_bytes(b"of another model")
    with pytest.raises(ModelMismatch, match="booster.ubj does not belong to the package"):
        Model.load(folder)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 1, "name": "m"}', "cannot be read"),
        ('{"format": 2, "files": {}}', "has format 2; this version reads 1. Update scalai-nb"),
        ('{"format": 1, "name": "m", "files": {}}', "card.json is not the file"),
    ],
)
def test_a_manifest_that_is_none(model, tmp_path, text, said):
    (model.save(tmp_path / "m") / "manifest.json").write_text(text)
    with pytest.raises(ModelMismatch, match=said):
        Model.load(tmp_path / "m")


def test_a_manifest_with_other_names(model, tmp_path):
    path = model.save(tmp_path / "m") / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"name": "on-time"}))
    with pytest.raises(ModelMismatch, match="names the model 'on-time' and its card 'late-flight'"):
        Model.load(tmp_path / "m")
    path.write_text(
        json.dumps(manifest | {"files": manifest["files"] | {"../../secret": "0" * 64}})
    )
    with pytest.raises(ModelMismatch, match="secret is not the file"):
        Model.load(tmp_path / "m")


def test_a_package_of_before_loads(model, tmp_path):
    "Packages of 0.1 had no output in their card, no booster and no summary"
    folder = model.save(tmp_path / "m")
    card = {k: v for k, v in model.card.items() if k not in ("output", "split")}
    (folder / "card.json").write_text(json.dumps(card))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["card.json"] = sha256((folder / "card.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    again = Model.load(folder)
    assert (
        again.summary is None
        and again.booster is None
        and again.predict(table(100)).identical(model.predict(table(100)))
    )


# ---- the booster beside the graph


@needs_xgboost
def test_many_rows_go_through_the_booster(full, tmp_path, monkeypatch):
    ds = table(BATCH + 5000, seed=4, new=True)
    expected = full.score(full.transform.raw(ds))
    model = Model.load(full.save(tmp_path / "m"))
    few = model.predict(ds.isel(row=slice(0, 50)))
    monkeypatch.setattr(Model, "score", lambda *_: pytest.fail("many rows went through the graph"))
    got = model.predict(ds)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got[:50], few, atol=1e-6)
    for other in (
        model.predict(ds, block=999),
        model.predict(ds.chunk(row=2500)),
        pickle.loads(pickle.dumps(model)).predict(ds),
    ):
        assert other.identical(got)


@needs_xgboost
def test_without_xgboost_the_graph_does_it(full, tmp_path, monkeypatch):
    folder, ds = full.save(tmp_path / "m"), table(BATCH + 100, seed=4, new=True)
    expected = full.predict(ds)
    monkeypatch.setattr("scalai_nb.models.package.package.find_spec", lambda name: None)
    model = Model.load(folder)
    assert model.twin is None
    np.testing.assert_allclose(model.predict(ds), expected, atol=1e-6)


@needs_xgboost
def test_the_booster_of_another_graph_is_not_used(full):
    "As when the graph was slimmed"
    other = package(*fitted("trees", rows=2000), name="late-flight")
    ds = table(BATCH, seed=4)
    np.testing.assert_array_equal(
        replace(full, graph=other.graph).predict(ds), replace(other, booster=None).predict(ds)
    )


@needs_xgboost
def test_a_booster_that_disagrees_is_told(full, monkeypatch):
    full.check()
    monkeypatch.setattr(packages, "_calibration", lambda text: lambda score: score + 1e-4)
    with pytest.raises(ModelMismatch, match="examples by the booster row 0"):
        replace(full, name="again").check()
    with pytest.raises(ModelMismatch, match="by the booster row 0"):
        package(*fitted("trees", rows=1000))


def test_a_column_called_score():
    ds = table(300).rename(hour="score")
    transform = Transform(["score"]).fit(ds)
    model = package(
        transform, LogisticRegression().fit(transform.transform(ds).values, ds.score > 12)
    )
    assert model.predict(ds).name == "score"


def test_a_row_that_scores_otherwise_is_named(model, tmp_path):
    "The hashes are right and the graph is another model's: only the examples can tell"
    folder = model.save(tmp_path / "m")
    other = package(*fitted(rows=500), name="late-flight")
    (folder / "model.onnx").write_bytes(other.graph)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256(other.graph).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelMismatch, match=r"examples.json row \d+: the graph scores"):
        Model.load(folder)


def test_no_package_and_no_overwriting(model, tmp_path):
    with pytest.raises(ModelNotFound, match="no model package"):
        Model.load(tmp_path)
    folder = model.save(tmp_path / "m")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(Conflict, match="not overwritten"):
        model.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_write_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    write, done = type(tmp_path).write_bytes, []

    def full_disk(path, data):
        if len(done) == 3:
            raise OSError(28, "No space left on device")
        done.append(path)
        return write(path, data)

    monkeypatch.setattr(type(tmp_path), "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "m")
    assert len(done) == 3 and list(tmp_path.iterdir()) == []


def test_the_card_reads_well(model):
    text = model.to_markdown()
    assert text.startswith("# late-flight\n\n## What it is for\n\nWarn of late flights\n")
    assert "| recall | >= 0.60 |" in text and "| roc_auc | 0.75 |" in text and "| gap | – |" in text
    assert "|  | auc | rows |" in text and "| A\\|A | – | – |" in text and "- New York only" in text
    assert "## Licence\n\nNot stated." in text and "| Owner | flights team |" in text
    assert model.card["environment"]["scikit-learn"] and model.card["inputs"]["time"] == "DOUBLE"
    assert "<td>&gt;= 0.60</td>" in model._repr_html_()


def test_the_card_takes_tables(model):
    class Scores:
        def to_frame(self):
            return __import__("pandas").DataFrame({"auc": [0.7, 0.8]}, index=["UA", "AA"])

    card = cards.card_of("m", {"slices": Scores()}, LogisticRegression(), "probability", {}, [])
    assert card["slices"] == {"UA": {"auc": 0.7}, "AA": {"auc": 0.8}}


def test_examples_hold_no_row_of_the_data(model):
    rows = example_rows(model.transform)
    assert (
        rows.identical(example_rows(model.transform))
        and rows.temp.isnull().any()
        and (rows.origin == "never seen").any()
    )
    assert not np.isin(rows.temp.values[rows.temp.notnull()], table(1000).temp.values).any()
