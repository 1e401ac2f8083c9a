"sn.train: candidates of any kind on held-out rows, leaks and bad labels named, no silent failure"

import inspect
import re
import threading
from dataclasses import fields
from html import escape

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression as TheirLogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from scalai_nb.compute.cluster import connect
from scalai_nb.compute.laws import check_mergeable
from scalai_nb.compute.reduce import reduce
from scalai_nb.data.contract import Contract
from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import Environment
from scalai_nb.errors import ContractViolation, ParameterError, WorkFailed
from scalai_nb.learn.training import fits
from scalai_nb.learn.training import leaks
from scalai_nb.evaluation.calibration import Calibrated
from scalai_nb.evaluation.evaluation import evaluate
from scalai_nb.learn.training.importance import importances
from scalai_nb.learn.linear.regression import LinearRegression, LogisticRegression
from scalai_nb.learn.networks.networks import Network
from scalai_nb.learn.training.adapter import SAMPLE, Effort, learn, sampled
from scalai_nb.learn.training.splits import Folds, split
from scalai_nb.describe.summary import SUMMARY
from scalai_nb.evaluation.task import task_of
from scalai_nb.learn.training.training import Judging, train
from scalai_nb.learn.features.transform import Transform
from scalai_nb.learn.trees.trees import BoostedTrees


def data(n=3000, seed=0, weeks=30):
    r = np.random.default_rng(seed)
    ds = xr.Dataset(
        {
            "date": ("row", np.datetime64("2013-01-01") + np.arange(n) * 7 * weeks // n),
            "fold": ("row", (np.arange(n) % 3).astype("i1")),
            "temp": ("row", np.where(r.random(n) < 0.1, np.nan, r.normal(50, 10, n))),
            "wind": ("row", r.gamma(2, 5, n)),
            "noise": ("row", r.normal(size=n)),
            "carrier": (
                "row",
                r.integers(-1, 3, n).astype("i1"),
                {"categories": ["AA", "UA", "WN"]},
            ),
            "origin": ("row", np.array(["EWR", "JFK", None], object)[r.integers(0, 3, n)]),
        }
    )
    eta = ds.wind.values / 5 - 3 + 1.2 * (ds.carrier.values == 1)
    return ds.assign(
        late=("row", r.random(n) < 1 / (1 + np.exp(-eta))),
        minutes=("row", 10 * eta + r.normal(size=n)),
        state=(
            "row",
            (eta + r.logistic(size=n) > 0).astype("i1") + (eta + r.logistic(size=n) > 1),
            {"categories": ["early", "fair", "late"]},
        ),
    )


FEATURES = Transform(numeric=["temp", "wind", "noise"], categorical=["carrier", "origin"])
BOTH = {"linear": LogisticRegression(), "trees": DecisionTreeClassifier(max_depth=4)}


def options(split=None, folds=5, **given):
    "Options of `train` by the record that has them"
    by_record = {
        name: kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given})
        for name, kind in (("judging", Judging), ("effort", Effort))
    }
    return {"split": split if folds == 5 else Folds(split, folds)} | by_record | given


def quiet(candidates, ds, label="late", goals=None, contract=None, **kw):
    return train(
        candidates,
        ds if contract is None else contract.attach(ds),
        label,
        goals,
        **options(**{"transform": FEATURES, "split": "fold", "progress": False} | kw),
    )


@pytest.fixture(scope="module")
def done():
    return quiet(
        BOTH,
        data(),
        goals={"auc": ">= 0.6", "recall": ">= 0.6", "alerts": "<= 0.9"},
        by=["carrier", "origin"],
        calibrate="isotonic",
    )


# ---- what is compared


def test_scores_are_those_of_models_that_had_not_seen_the_row():
    ds = data()
    ds["wind"] = ds.wind + 1000 * (
        ds.fold == 0
    )  # a transform that had seen them would scale the others away
    t = quiet(BOTH, ds)
    for k in range(3):
        rest, out = ds.isel(row=ds.fold.values != k), ds.isel(row=ds.fold.values == k)
        f = Transform(FEATURES.numeric, FEATURES.categorical).fit(rest)
        for name in BOTH:
            by_hand = (
                clone(BOTH[name])
                .fit(f.transform(rest).values, rest.late.values)
                .predict_proba(f.transform(out).values)[:, 1]
            )
            assert np.allclose(t.scores[name][ds.fold.values == k], by_hand, atol=2e-3), name
    assert t.evaluations["trees"].roc_auc == evaluate(ds.late, t.scores["trees"]).roc_auc


def test_the_table(done):
    table = done.table
    assert list(table.index) == done.ranking and {
        "roc_auc",
        "roc_auc low",
        "roc_auc high",
        "log_loss",
        "ece",
        "recall",
        "alerts",
        "goals met",
        "seconds",
        "learnt",
    } <= set(table)
    assert done.measure == "roc_auc" and done.best == max(
        done.evaluations, key=lambda n: done.evaluations[n].roc_auc
    )
    assert (table.recall >= 0.6).all() and done.met() == {
        "auc": True,
        "recall": True,
        "alerts": True,
    }
    e = done.evaluations[done.best]
    assert {"carrier=UA", "carrier=missing", "origin=JFK", "origin=missing"} <= set(
        e.slices
    ) and e.slices["carrier=UA"].count == (data().carrier.values == 1).sum()
    assert (
        "<table" in done._repr_html_()
        and "<svg" in done._repr_html_()
        and escape(done.split.says) in done._repr_html_()
        and done.best in repr(done)
    )


def test_the_best_is_by_the_first_goal_that_can_tell():
    ds = data()
    assert quiet(BOTH, ds, goals={"recall": ">= 0.5", "ece": "<= 0.1"}).measure == "ece"
    worse = {"good": LogisticRegression(), "bad": TheirLogisticRegression(C=1e-6)}
    for goals in (None, {"pr_auc": ">= 0.9"}, {"brier": "<= 0.1"}):
        assert quiet(worse, ds, goals=goals).best == "good"


def test_the_split_comes_from_the_contract():
    ds = data()
    ds = Contract.infer(ds, label="late", time="date", later=("minutes", "state")).attach(ds)
    t = train({"linear": LogisticRegression()}, ds, **options(progress=False, folds=3))
    assert t.split.kind == "time" and set(t.work.transform.names) == {
        "fold",
        "temp",
        "wind",
        "noise",
        "carrier",
        "origin",
    }, "label, time and what is later are no features"
    first = t.split.tests[0]
    assert (
        np.isnan(t.scores["linear"][t.split.fold < first]).all()
        and not np.isnan(t.scores["linear"][t.split.tested]).any()
    )
    assert t.evaluations["linear"].count == t.split.tested.sum()
    with pytest.warns(UserWarning, match="The contract has a time, 'date'"):
        at_random = train(
            {"linear": LogisticRegression()}, ds, **options(split="random", progress=False)
        )
    assert (
        at_random.split.says in at_random.notes
        and at_random.split.says in at_random.card()["limits"]
    )


def test_each_transform_learns_from_its_training_rows_alone():
    ds = data()
    parts = split(ds, by="fold")
    states = reduce(fits.by_fold(FEATURES.names), ds.assign({fits.FOLD: ("row", parts.fold)}))
    for k, (rest, _) in enumerate(parts):
        mine, _ = fits.transform_of(FEATURES, states, parts.learns(k))
        theirs = Transform(FEATURES.numeric, FEATURES.categorical).fit(ds.isel(row=rest))
        assert (
            np.allclose(mine.mean_, theirs.mean_, rtol=1e-6)
            and np.allclose(mine.std_, theirs.std_, rtol=1e-6)
            and mine.categories_ == theirs.categories_
        )


def test_summaries_by_fold_are_mergeable():
    ds = data(300)[["temp", "carrier", "origin"]].assign({fits.FOLD: ("row", np.arange(300) % 3)})
    blocks = [ds.isel(row=slice(*s)) for s in ((0, 50), (50, 51), (51, 300))]

    def same(a, b):
        for k in a:
            pd.testing.assert_frame_equal(
                SUMMARY.finalize(a[k]).to_frame(), SUMMARY.finalize(b[k]).to_frame()
            )
        return a.keys() == b.keys()

    check_mergeable(
        fits.by_fold(["temp", "carrier", "origin"]), blocks, lambda b: xr.concat(b, "row"), same
    )


# ---- any estimator, any rows


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        TheirLogisticRegression(),
        XGBClassifier(n_estimators=10, n_jobs=1),
        RandomForestClassifier(10),
        GaussianNB(),
        SGDClassifier(loss="log_loss"),
    ],
    ids=lambda e: type(e).__module__.split(".")[0] + type(e).__name__,
)
def test_any_estimator_lazy_as_in_memory(estimator):
    if hasattr(estimator, "random_state"):
        estimator = clone(estimator).set_params(random_state=0)
    ds = data(1500)
    here, lazy = (
        quiet({"it": estimator}, d, memory=m, importance=0).scores["it"]
        for d, m in ((ds, None), (ds.chunk(row=400), 1000))
    )
    assert np.allclose(here, lazy, atol=1e-4) and evaluate(ds.late, here).roc_auc > 0.6


def test_from_a_lake(tmp_path):
    ds, lake = data(), Lake(tmp_path)
    lake.write("flights", Contract.infer(ds, label="late", time="date").attach(ds))
    t = quiet(
        {"linear": LogisticRegression()}, lake.read("flights"), None, by="carrier", memory=1000
    )
    assert (
        np.allclose(
            t.scores["linear"],
            quiet({"linear": LogisticRegression()}, ds).scores["linear"],
            atol=1e-4,
        )
        and t.work.ds.chunks
    )


@pytest.fixture(scope="module")
def client():
    env = Environment(
        name="test", root=None, cluster="local", workers=2, memory=2_000_000_000
    )  # beyond 80 % a worker would pause
    client = connect(env)
    yield client
    client.shutdown()


def test_on_the_workers_of_a_cluster(client):
    ds = data(4000)
    ds = ds.assign(fold=("row", np.arange(4000) % 2))
    candidates = {
        "linear": LogisticRegression(),
        "trees": BoostedTrees(10, max_depth=3),
        "outside": GaussianNB(),
    }
    t = quiet(
        candidates, ds.chunk(row=500), client=client, goals={"auc": ">= 0.6"}, calibrate="sigmoid"
    )
    assert (
        not t.failed
        and all(t.met(name)["auc"] for name in candidates)
        and t.fit("trees").score(ds).shape == (4000,)
    )


@pytest.mark.parametrize(
    "estimator",
    [
        BoostedTrees(50, max_depth=3, early_stopping=3, learning_rate=0.5),
        Network(hidden=(8,), epochs=6, early_stopping=2, batch_size=200, learning_rate=0.02),
    ],
    ids=lambda e: type(e).__name__,
)
def test_early_stopping_watches_rows_that_are_neither_learnt_from_nor_tested(
    estimator, monkeypatch
):
    ds, seen = data().assign(row_number=("row", np.arange(3000.0))), []
    fit = type(estimator).fit

    def spy(self, X, *a, validation=None, **kw):
        seen.append((set(X.minutes.values), set(validation.minutes.values)))
        return fit(self, X, *a, validation=validation, **kw)

    spy.__signature__ = inspect.signature(fit)
    monkeypatch.setattr(type(estimator), "fit", spy)
    t = quiet(
        {"it": estimator},
        ds,
        transform=Transform(numeric=["wind", "temp", "minutes"]),
        jobs=1,
        label="state",
    )
    for (learnt, watched), k in zip(seen, t.split.tests, strict=True):
        tested = set(ds.minutes.values[t.split.rows([k])])
        assert (
            not learnt & watched
            and not (learnt | watched) & tested
            and len(learnt | watched | tested) == 3000
        )
    assert "stopped early by 1,000 more" in t.table.learnt["it"]
    with pytest.raises(WorkFailed, match="needs a fold to watch"):
        quiet({"it": estimator}, ds.assign(fold=("row", np.arange(3000) % 2)))


def test_each_fit_has_a_checkpoint_of_its_own(tmp_path, monkeypatch):
    seen, fit = set(), BoostedTrees.fit

    def spy(self, *a, checkpoint=None, **kw):
        seen.add(str(checkpoint.relative_to(tmp_path)))
        return fit(self, *a, checkpoint=checkpoint, **kw)

    spy.__signature__ = inspect.signature(fit)
    monkeypatch.setattr(BoostedTrees, "fit", spy)
    quiet({"trees": BoostedTrees(4)}, data(600), checkpoint=tmp_path).fit()
    assert seen == {"trees/fold-0", "trees/fold-1", "trees/fold-2", "trees/all"}


def test_a_sample_is_said_and_covers_all_classes_and_the_whole_time():
    ds = data()
    t = quiet(
        {
            "trees": DecisionTreeClassifier(max_depth=4),
            "stream": SGDClassifier(loss="log_loss"),
            "linear": LogisticRegression(),
        },
        ds,
        sample=500,
    )
    said = dict(t.table.learnt)
    assert re.fullmatch(r"learnt from a sample of (499|500|501) of 2,000 rows", said["trees"])
    assert (
        said["stream"] == "learnt from all 2,000 rows, streamed once in blocks"
        and said["linear"] == "learnt from all 2,000 rows"
    )
    assert any(n.startswith("trees learnt from a sample") for n in t.notes) and any(
        "sample" in n for n in t.card("trees")["limits"]
    )
    rare = np.arange(10_000) % 500 == 7
    at = sampled(rare, 1000, [False, True])
    assert (
        (np.diff(at) > 0).all()
        and abs(len(at) - 1000) <= 1
        and rare[at].sum() == 2
        and np.diff(at).max() < 30
    )


@pytest.mark.parametrize(
    "label, candidates",
    [
        ("state", {"linear": LogisticRegression(), "forest": RandomForestClassifier(10)}),
        ("minutes", {"linear": LinearRegression(), "ridge": Ridge()}),
    ],
)
def test_several_classes_and_numbers(label, candidates):
    ds = data()
    t = quiet(
        candidates,
        ds,
        label,
        by="carrier",
        goals={"accuracy": ">= 0.2"} if label == "state" else {"rmse": "<= 100"},
    )
    model = t.fit()
    assert list(t.met().values()) == [True] and model.score(ds.isel(row=slice(0, 9))).shape == (
        (9, 3) if label == "state" else (9,)
    )
    assert (
        t.importance().lost()
        and "carrier=UA" in t.evaluations[t.best].slices
        and t.card()["metrics"]
        and "<svg" in t._repr_html_()
    )
    assert list(t.importance().lost())[0] == "wind"


def test_a_class_that_a_fold_lacks_has_probability_0():
    ds = data(600).assign(
        rare=(
            "row",
            np.where(np.arange(600) < 4, "c", np.array(["a", "b"])[np.arange(600) % 2]).astype(
                object
            ),
        ),
        group=("row", np.where(np.arange(600) < 4, 0, np.arange(600) % 3)),
    )
    t = quiet({"forest": RandomForestClassifier(5)}, ds, "rare", split="group")
    assert (
        t.scores["forest"].shape == (600, 3)
        and (t.scores["forest"][:4, 2] == 0).all()
        and np.allclose(t.scores["forest"].sum(axis=1), 1)
    )


# ---- failures


class Broken(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        raise RuntimeError("no such\n thing")

    def predict(self, X):
        return X

    def predict_proba(self, X):
        return X


def test_a_candidate_that_fails_does_not_take_the_others_along():
    lines = []
    t = quiet({"broken": Broken(), **BOTH}, data(), progress=lines.append, packaged=False)
    assert t.failed == {"broken": "RuntimeError: no such thing"} and set(t.scores) == set(BOTH)
    assert t.table.loc["broken", "failed"] == "RuntimeError: no such thing" and t.card()[
        "compared"
    ]["broken"] == {"failed": "RuntimeError: no such thing"}
    assert (
        any("broken" in line and "no such thing" in line for line in lines)
        and "no such thing" in t._repr_html_()
    )
    with pytest.raises(ParameterError, match="'broken' is not in the candidates that have scores"):
        t.fit("broken")


def test_all_fail():
    with pytest.raises(
        WorkFailed, match="No candidate could be fitted: broken: RuntimeError: no such thing"
    ):
        quiet({"broken": Broken()}, data(300), packaged=False)


def test_a_refit_that_fails_says_so(monkeypatch):
    t = quiet({"trees": DecisionTreeClassifier(max_depth=4)}, data(300))
    monkeypatch.setattr(DecisionTreeClassifier, "fit", Broken.fit)
    with pytest.raises(
        WorkFailed, match="'trees' could not be fitted on all rows: RuntimeError: no such thing"
    ):
        t.fit()


def test_an_interrupt_ends_it(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(DecisionTreeClassifier, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        quiet(BOTH, data(300), jobs=1)


# ---- in parallel, within memory


class Waits(ClassifierMixin, BaseEstimator):
    met, most, now, lock = threading.Event(), 0, 0, threading.Lock()

    def fit(self, X, y):
        with Waits.lock:
            Waits.now += 1
            Waits.most = max(Waits.most, Waits.now)
        Waits.met.wait(0.2)
        with Waits.lock:
            Waits.now -= 1
        self.classes_ = np.array([False, True])
        return self

    def predict(self, X):
        return np.zeros(len(X), bool)

    def predict_proba(self, X):
        return np.full((len(X), 2), 0.5)


@pytest.mark.parametrize("memory, jobs, wanted", [("4GB", 3, 3), ("4GB", 1, 1), (250_000, 3, 1)])
def test_as_many_at_once_as_fit(memory, jobs, wanted):
    Waits.most = 0
    t = quiet(
        {"a": Waits(), "b": Waits()}, data(), memory=memory, jobs=jobs, importance=0, packaged=False
    )
    assert (
        Waits.most == wanted == t.plan.jobs
        and f"6 fits, {'one' if wanted == 1 else wanted} at a time" in str(t.plan)
    )


def test_a_sample_shrinks_to_the_memory_there_is():
    ds = data(20_000)
    t = fits.transform_of(
        FEATURES,
        reduce(
            fits.by_fold(FEATURES.names), ds.assign({fits.FOLD: ("row", np.zeros(20_000, int))})
        ),
        [0],
    )[0]
    assert (
        "sample of 5,0"
        in learn(
            RandomForestClassifier(2),
            ds,
            "late",
            t,
            classes=np.array([False, True]),
            effort=Effort(memory=5000 * 4 * 3 * t.width_, sample=SAMPLE),
        ).says
    )


def test_progress(capsys):
    train(BOTH, data(300), "late", transform=FEATURES, split="fold")
    lines = capsys.readouterr().out.splitlines()
    assert (
        "each of 3 is tested" in lines[0]
        and "6 fits" in lines[1]
        and len(lines) == 8
        and all(" of 6: " in line and "log loss" in line for line in lines[2:])
    )


# ---- calibration, weights


def test_calibrated_scores_are_true_and_the_model_carries_the_curve(done):
    ds = data()
    raw = quiet(BOTH, ds)
    for name in BOTH:
        curve, e = done.calibrations[name], done.evaluations[name]
        assert e.roc_auc > raw.evaluations[name].roc_auc - 0.02 and not np.array_equal(
            done.scores[name], raw.scores[name]
        )
        model = done.fit(name)
        assert isinstance(model.estimator, Calibrated) and np.allclose(
            model.score(ds), curve(raw.fit(name).score(ds)), atol=1e-5
        )
    shifted = (
        quiet({"it": LogisticRegression()}, data(6000), class_weight={True: 5}),
        quiet(
            {"it": LogisticRegression()}, data(6000), class_weight={True: 5}, calibrate="sigmoid"
        ),
    )
    assert shifted[0].evaluations["it"].ece > 0.1 > 0.03 > shifted[1].evaluations["it"].ece
    assert any("calibrate= makes them true" in n for n in shifted[0].notes) and not any(
        "calibrate=" in n for n in shifted[1].notes
    )


def test_a_fold_is_not_calibrated_by_its_own_labels():
    r = np.random.default_rng(0)
    n = 400
    ds = xr.Dataset(
        {
            "x": ("row", r.normal(size=n)),
            "fold": ("row", np.arange(n) % 4),
            "late": ("row", r.random(n) < 0.5),
        }
    )
    t = train(
        {"it": LogisticRegression()},
        ds,
        "late",
        transform=Transform(numeric=["x"]),
        split="fold",
        judging=Judging(calibrate="isotonic"),
        effort=Effort(progress=False),
    )
    assert t.evaluations["it"].roc_auc < 0.6, (
        "isotonic on 400 rows of noise, judged by the same rows, would look good"
    )


def test_forward_calibration_uses_the_past_alone():
    ds = data()
    ds = Contract.infer(ds, label="late", time="date").attach(ds)
    raw, t = (
        quiet({"it": LogisticRegression()}, ds, split="time", folds=3, calibrate=c)
        for c in (None, "sigmoid")
    )
    first = t.split.fold == t.split.tests[0]
    assert np.array_equal(t.scores["it"][first], raw.scores["it"][first]) and any(
        "not calibrated" in n for n in t.notes
    )
    later = ds.assign(
        late=("row", np.where(t.split.fold == t.split.tests[-1], ~ds.late.values, ds.late.values))
    )
    changed = quiet({"it": LogisticRegression()}, later, split="time", folds=3, calibrate="sigmoid")
    assert np.allclose(
        changed.scores["it"][t.split.tested], t.scores["it"][t.split.tested], atol=1e-6
    ), "labels of the last window change no score of it"


def test_weights():
    ds = data().assign(w=("row", np.where(np.arange(3000) % 2, 2.0, 0.0)))
    other = ds.assign(late=ds.late ^ (ds.w == 0))
    for it in (LogisticRegression(tol=1e-8), TheirLogisticRegression(), BoostedTrees(5)):
        t, same = (quiet({"it": it}, d, weight="w", importance=0) for d in (ds, other))
        assert (
            np.allclose(t.scores["it"], same.scores["it"], atol=1e-5)
            and t.evaluations["it"].weight == 3000
        ), "labels of rows without weight do not matter"
        assert np.isclose(t.evaluations["it"].roc_auc, same.evaluations["it"].roc_auc)
    balanced, by_hand = (
        quiet({"it": LogisticRegression()}, ds, class_weight=c)
        for c in (
            "balanced",
            {False: 0.5 / (1 - ds.late.values.mean()), True: 0.5 / ds.late.values.mean()},
        )
    )
    assert np.allclose(balanced.scores["it"], by_hand.scores["it"], atol=1e-5)
    with pytest.raises(WorkFailed, match="MLPClassifier|Waits takes no weights"):
        quiet({"it": Waits()}, ds, class_weight="balanced", packaged=False)


# ---- the card and the model


def test_card_and_fit(done):
    card = done.card()
    assert (
        card["metrics"]["roc_auc"] == done.evaluations[done.best].roc_auc
        and card["goals"]["recall"]["met"]
        and card["threshold"] == done.threshold()
    )
    assert (
        card["slices"]["carrier=UA"]["count"] > 0
        and card["split"] == done.split.says
        and card["calibration"] == "isotonic"
        and set(card["compared"]) == set(BOTH)
    )
    assert (
        done.card("trees")["settings"] == {"max_depth": 4} and list(card["importance"])[0] == "wind"
    )
    model = done.fit()
    assert (
        model.summary.rows == 3000
        and model.says == "learnt from all 3,000 rows"
        and evaluate(data().late, model.score(data())).roc_auc > 0.65
    )


def test_it_is_packaged():
    from scalai_nb.models.package.package import package

    ds = data()
    for kind in (None, "isotonic", "sigmoid"):
        t = quiet({"linear": LogisticRegression()}, ds, goals={"auc": ">= 0.6"}, calibrate=kind)
        model = t.fit()
        assert np.allclose(
            package(model.transform, model.estimator, None, name="late", card=t.card())
            .predict(ds)
            .values,
            model.score(ds),
            atol=1e-5,
        )


# ---- importance


def test_permutation_importance_is_scikit_learns():
    ds = data(4000)
    t, task = FEATURES.fit(ds), task_of(ds, "late", True)
    model = TheirLogisticRegression().fit(t.transform(ds).values, ds.late.values)
    mine = importances(model, t, ds, task, repeats=20)
    by_column = Transform(numeric=["temp", "wind", "noise"]).fit(ds)
    other = TheirLogisticRegression().fit(by_column.transform(ds).values, ds.late.values)
    theirs = permutation_importance(
        other,
        by_column.transform(ds).values,
        ds.late.values,
        scoring="roc_auc",
        n_repeats=20,
        random_state=0,
    ).importances_mean
    mine_of_it = importances(other, by_column, ds, task, repeats=20).lost("roc_auc")
    assert np.allclose([mine_of_it[n] for n in ("temp", "wind", "noise")], theirs, atol=0.004)
    assert list(mine.lost())[:2] == ["wind", "carrier"] and abs(mine.lost()["noise"]) < 0.002
    assert (
        np.isclose(sum(mine.own.values()), 1)
        and max(mine.own, key=mine.own.get) == "wind"
        and "wind" in mine._repr_html_()
    )


def test_each_block_is_read_once_and_left_as_it_was():
    ds = data(2000)
    t = Transform(FEATURES.numeric, FEATURES.categorical).fit(ds)

    class Once:
        width_, numeric_, categorical_, reads = t.width_, t.numeric_, t.categorical_, 0

        def blocks(self, ds, rows):
            Once.reads += 1
            for X in t.blocks(ds, rows=500):
                before = X.copy()
                yield X
                assert np.array_equal(X, before)

    found = importances(
        RandomForestClassifier(5).fit(t.transform(ds).values, ds.late.values),
        Once(),
        ds,
        task_of(ds, "late", True),
    )
    assert Once.reads == 1 and found.whole.count == 2000


def test_importance_needs_to_be_asked_for(done):
    assert done.importance().whole.count == 3000
    with pytest.raises(ParameterError, match="Importance was not measured"):
        quiet({"linear": LogisticRegression()}, data(300), importance=0).importance()


# ---- leaks


def planted(n=2000):
    ds = data(n)
    r, late = np.random.default_rng(1), ds.late.values
    return ds.assign(
        copy=("row", late.astype("f4")),
        almost=("row", late + r.normal(0, 0.03, n)),
        inverse=("row", -3.0 * late + 7),
        delay=("row", np.where(late, r.exponential(20, n) + 31, r.uniform(-9, 30, n))),
        only_late=("row", np.where(late, r.normal(size=n), np.nan)),
        status=("row", np.where(late, "LATE", "OK").astype(object)),
        refund=("row", late.astype("i1"), {"categories": ["no", "yes"]}),
        tail=("row", np.array([f"N{i}" for i in range(n)], object)),
        hub=("row", np.array([f"H{i % 700}" for i in range(n)], object)),
        at=("row", np.datetime64("2020-01-01", "s") + late * 86400),
    )


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    "leak, numeric",
    [
        ("copy", True),
        ("almost", True),
        ("inverse", True),
        ("delay", True),
        ("only_late", True),
        ("at", True),
        ("status", False),
        ("refund", False),
        ("late", True),
    ],
)
def test_a_planted_leak_is_refused_by_name(leak, numeric, lazy):
    ds = planted().chunk(row=300) if lazy else planted()
    t = Transform(
        numeric=["wind", *([leak] if numeric else [])],
        categorical=["carrier", "tail", "hub", *([] if numeric else [leak])],
    )
    with pytest.raises(
        ContractViolation, match=f"'{leak}' (gives the label away|is the label)"
    ) as e:
        quiet({"linear": LogisticRegression()}, ds, transform=t)
    assert not any(f"'{n}' gives" in str(e.value) for n in ("wind", "carrier", "tail", "hub"))


def test_what_the_contract_calls_later_is_refused():
    ds = data()
    with pytest.raises(ContractViolation, match="'noise' becomes known only after the prediction"):
        quiet(
            {"linear": LogisticRegression()},
            ds,
            contract=Contract.infer(ds, label="late", later="noise"),
        )


def test_strong_features_are_no_leaks():
    ds = data(20_000)
    told = leaks.check_leaks(
        ds.assign(strong=ds.late + np.random.default_rng(0).normal(0, 0.3, 20_000)),
        "late",
        ["wind", "strong"],
        ["carrier", "origin"],
        classes=np.array([False, True]),
    )
    assert (
        leaks.check_leaks(planted(), "late", [], ["hub", "tail"], classes=np.array([False, True]))[
            "hub"
        ][0]
        < 0.3
    ), "700 categories of 2,000 rows explain much by their number"
    assert (
        next(iter(told)) == "strong"
        and 0.7 < told["strong"][0] < 0.95
        and told["wind"][0] == pytest.approx(abs(np.corrcoef(ds.wind, ds.late)[0, 1]), abs=1e-9)
    )


def test_few_rows_prove_nothing():
    ds = data(24)
    assert (
        leaks.check_leaks(
            ds.assign(x=ds.late * 1.0), "late", ["x"], classes=np.array([False, True])
        )
        == {}
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 100))
def test_associations_are_mergeable(seed, cut, more):
    ds = planted(300).isel(row=np.random.default_rng(seed).permutation(300))
    told = leaks.associations(
        ["wind", "temp", "delay", "only_late"], ["carrier", "hub"], "late", np.array([False, True])
    )
    check_mergeable(
        told,
        [ds.isel(row=slice(a, b)) for a, b in ((0, cut), (cut, cut + more), (cut + more, None))],
        lambda b: xr.concat(b, "row"),
    )


# ---- bad input


@pytest.mark.parametrize(
    "change, says",
    [
        ({"label": "latee"}, "'latee' is not in the columns.*Did you mean 'late'"),
        ({"label": "holes"}, "150 of 3,000 rows have no label 'holes'; leave them out: ds.isel"),
        ({"label": "nobody"}, "rows have no label 'nobody'"),
        ({"label": "always"}, "'always' is True in all 3,000 rows; two classes"),
        ({"label": "minutes"}, "distinct values; accepted: at most 100 classes"),
        ({"label": "date"}, "'date' holds times"),
        (
            {"goals": {"auk": ">= 0.6"}},
            "'auk' is not in what training measures.*Did you mean 'auc'",
        ),
        ({"goals": {"auc": "0.6"}}, "not a goal"),
        ({"candidates": {}}, "no candidates"),
        ({"candidates": [LogisticRegression()]}, "pass a dict"),
        ({"candidates": {"x": "trees"}}, "Candidate 'x' is str without fit"),
        ({"candidates": {"x": LogisticRegression}}, r"pass an estimator: LogisticRegression\(\)"),
        ({"candidates": {"x": LogisticRegression(), "y": Ridge()}}, "y tells no probabilities"),
        ({"data": "flights"}, "The data are a str"),
        ({"calibrate": "isotone"}, "kinds of calibration"),
        ({"class_weight": "even"}, "class_weight='even' is not known"),
        ({"class_weight": {"x": 1}}, "'x' is not in the classes of 'late'"),
        ({"split": "nothing"}, "'nothing' is not in the columns"),
        ({"by": ["carier"]}, "carier"),
        ({"weight": "ww"}, "ww"),
        ({"jobs": 0}, "jobs=0 is not known"),
        ({"memory": "lots"}, "memory='lots' is not known"),
        ({"weight": "noise"}, "A weight is negative"),
        ({"split": split(data(90), by="fold")}, "The split is of 90 rows"),
        ({"candidates": {"x": Ridge()}, "label": "status"}, "'status' holds no numbers"),
        (
            {"candidates": {"x": Ridge()}, "label": "minutes", "class_weight": "balanced"},
            "is for classes",
        ),
        ({"label": "state", "calibrate": "isotonic"}, "for two classes, and 'state' has classes"),
    ],
)
def test_bad_input(change, says):
    ds = data()
    ds = ds.assign(
        holes=ds.late.where(np.arange(3000) % 20 > 0),
        nobody=("row", np.where(np.arange(3000) % 9, "a", None)),
        always=("row", np.ones(3000, bool)),
        status=("row", np.full(3000, "x", object)),
    )
    kw = {
        "candidates": BOTH,
        "data": ds,
        "label": "late",
        "transform": FEATURES,
        "split": "fold",
        "progress": False,
    } | change
    with pytest.raises((ParameterError, ContractViolation), match=says):
        train(
            kw.pop("candidates"),
            kw.pop("data"),
            kw.pop("label"),
            kw.pop("goals", None),
            **options(**kw),
        )


def test_no_rows():
    with pytest.raises(ContractViolation, match="no rows"):
        quiet(BOTH, data().isel(row=[]))


def test_rows_on_both_sides():
    ds = data().assign(id=("row", np.arange(3000)))
    twice = xr.concat([ds, ds.isel(row=slice(0, 60)).assign(fold=(ds.fold[:60] + 1) % 3)], "row")
    with pytest.raises(
        ContractViolation,
        match=r"60 rows would be learnt from and tested.*the key \('id',\), for instance id \d+",
    ):
        quiet(BOTH, twice, contract=Contract.infer(ds, label="late", key="id"))
