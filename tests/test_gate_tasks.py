"The gate of models of several classes and of numbers: their measures, slices, goals and refusals"

import numpy as np
import pytest
from sklearn import metrics
from test_classes import FEATURES, TREES, plots

import scalai_nb as sn
from scalai_nb.errors import ContractViolation, ParameterError
from scalai_nb.evaluation.comparison import Confidence, simultaneous
from scalai_nb.evaluation.paired import compare_classes, compare_numbers
from scalai_nb.models.package.package import package
from scalai_nb.models.registry.gate import Evidence, Limits, judge

LEARN, NEW = plots(3000), plots(3000, seed=1)


def shuffled(column):
    order = np.random.default_rng(3).permutation(3000)
    return LEARN.assign({column: LEARN[column][order].variable})


def packaged(estimator, label, rows=LEARN, features=None, **card):
    t = (features or FEATURES()).fit(rows)
    estimator.fit(t.transform(rows), rows[label].values)
    return package(t, estimator, name="plots", card=card)


@pytest.fixture(scope="module")
def trees():
    return packaged(sn.LogisticRegression(), "tree")


@pytest.fixture(scope="module")
def blind():
    "A model that has learned nothing from the soil"
    return packaged(sn.LogisticRegression(), "tree", rows=shuffled("soil"))


@pytest.fixture(scope="module")
def birds():
    return packaged(sn.PoissonRegression(), "birds", measure="poisson_deviance")


def check(verdict, name):
    (found,) = [c for c in verdict.checks if c.name == name]
    return found


def test_goals_of_classes_are_measured_as_scikit_learn_does(trees):
    goals = dict.fromkeys(
        ["log_loss", "accuracy", "balanced_accuracy", "recall", "precision", "f1", "brier"], "> 0"
    )
    goals |= {"recall of elm": ">= 0", "precision of ash": ">= 0", "auc": ">= 0.5"}
    verdict = judge(trees, NEW, "tree", goals)
    p = trees.predict(NEW).values.astype(float)
    y, guess = NEW.tree.values, np.array(TREES, object)[p.argmax(axis=1)]
    by = {"labels": list(TREES), "zero_division": 0}
    expected = {
        "log_loss": metrics.log_loss(y, p / p.sum(axis=1, keepdims=True), labels=list(TREES)),
        "accuracy": metrics.accuracy_score(y, guess),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, guess),
        "recall": metrics.recall_score(y, guess, average="macro", **by),
        "precision": metrics.precision_score(y, guess, average="macro", **by),
        "f1": metrics.f1_score(y, guess, average="macro", **by),
        "recall of elm": metrics.recall_score(y, guess, average=None, **by)[3],
        "precision of ash": metrics.precision_score(y, guess, average=None, **by)[0],
    }
    assert {n: check(verdict, n).value for n in expected} == pytest.approx(expected, abs=1e-5)
    assert verdict.passed and verdict.rows == 3000 and check(verdict, "accuracy").low is not None


def test_a_model_of_classes_that_is_worse_on_a_slice_is_refused(trees, blind):
    verdict = judge(blind, NEW, "tree", {"log_loss": "<= 2"}, champion=trees, by="soil")
    failed = {c.name for c in verdict.checks if not c.met and c.decides}
    assert {"log_loss of all rows", "log_loss of soil clay"} <= failed and not verdict.passed
    line = check(verdict, "log_loss of soil clay")
    clay = (NEW.soil == "clay").values
    y = NEW.tree.values[clay]
    new, old = (m.predict(NEW).values[clay].astype(float) for m in (blind, trees))
    expected = [
        metrics.log_loss(y, p / p.sum(axis=1, keepdims=True), labels=list(TREES))
        for p in (new, old)
    ]
    assert line.value == pytest.approx(expected[0] - expected[1], abs=1e-5) and line.low > 0
    limits = Limits(measures=["accuracy", "balanced_accuracy", "recall of fir"], margin=1)
    lenient = judge(
        blind, NEW, "tree", {"accuracy": ">= 0"}, champion=trees, by="soil", limits=limits
    )
    assert lenient.passed and "recall of fir of soil sand" in lenient.measured
    assert judge(trees, NEW, "tree", {"accuracy": ">= 0.3"}, champion=blind, by="soil").passed


def test_a_slice_with_few_rows_of_a_class_cannot_tell(trees, blind):
    few = NEW.isel(row=slice(0, 60))
    limits = Limits(measures=["recall of cedar", "log_loss"])
    verdict = judge(blind, few, "tree", {"accuracy": ">= 0"}, champion=trees, limits=limits)
    assert "too few to tell, 30 are needed" in check(verdict, "recall of cedar of all rows").reason
    assert "too few" not in check(verdict, "log_loss of all rows").reason


def test_goals_of_counts_and_their_slices(birds):
    goals = {
        "poisson_deviance": "<= 1.3",
        "rmse": "<= 3",
        "mae": "<= 3",
        "pinball_loss(0.9)": "< 9",
    }
    worse = packaged(
        sn.PoissonRegression(),
        "birds",
        rows=shuffled("light"),
        measure="poisson_deviance",
    )
    verdict = judge(worse, NEW, "birds", goals | {"r2": ">= -1"}, champion=birds, by="soil")
    y, new, old = NEW.birds.values, *(m.predict(NEW).values for m in (worse, birds))
    expected = metrics.mean_poisson_deviance(y, new)
    assert check(verdict, "poisson_deviance").value == pytest.approx(expected)
    line = check(verdict, "poisson_deviance of all rows")
    assert line.value == pytest.approx(expected - metrics.mean_poisson_deviance(y, old))
    assert not line.met and {"poisson_deviance of soil loam"} <= verdict.measured.keys()
    assert judge(birds, NEW, "birds", goals, champion=worse, by="soil").passed


def test_a_loss_that_the_champion_has_not_falls_back_to_rmse(birds):
    line = packaged(sn.LinearRegression(), "birds")
    verdict = judge(birds, NEW, "birds", {"poisson_deviance": "<= 2"}, champion=line)
    assert "rmse of all rows" in verdict.measured and check(verdict, "poisson_deviance").met
    verdict = judge(line, NEW, "birds", {"poisson_deviance": "<= 2"})
    assert not verdict.passed
    assert "is not defined: " in check(verdict, "poisson_deviance").reason


def test_scores_of_a_model_that_had_not_seen_the_rows(trees):
    known = np.eye(5)[[TREES.index(t) for t in NEW.tree.values]]
    verdict = judge(trees, NEW, "tree", {"accuracy": ">= 1"}, evidence=Evidence(score=known))
    assert verdict.passed
    with pytest.raises(ParameterError, match=r"shape \(3000, 2\); accepted: \(row, 5\)"):
        judge(trees, NEW, "tree", {"accuracy": "> 0"}, evidence=Evidence(score=known[:, :2]))


def test_codes_and_names_are_the_same_classes():
    model = packaged(sn.LogisticRegression(), "code", classes=TREES)
    a, b = (judge(model, NEW, label, {"log_loss": "< 9"}).measured for label in ("code", "tree"))
    assert a["log_loss"] == b["log_loss"]


def test_what_is_of_another_kind_is_refused(trees, birds):
    with pytest.raises(ParameterError, match="'plots' gives a number, and 'tree' holds none"):
        judge(birds, NEW, "tree", {"rmse": "<= 1"})
    strange = NEW.assign(tree=("row", np.where(NEW.tree == "ash", "oak", NEW.tree).astype(object)))
    with pytest.raises(ParameterError, match="has the class 'oak', which 'plots' does not know"):
        judge(trees, strange, "tree", {"accuracy": ">= 0"})
    with pytest.raises(ContractViolation, match="have no label 'height'"):
        judge(birds, NEW.assign(height=NEW.height.where(NEW.height > 0)), "height", {"rmse": "< 1"})
    verdict = judge(birds, NEW, "birds", {"auc": ">= 0.5"})
    assert "'auc' is not in what the gate measures" in check(verdict, "auc").reason
    other = judge(trees, NEW, "tree", {"accuracy": ">= 0"}, champion=birds)
    assert not check(other, "contract").met and not other.passed
    three = plots(classes=3)
    fewer = packaged(sn.LogisticRegression(), "tree", rows=three)
    told = judge(fewer, three, "tree", {"accuracy": ">= 0"}, champion=trees)
    assert (
        "tells ash, beech, cedar apart, the served model ash, beech"
        in check(told, "contract").reason
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_of_differences_hold(grouped):
    "of 200 draws about 19 of 20 intervals hold the true difference, which is 0"
    held = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(60), 5) if grouped else None
        shift = rng.normal(size=(60, 2)).repeat(5, axis=0) if grouped else np.zeros((300, 2))
        y = rng.normal(size=300)
        new, old = (y + rng.normal(size=300) + 0.5 * s for s in shift.T)
        line = compare_numbers(y, new, old, groups=group, measures=["mae"]).iloc[0]
        held.append(line.low <= 0 <= line.high)
    assert 0.9 <= np.mean(held) <= 0.99


def test_comparisons_equal_differences_by_hand():
    rng = np.random.default_rng(0)
    number = rng.integers(0, 3, 500)
    new, old = (rng.dirichlet([1, 1, 1], 500) for _ in range(2))
    table = compare_classes(number, new, old, classes=["a", "b", "c"])
    values = table.set_index("measure")
    assert values.new["log_loss"] == pytest.approx(metrics.log_loss(number, new))
    assert values.old["accuracy"] == metrics.accuracy_score(number, old.argmax(axis=1))
    expected = metrics.balanced_accuracy_score(number, new.argmax(axis=1))
    assert values.new["balanced_accuracy"] == pytest.approx(expected)
    wide = simultaneous(table)
    assert ((wide.high - wide.low) > (table.high - table.low)).all()
    y, a, b = number.astype(float), rng.normal(size=500), rng.normal(size=500)
    found = compare_numbers(y, a, b, confidence=Confidence(rounds=50)).set_index("measure")
    assert found.new["r2"] == pytest.approx(metrics.r2_score(y, a))
    assert found.old["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, b))
    with pytest.raises(ParameterError, match="poisson_deviance is not defined for the new model"):
        compare_numbers(y, a, b, measures=["poisson_deviance"])
    with pytest.raises(ParameterError, match="no probabilities"):
        compare_classes(number, new * 3, old, classes=["a", "b", "c"])
