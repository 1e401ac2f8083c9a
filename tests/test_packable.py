"What could not be packaged is refused before anything is learnt, and nothing else is"

import re

import pytest
from sklearn import dummy, ensemble, linear_model, pipeline, preprocessing, svm
from sklearn.base import BaseEstimator, ClassifierMixin
from test_classes import CLASSIFIERS, COUNTS, QUIET, REGRESSORS, plots
from xgboost import XGBClassifier, XGBRegressor

import scalai_nb as sn
from scalai_nb.errors import ParameterError
from scalai_nb.learn.training import training
from scalai_nb.learn.training.packable import NATIVE, OBJECTIVES, unpackable
from scalai_nb.models.package.heads import HEADS, LINKS


def test_the_questions_are_those_of_the_package():
    assert {*HEADS} - {*NATIVE} == {"Calibrated", "Outside", "BaseEstimator"}
    assert {*NATIVE} <= {*HEADS} and {*LINKS} == {*OBJECTIVES}


class Own(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return X


def regressor(**options):
    return sn.BoostedTrees(objective="reg:squarederror", **options)


REFUSED = [
    ("tree", Own(), {}, "skl2onnx has no converter for Own; accepted: an estimator of"),
    ("tree", dummy.DummyClassifier(), {}, "no converter for DummyClassifier"),
    ("tree", ensemble.BaggingClassifier(Own()), {}, "no converter for Own"),
    ("tree", pipeline.make_pipeline(Own()), {}, "no converter for Own"),
    (
        "tree",
        XGBClassifier(),
        {},
        "learns classes 0, 1, … only, and 'tree' has 'ash'; pass",
    ),
    ("height", XGBRegressor(objective="reg:squaredlogerror"), {}, "accepted: binary:logistic"),
    ("height", XGBRegressor(booster="gblinear"), {}, "accepted: gbtree"),
    ("height", XGBRegressor(missing=-1), {}, "accepted: NaN"),
    (
        "height",
        ensemble.HistGradientBoostingRegressor(categorical_features=[0]),
        {},
        "categorical_features=; leave it out",
    ),
    ("height", linear_model.Ridge(), {"impute": None}, "takes no missing numbers, as 'light'"),
    ("height", sn.LinearRegression(), {"categorical": {"soil": {"hash": 4}}}, "'soil' is hashed"),
]


@pytest.mark.parametrize(("label", "estimator", "options", "text"), REFUSED)
def test_it_is_refused_before_anything_is_learnt(label, estimator, options, text, monkeypatch):
    def learns(*_, **__):
        pytest.fail("it went to work")

    monkeypatch.setattr(training, "_held", learns)
    t = sn.Transform(**{"numeric": ["light", "water"], "categorical": ["soil"]} | options)
    with pytest.raises(ParameterError, match=re.escape(text)) as refused:
        sn.train({"it": estimator}, plots(60), label, transform=t, split="random", effort=QUIET)
    assert ". " not in str(refused.value)


def test_who_only_compares_says_so():
    options = {"split": "random", "effort": QUIET}
    judging = sn.Judging(packaged=False, importance=0)
    t = sn.train({"it": dummy.DummyRegressor()}, plots(90), "height", judging=judging, **options)
    assert t.best == "it"


@pytest.mark.parametrize(
    ("label", "estimators"), [("tree", CLASSIFIERS), ("height", REGRESSORS), ("birds", COUNTS)]
)
def test_what_can_be_packaged_is_not_refused(label, estimators):
    assert {n: unpackable(e()) for n, e in estimators.items()} == dict.fromkeys(estimators)
    others = [svm.SVC(probability=True)] if label == "tree" else [svm.SVR()]
    others.append(pipeline.make_pipeline(preprocessing.StandardScaler(), others[0]))
    assert [unpackable(e) for e in others] == [None, None]
