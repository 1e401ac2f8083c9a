"Slim models of several classes, of numbers and of counts: measured by their own measures"

import numpy as np
import pytest
from sklearn import metrics
from test_classes import TREES, made, plots

from scalai_nb.errors import ParameterError
from scalai_nb.models.slim.slim import slim

NEW = plots(1200, seed=7)


@pytest.mark.parametrize("name", ["line", "trees", "network", "forest"])
def test_a_model_of_classes_is_made_smaller_or_says_why_not(name):
    model = made("tree", name)[2]
    report = slim(model, NEW, "tree", {"accuracy": ">= 0.1"}, by="soil", tolerance=0.02)
    assert {"compact", "distil"} <= {v.method for v in report.variants}
    assert all(v.model or v.reason for v in report.variants)
    measured = report.full.measured["all"]
    assert set(measured) == {"accuracy"} and len(report.full.measured) == 4
    for v in report.variants:
        if v.model:
            got = v.model.predict(NEW)
            assert got.shape == (1200, 5) and got["class"].values.tolist() == list(TREES)
            v.model.check()
            gone = np.abs(got - model.predict(NEW)).max().item()
            assert gone <= max(4 * v.parity, 1e-5)
    best = report.best.predict(NEW).values.argmax(axis=1)
    right = metrics.accuracy_score(NEW.tree, np.array(TREES, object)[best])
    assert (
        right
        >= metrics.accuracy_score(
            NEW.tree, np.array(TREES, object)[model.predict(NEW).values.argmax(axis=1)]
        )
        - 0.05
    )


def test_a_model_of_counts_is_held_to_its_deviance():
    report = slim(made("birds", "poisson", "counts")[2], NEW, "birds")
    assert report.terms.measures == ["poisson_deviance"]
    trees = slim(made("birds", "trees", "counts")[2], NEW, "birds", {"rmse": "<= 9"})
    assert trees.terms.measures == ["rmse"] and trees.full.measured["all"]["rmse"] > 0


def test_what_is_of_another_kind_is_refused_before_work():
    with pytest.raises(ParameterError, match="'auc' is not in the goals that slim can measure"):
        slim(made("tree", "line")[2], NEW, "tree", {"auc": ">= 0.5"})
    strange = NEW.assign(tree=("row", np.where(NEW.tree == "ash", "oak", NEW.tree).astype(object)))
    with pytest.raises(ParameterError, match="has the class 'oak', which 'plots' does not know"):
        slim(made("tree", "line")[2], strange, "tree")
