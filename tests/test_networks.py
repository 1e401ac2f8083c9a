"""Networks: the same learner of any rows; it ends as if nothing had been, whatever was killed"""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
import xarray as xr
from dask import array as da
from hypothesis import given, settings, strategies as st
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.utils.estimator_checks import check_estimator

from scalai_nb.compute.cluster import connect
from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import Environment
from scalai_nb.errors import (
    ContractViolation,
    MissingExtra,
    ParameterError,
    ScalaiError,
    WorkFailed,
)
from scalai_nb.learn.networks import descent
from scalai_nb.learn.networks import gang
from scalai_nb.learn.networks.batches import WINDOW, batches, steps_of, strips
from scalai_nb.learn.linear.regression import LogisticRegression
from scalai_nb.learn.networks.networks import Checkpoint, Network, NetworkOptions
from scalai_nb.learn.networks.spans import Spans, Stream, of_arrays
from scalai_nb.learn.features.rows import Rows
from scalai_nb.learn.features.transform import Transform

torch = pytest.importorskip("torch")
nn = torch.nn
RNG = np.random.default_rng
LOCAL = Environment(name="test", root=None, cluster="local", workers=2, memory=2_000_000_000)


OPTIONS = {f.name for f in fields(NetworkOptions)}


def network(module=None, **kw):
    "A network, whose options are among the other words"
    options = {n: kw.pop(n) for n in list(kw) if n in OPTIONS}
    return Network(module, **kw, options=NetworkOptions(**options) if options else None)


def labelled(n=4000, features=5, classes=2, seed=0):
    r = RNG(seed)
    X = r.normal(size=(n, features)).astype(np.float32)
    return X, (X @ r.normal(size=(features, classes)) + r.gumbel(size=(n, classes))).argmax(axis=1)


def same(a: Network, b: Network) -> bool:
    "Whether the weights are the same, bit for bit"
    return all(
        torch.equal(x, y)
        for x, y in zip(
            a.module_.state_dict().values(), b.module_.state_dict().values(), strict=True
        )
    )


# ---- batches


def spans(sizes, together=False, width=0):
    "Blocks of rows that are numbered from 0 on"
    ends = np.cumsum([0, *sizes])
    blocks = [
        (np.arange(a, b, dtype=float)[:, None], np.arange(a, b))
        for a, b in zip(ends, ends[1:], strict=False)
    ]
    return Spans(blocks, of_arrays, tuple((i, 0, n) for i, n in enumerate(sizes)), width, together)


@settings(max_examples=80, deadline=None, database=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum),
    st.integers(1, 50),
    st.sampled_from([0, 1, 30, 1000]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 5),
    st.booleans(),
)
def test_every_row_is_learnt_from_once(sizes, size, shuffle, ranks, together, first, stream):
    n, steps, seen = sum(sizes), steps_of(sum(sizes), size), []
    ranks = max(1, min(ranks, n // steps.steps))
    for rank in range(1 if stream else ranks):
        data = (
            Stream(spans(sizes).source, n) if stream else spans(sizes, together).share(rank, ranks)
        )
        rows = n if stream else data.rows
        all_ = list(batches(data, rows, steps, shuffle, (0, rank)))
        assert len(all_) == steps.steps and all(1 <= len(b.X) <= size or ranks > 1 for b in all_)
        assert max(len(b.X) for b in all_) - min(len(b.X) for b in all_) <= 1
        assert all((b.X[:, 0] == b.y).all() for b in all_)
        seen += [b.y for b in all_]
        later = list(
            batches(data, rows, steps, shuffle, (0, rank), first=min(first, steps.steps - 1))
        )
        assert [b.y.tolist() for b in later] == [
            b.y.tolist() for b in all_[min(first, steps.steps - 1) :]
        ]
    flat = np.concatenate(seen)
    assert sorted(flat) == list(range(n)) and (
        shuffle or ranks > 1 or flat.tolist() == list(range(n))
    )


def test_the_order_follows_from_the_seed_and_mixes_blocks():
    order = lambda seed, data: np.concatenate([b.y for b in strips(data, 60, seed)]).tolist()
    data = spans([50] * 6)
    assert order((0, 1), data) == order((0, 1), data) != order((0, 2), data)
    assert {y // 50 for y in order((0, 1), data)[:30]} != {0} and len(
        {y // 50 for y in order((0, 1), data)[:30]}
    ) == 2, "two blocks are open at once"
    assert len({y // 50 for y in order((0, 1), spans([50] * 6, together=True))[:40]}) == 6, (
        "what is in memory is mixed at large"
    )
    assert len({y // 50 for y in order((0, 1), spans([50] * 6, width=WINDOW // 60))[:30]}) == 1, (
        "two blocks would take too much memory"
    )


def test_a_source_that_changes_its_length_is_noticed():
    for rows in (9, 11):
        with pytest.raises(
            WorkFailed, match=f"{'more' if rows == 9 else 'fewer'} rows than the {rows}"
        ):
            list(batches(Stream(spans([10]).source), rows, steps_of(rows, 4), 0, (0,)))


def test_a_block_that_is_overwritten_was_copied():
    def blocks():
        X = np.empty((10, 1), np.float32)
        for i in range(4):
            X[:] = i
            yield X, np.full(10, i)

    assert all(
        (b.X[:, 0] == b.y).all()
        for b in batches(Stream(Rows(blocks)), 40, steps_of(40, 7), 25, (0,))
    )


# ---- scikit-learn's contract

KNOWN = {
    "check_array_api_input": "it wants SCIPY_ARRAY_API",
    "check_sample_weight_equivalence_on_dense_data": (
        "a row twice is in two batches, and sums are float32"
    ),
}


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_contract(loss):
    net = network(loss=loss, hidden=(32,), epochs=25, batch_size=32, learning_rate=0.03)
    done = check_estimator(net, on_skip=None, on_fail=None)
    assert {c["check_name"] for c in done if c["status"] != "passed"} <= KNOWN.keys()
    assert (
        is_classifier(net)
        == (loss == "log_loss")
        == (not is_regressor(net))
        == hasattr(net, "predict_proba")
    )


def test_an_option_is_a_parameter_for_scikit_learn():
    net = network(dropout=0.1)
    assert net.get_params()["options__dropout"] == 0.1
    changed = clone(net).set_params(options__seed=3, epochs=2)
    assert changed.options == NetworkOptions(dropout=0.1, seed=3) and net.options.seed == 0
    with pytest.raises(ValueError, match="'dropuot'"):
        net.set_params(options__dropuot=0.5)


# ---- what is learnt


def test_without_a_hidden_layer_it_is_logistic_regression():
    X, y = labelled(20_000)
    net = network(hidden=(), epochs=40, batch_size=2000, learning_rate=0.02, weight_decay=0.0).fit(
        X, y
    )
    exact = LogisticRegression(C=np.inf).fit(X, y)
    np.testing.assert_allclose(net.module_[0].weight.numpy(), exact.coef_, atol=0.05)
    np.testing.assert_allclose(net.predict_proba(X), exact.predict_proba(X), atol=0.02)


def two_logits(features):
    return nn.Linear(features, 2)


def flat_logit(features):
    return nn.Sequential(nn.Linear(features, 1), nn.Flatten(0))


@pytest.mark.parametrize("module", [None, two_logits, flat_logit, nn.Linear(5, 1)])
def test_two_classes(module):
    X, y = labelled()
    net = network(
        module, epochs=20, batch_size=200, learning_rate=0.02, class_weight="balanced"
    ).fit(X, np.where(y, "late", "early"))
    p = net.predict_proba(X)
    assert (
        net.classes_.tolist() == ["early", "late"]
        and p.shape == (4000, 2)
        and np.allclose(p.sum(axis=1), 1)
    )
    assert (net.predict(X) == np.where(p[:, 1] > 0.5, "late", "early")).all() and net.score(
        X, np.where(y, "late", "early")
    ) > 0.8


def test_three_classes_and_one_that_weighs_more():
    X, y = labelled(classes=3)
    kw = {"epochs": 20, "batch_size": 200, "learning_rate": 0.02}
    net, biased = network(**kw).fit(X, y), network(**kw, class_weight={0: 20, 1: 1, 2: 1}).fit(X, y)
    assert net.predict_proba(X).shape == (4000, 3) and net.score(X, y) > 0.6
    assert (biased.predict(X) == 0).sum() > 1.3 * (net.predict(X) == 0).sum()


def test_weights_are_rows_that_count_for_more():
    X, y = labelled(600)
    kw = {
        "hidden": (),
        "epochs": 60,
        "batch_size": 10_000,
        "learning_rate": 0.05,
        "optimizer": "sgd",
        "weight_decay": 0.0,
    }
    w = RNG(1).integers(0, 4, 600)
    a, b = network(**kw).fit(X, y, w), network(**kw).fit(X.repeat(w, axis=0), y.repeat(w))
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), atol=1e-4)
    twice = network(**kw).fit(X, y, 2.0 * w)
    np.testing.assert_allclose(a.predict_proba(X), twice.predict_proba(X), atol=1e-6)


def huber(output, target):
    return nn.functional.huber_loss(output[:, 0], target, reduction="none")


def mean_of_logits(output, target):
    return nn.functional.cross_entropy(output, target)


def test_losses_of_ones_own():
    X, y = labelled()
    z = X @ np.arange(5) + 100
    net = network(loss=huber, task="values", epochs=30, batch_size=200, learning_rate=0.02).fit(
        X, z
    )
    assert net.score(X, z) > 0.98 and not hasattr(net, "classes_") and is_regressor(net)
    net = network(
        two_logits, loss=mean_of_logits, epochs=10, batch_size=200, learning_rate=0.02
    ).fit(X, y)
    assert net.score(X, y) > 0.8
    with pytest.raises(ParameterError, match="one a row"):
        network(two_logits, loss=mean_of_logits).fit(X, y, np.ones(4000))


def test_absolute_error_finds_the_median():
    y = RNG(0).exponential(size=5000)
    net = network(
        hidden=(), loss="absolute_error", epochs=30, batch_size=500, learning_rate=0.01
    ).fit(np.zeros((5000, 1)), y)
    assert (
        abs(net.predict(np.zeros((1, 1)))[0] - np.median(y)) < 0.05 < abs(y.mean() - np.median(y))
    )


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": lambda p: torch.optim.RMSprop(p, 0.01)},
        {"max_norm": 0.5},
        {"precision": "mixed"},
        {"dropout": 0.2},
    ],
)
def test_options_learn_too(options):
    X, y = labelled()
    net = network(**{"epochs": 10, "batch_size": 200, "learning_rate": 0.01} | options).fit(X, y)
    assert net.score(X, y) > 0.78 and net.history_[-1]["loss"] < net.history_[0]["loss"]


def test_a_gradient_is_cut_to_its_length():
    X, y = labelled(100)
    kw = {
        "hidden": (),
        "optimizer": lambda p: torch.optim.SGD(p, 1.0),
        "batch_size": 100,
        "epochs": 1,
    }
    free, cut = network(**kw).fit(X * 1000, y), network(**kw, max_norm=0.1).fit(X * 1000, y)
    start = network(**kw, max_norm=1e-9).fit(X * 1000, y).module_[0].weight
    assert (
        (cut.module_[0].weight - start).norm() < 0.11 < 10 < (free.module_[0].weight - start).norm()
    )


# ---- the same, whatever the rows come as


def test_sources_learn_the_same(tmp_path):
    X, y = labelled(3000)
    w = RNG(2).random(3000)
    kw = {"shuffle": 0, "epochs": 2, "batch_size": 250}
    ds = xr.Dataset(
        {f"x{i}": ("row", X[:, i]) for i in range(5)} | {"y": ("row", y), "w": ("row", w)}
    )
    t = Transform(numeric=[f"x{i}" for i in range(5)], scale=None).fit(ds)
    chunked = ds.chunk(row=700)
    base = network(**kw).fit(X, y, w)
    a, b, c = (da.from_array(v, chunks=(700, 3)[: v.ndim]) for v in (X, y, w))
    others = {
        "DataArray": (
            (xr.DataArray(X, dims=("row", "feature")), xr.DataArray(y, dims="row"), w),
            {},
        ),
        "Dask": ((a, b, c), {}),
        "Dataset": ((ds, "y", "w"), {}),
        "chunked": ((chunked, "y", "w"), {}),
        "transform": ((chunked, "y", "w"), {"transform": t}),
        "blocks": ((t.blocks(chunked, label="y", weight="w"),), {}),
        "source": (
            ([(X[i : i + 400], y[i : i + 400], w[i : i + 400]) for i in range(0, 3000, 400)],),
            {},
        ),
    }
    for name, (given_, options) in others.items():
        assert same(base, network(**kw).fit(*given_, **options)), name
    named = network(**kw).fit(ds, "y", "w")
    assert (
        named.feature_names_in_.tolist() == [f"x{i}" for i in range(5)]
        and named.n_features_in_ == 5
    )
    for rows, options in ((X, {}), (ds, {"transform": t}), (chunked, {"transform": t}), (a, {})):
        np.testing.assert_allclose(
            np.asarray(base.predict_proba(rows, **options)), base.predict_proba(X), rtol=1e-5
        )
    np.testing.assert_array_equal(named.predict(chunked.drop_vars("y")), base.predict(X))
    assert (
        type(base.predict_proba(a)).__module__.startswith("dask")
        and base.predict(a).dtype == y.dtype
    )


def test_a_fitted_network_is_pickled_and_cloned():
    X, y = labelled(500)
    net = network(two_logits, epochs=1).fit(X, y)
    back = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(back.predict_proba(X), net.predict_proba(X))
    assert (
        not hasattr(clone(net), "module_")
        and same(clone(net).fit(X, y), net)
        and not net.module_.training
    )


def test_a_module_of_ones_own_is_left_as_it_was():
    X, y = labelled(500)
    own = nn.Linear(5, 1)
    before = own.weight.detach().clone()
    net = network(own, epochs=2).fit(X, y)
    assert (
        torch.equal(own.weight, before)
        and own.weight.requires_grad
        and own.training
        and not torch.equal(net.module_.weight, before)
    )


# ---- early stopping


def test_it_stops_early_and_keeps_the_best(tmp_path):
    X, y = labelled(300)
    net = network(epochs=300, batch_size=50, learning_rate=0.03, early_stopping=4)
    held = labelled(2000, seed=0)[0], RNG(5).permutation(labelled(2000)[1])[:2000]
    held = held[0][300:], labelled(2000)[1][300:]
    net.fit(X, y, validation=held, checkpoint=tmp_path)
    losses = [h["validation_loss"] for h in net.history_]
    best = int(np.argmin(losses))
    assert len(losses) == best + 5 < 300, "four epochs after the best"
    p = net.predict_proba(held[0])[np.arange(len(held[1])), held[1]]
    assert np.isclose(-np.log(p).mean(), losses[best], rtol=1e-4), (
        "the weights are those of the best epoch"
    )
    again = clone(net).fit(X, y, validation=held, checkpoint=tmp_path)
    assert same(net, again) and again.history_ == net.history_, "what has ended is not begun again"


def test_validation_may_be_any_rows():
    X, y = labelled(1000)
    ds = xr.Dataset({"a": ("row", X[:, 0]), "b": ("row", X[:, 1]), "y": ("row", y)})
    few = [(X[:, :2], y)]
    histories = [
        network(epochs=2).fit(ds, "y", validation=v).history_
        for v in (ds, ds.chunk(row=300), (X[:, :2], y), few, Rows(lambda: iter(few)))
    ]
    assert len({h[-1]["validation_loss"] for h in histories}) == 1


# ---- interrupted


class Stop(Exception):
    pass


class Fragile(nn.Module):
    "Fails in the forward pass of a given number, in training; has dropout and counts means"

    def __init__(self, features, at=None):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, 1),
        )
        self.left = at

    def forward(self, X):
        if self.training and self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stop
        return self.layers(X)

    def __repr__(self):
        return "Fragile"


@pytest.mark.parametrize("at", [1, 13, 20, 37])
def test_interrupted_it_ends_bit_for_bit_the_same(tmp_path, at):
    X, y = labelled(2000)
    kw = {"epochs": 4, "batch_size": 200, "max_norm": 1.0, "seed": 3}
    whole = network(Fragile, **kw).fit(X, y, validation=(X, y))
    with pytest.raises(Stop):
        network(lambda n: Fragile(n, at), **kw).fit(
            X, y, validation=(X, y), checkpoint=Checkpoint(tmp_path, 0)
        )
    assert [f.suffix for f in tmp_path.iterdir()] == [".pt"]
    steps = []
    rest = network(lambda n: _counting(Fragile(n), steps), **kw).fit(
        X, y, validation=(X, y), checkpoint=Checkpoint(tmp_path, 0)
    )
    assert same(whole, rest) and [h["loss"] for h in rest.history_] == [
        h["loss"] for h in whole.history_
    ]
    assert len(steps) == 40 - at, "it did not begin anew"


def _counting(module, steps):
    module.register_forward_pre_hook(lambda m, X: steps.append(1) if m.training else None)
    return module


@pytest.mark.slow
def test_killed_it_goes_on(tmp_path):
    code = f"""
        import os, signal, sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_networks import Checkpoint, network, labelled
        kill = lambda entry: os.kill(os.getpid(), signal.SIGKILL) if entry["epoch"] == 3 else None
        network(epochs=6, batch_size=100, dropout=0.2).fit(*labelled(1000), \
checkpoint=Checkpoint({str(tmp_path)!r}, 0), progress=kill)"""
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=200).returncode
        == -signal.SIGKILL
    )
    told = []
    net = network(epochs=6, batch_size=100, dropout=0.2).fit(
        *labelled(1000), checkpoint=tmp_path, progress=told.append
    )
    assert [h["epoch"] for h in told] == [3, 4, 5, 6], (
        "the snapshot before the third epoch's end was the last"
    )
    assert same(net, network(epochs=6, batch_size=100, dropout=0.2).fit(*labelled(1000)))


def test_more_epochs_go_on_and_other_data_or_settings_begin_anew(tmp_path):
    X, y = labelled(500)
    told = []
    fit = lambda rows=X, **kw: network(**{"epochs": 2, "batch_size": 100} | kw).fit(
        rows, y, checkpoint=tmp_path, progress=told.append
    )
    fit(), fit()
    assert len(told) == 2
    assert same(fit(epochs=3), network(epochs=3, batch_size=100).fit(X, y)) and len(told) == 3
    for other in (
        {"learning_rate": 0.1},
        {"seed": 1},
        {"rows": X + 1},
        {"loss": "squared_error"},
        {"hidden": (3,)},
        {"class_weight": "balanced"},
    ):
        fit(**other)
    assert len(told) == 3 + 2 * 6 and len(list(tmp_path.iterdir())) == 7


def test_a_checkpoint_that_is_damaged_is_refused_and_reading_one_runs_no_code(tmp_path):
    X, y = labelled(200)
    network(epochs=1).fit(X, y, checkpoint=tmp_path)
    (file,) = tmp_path.iterdir()
    for content in (file.read_bytes()[:100], b"", pickle.dumps(Stop())):
        file.write_bytes(content)
        with pytest.raises(WorkFailed, match="cannot be read.*delete it"):
            network(epochs=1).fit(X, y, checkpoint=tmp_path)


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkFailed, match="cannot be written to .*name a folder"):
        network(epochs=1).fit(*labelled(200), checkpoint=tmp_path / "file")


# ---- what is random


def test_two_at_once_learn_what_each_learns_alone():
    X, y = labelled(1000)
    fit = lambda seed: network(dropout=0.5, epochs=3, batch_size=50, seed=seed).fit(X, y)
    alone = [fit(0), fit(1)]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(fit, (0, 1)))
    assert same(alone[0], at_once[0]) and same(alone[1], at_once[1]) and not same(*alone)


def test_what_is_random_elsewhere_stays_as_it_is():
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    network(dropout=0.5, epochs=1).fit(*labelled(200))
    assert torch.equal(torch.rand(3), want) and torch.get_num_threads() == threads


# ---- bad input


class Blows(nn.Module):
    "Its output is not finite from the third step on"

    def __init__(self, features):
        super().__init__()
        self.line, self.steps = nn.Linear(features, 1), 0

    def forward(self, X):
        self.steps += self.training
        return self.line(X) * (np.inf if self.steps > 12 else 1)


def test_a_loss_that_is_not_finite_names_epoch_and_batch_and_keeps_the_checkpoint(tmp_path):
    X, y = labelled(1000)
    with pytest.raises(
        WorkFailed, match=r"The loss is (nan|inf) in epoch 2, batch 3 of 10; lower learning_rate"
    ):
        network(Blows, batch_size=100).fit(X, y, checkpoint=Checkpoint(tmp_path, 0))
    (file,) = tmp_path.iterdir()
    assert (kept := descent.opened(file.read_bytes())).epoch == 1 and kept.step == 2
    with pytest.raises(WorkFailed):
        network(
            hidden=(8,), optimizer="sgd", learning_rate=1e9, loss="squared_error", batch_size=100
        ).fit(X, X[:, 0] * 1e3)


def bad(**changes):
    return {"X": labelled(100)[0], "y": labelled(100)[1], "net": {}, "fit": {}} | changes


X_, Y_ = labelled(100)
NAN = X_.copy()
NAN[50, 2] = np.nan


@pytest.mark.parametrize(
    ("error", "words", "case"),
    [
        (ContractViolation, "Input X contains NaN or infinity.*impute", bad(X=NAN)),
        (ContractViolation, "one class only, 1", bad(y=np.ones(100, int))),
        (ContractViolation, "a label is missing", bad(y=np.array(["a", None] * 50, object))),
        (ValueError, "Input y contains NaN", bad(y=np.where(Y_ == 1, np.nan, 1.0))),
        (ValueError, "at least one non-zero", bad(w=np.zeros(100))),
        (ContractViolation, "weights of all rows are 0", bad(X=[(X_, Y_, np.zeros(100))], y=None)),
        (ValueError, "Negative|negative", bad(w=-np.ones(100))),
        (
            ContractViolation,
            (
                r"gives \(2, 3\) for 2 rows of 5 features; accepted: \(row,\) or \(row, 1\) or "
                r"\(row, 2\), logits of 2 classes"
            ),
            bad(net={"module": nn.Linear(5, 3)}),
        ),
        (
            ContractViolation,
            r"accepted: \(row, 3\), logits of 3",
            bad(y=np.arange(100) % 3, net={"module": nn.Linear(5, 1)}),
        ),
        (
            ContractViolation,
            r"gives \(2, 2\).*accepted: \(row,\) or \(row, 1\), the prediction",
            bad(net={"module": nn.Linear(5, 2), "loss": "squared_error"}),
        ),
        (
            ContractViolation,
            r"cannot take \(row, 5\) float32 features: RuntimeError",
            bad(net={"module": nn.Linear(4, 1)}),
        ),
        (
            ParameterError,
            "made a int; accepted: a torch.nn.Module",
            bad(net={"module": lambda n: n}),
        ),
        (ParameterError, "module='mlp' is not known", bad(net={"module": "mlp"})),
        (
            ParameterError,
            "no parameter to learn",
            bad(net={"module": nn.Flatten(1), "loss": "squared_error"}, X=X_[:, :1]),
        ),
        (
            ParameterError,
            "'logloss' is not in the losses; known: .*log_loss",
            bad(net={"loss": "logloss"}),
        ),
        (
            ParameterError,
            "'adamm' is not in the optimizers.*Did you mean 'adam",
            bad(net={"optimizer": "adamm"}),
        ),
        (ParameterError, "precision='half'", bad(net={"precision": "half"})),
        (ParameterError, "device='tpu'", bad(net={"device": "tpu"})),
        (ParameterError, "epochs=0", bad(net={"epochs": 0})),
        (ParameterError, "batch_size=1.5", bad(net={"batch_size": 1.5})),
        (ParameterError, "learning_rate=0", bad(net={"learning_rate": 0})),
        (ParameterError, "task='rank'", bad(net={"task": "rank"})),
        (ParameterError, "early_stopping= needs.*validation=", bad(net={"early_stopping": 2})),
        (
            ContractViolation,
            "A label is 2, which is no class of the training rows: 0, 1",
            bad(fit={"validation": (X_, Y_ + 1)}),
        ),
        (
            ContractViolation,
            r"has the shape \(100, 4\); accepted: \(row, 5\)",
            bad(fit={"validation": (X_[:, :4], Y_)}),
        ),
    ],
)
def test_bad_input(error, words, case):
    with pytest.raises(error, match=words):
        network(**{"epochs": 2} | case["net"]).fit(
            case["X"], case["y"], case.get("w"), **case["fit"]
        )


def test_bad_input_to_predict():
    net = network(epochs=1).fit(X_, Y_)
    with pytest.raises(ValueError, match="NaN"):
        net.predict(NAN)
    with pytest.raises(ValueError, match="4 features"):
        net.predict(X_[:, :4])
    with pytest.raises(ParameterError, match="transform="):
        net.predict(xr.Dataset({"a": ("row", X_[:, 0])}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_card_that_is_not_there():
    with pytest.raises(ParameterError, match="no CUDA device"):
        network(device="cuda").fit(X_, Y_)


def test_without_torch_the_estimator_is_there_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"scalai-nb\[torch\]"):
        network().fit(X_, Y_)


def test_the_module_loads_without_torch():
    code = (
        "import sys; from scalai_nb.learn.networks.networks import Network; "
        "print(Network(hidden=(3,))); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


# ---- more rows than memory


def made(block_info=None):
    "A block of which the first column is random, the same however many there are"
    number, shape = block_info[None]["chunk-location"][0], block_info[None]["chunk-shape"]
    X = np.full(shape, 0.0, np.float32)  # which touches the memory, as np.zeros does not
    X[:, 0] = RNG(number).random(len(X))
    return X


def large(rows, blocks, features):
    "Rows that are made when they are read, and labels that can be had without them"
    X, first = (
        da.map_blocks(made, chunks=((rows,) * blocks, (n,)), dtype=np.float32)
        for n in (features, 1)
    )
    return X, first[:, 0] > 0.5


@pytest.mark.slow
def test_more_rows_than_memory():
    "Features of 1.1 GB, of which the process may take a quarter beside what it has"
    code = f"""
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        import numpy as np, torch, torch._dynamo
        from test_networks import network, large
        network(epochs=1).fit(*large(10_000, 2, 100))
        from scalai_nb.bench.compare import resident
        before = resident("VmHWM")
        net = network(hidden=(8,), epochs=1, batch_size=8192, \
learning_rate=0.01).fit(*large(100_000, 28, 100), validation=large(100_000, 5, 100))
        grown = (resident("VmHWM") - before) / 1e6
        print(grown, net.history_)
        sys.exit(not (grown < 280 and net.history_[0]["loss"] < 0.5))"""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr


def lazy(rows, blocks, features=100):
    "Rows that are made when they are read, and what must be learnt from them"
    X = da.random.default_rng(0).standard_normal(
        (rows, features), chunks=(rows // blocks, features), dtype=np.float32
    )
    return X, X[:, 0] + X[:, 1] > 0


# ---- on a cluster


@pytest.fixture(scope="module")
def client():
    with connect(LOCAL, threads_per_worker=1) as client:
        yield client


class Slow(nn.Module):
    "Takes at least a few milliseconds a step; remembers nothing"

    def __init__(self, features, seconds=0.01):
        super().__init__()
        self.line, self.seconds = (
            nn.Sequential(nn.Linear(features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)),
            seconds,
        )

    def forward(self, X):
        if self.training:
            time.sleep(self.seconds)
        return self.line(X)


@pytest.mark.slow
def test_a_cluster_learns_the_same(client):
    "The same steps over the same rows, in another order: the gradients of two halves are added up"
    X, y = lazy(6000, 6, features=5)
    rows = X.compute(), y.compute()
    kw = {
        "hidden": (16,),
        "epochs": 3,
        "batch_size": 6000,
        "learning_rate": 0.03,
    }  # all rows a step: their order does not matter
    here = network(**kw).fit(*rows, validation=rows)
    for name, given_ in {
        "Dask": (X, y),
        "memory": rows,
        "persisted": client.persist([X, y]),
    }.items():
        there = network(**kw).fit(*given_, validation=rows, client=client)
        for a, b in zip(here.module_.parameters(), there.module_.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
        np.testing.assert_allclose(
            [h["validation_loss"] for h in here.history_],
            [h["validation_loss"] for h in there.history_],
            rtol=1e-4,
        )
    small = network(epochs=2, batch_size=100).fit(X, y, client=client, validation=[rows])
    alone = network(epochs=2, batch_size=100).fit(*rows, validation=rows)
    assert small.history_[-1]["validation_loss"] == pytest.approx(
        alone.history_[-1]["validation_loss"], rel=0.05
    )


def test_a_cluster_reads_a_dataset_through_a_transform(client, tmp_path):
    r = RNG(0)
    x = r.normal(size=9001)
    ds = xr.Dataset(
        {
            "x": ("row", np.where(x > 1.5, np.nan, x)),
            "c": ("row", r.choice(np.array(["a", "b"], object), 9001)),
            "y": ("row", (x > 0).astype(int)),
        }
    )
    Lake(tmp_path).write("rows", ds)
    t = Transform(numeric=["x"], categorical=["c"]).fit(ds)
    kept = network(epochs=5, batch_size=300, learning_rate=0.02).fit(
        Lake(tmp_path).read("rows"), "y", transform=t, validation=ds, client=client
    )
    ds = ds.chunk(row=1000)
    net = network(epochs=5, batch_size=300, learning_rate=0.02, class_weight="balanced").fit(
        ds, "y", transform=t, validation=ds, client=client, checkpoint=Checkpoint(every=0.2)
    )
    assert kept.history_[-1]["validation_loss"] < 0.4
    assert (net.predict(ds, transform=t) == (x > 0)).mean() > 0.85 and len(net.history_) == 5


def test_an_error_on_a_worker_is_the_error_of_the_fit(client):
    X, y = lazy(6000, 6, features=5)
    broken = X.map_blocks(
        lambda x, block_info=None: x * (np.nan if block_info[0]["chunk-location"][0] == 5 else 1),
        dtype=np.float32,
    )
    begun = time.monotonic()
    with pytest.raises(ScalaiError, match="contains NaN"):
        network(epochs=2, batch_size=100).fit(broken, y, client=client)
    with pytest.raises(WorkFailed, match="epoch 1, batch 13 of 60"):
        network(Blows, batch_size=100).fit(X, y, client=client)
    assert time.monotonic() - begun < 100 < gang.TIMEOUT, "no rank waited for the one that failed"


def test_workers_that_die_again_and_again_end_the_fit(client):
    def segment(workers, result):
        raise gang.Lost("Connection closed by peer")

    with pytest.raises(
        WorkFailed, match="lost 4 times in a row.*Connection closed by peer.*more memory"
    ):
        next(gang.segments(client, dict, segment, None, 2))


@pytest.mark.campaign
def test_three_times_the_memory_of_the_workers():
    limit = (
        1_400_000_000 if torch.version.cuda else 950_000_000
    )  # of which the libraries alone take 900 or 560 MB
    X, y = large(200_000, -(-6 * limit // 80_000_000) + 1, 100)
    assert X.nbytes > 3 * 2 * limit
    with connect(
        Environment(name="test", root=None, cluster="local", workers=2, memory=limit),
        threads_per_worker=1,
    ) as client:
        pids = client.run(os.getpid)
        net = network(hidden=(8,), epochs=1, batch_size=16_384, learning_rate=0.01).fit(
            X, y, client=client
        )
        assert client.run(os.getpid) == pids, "no worker was killed for its memory"
        most = client.run(
            lambda: __import__("scalai_nb.bench.compare", fromlist=["resident"]).resident("VmHWM")
        )  # ru_maxrss is that of who started it, too
    assert max(most.values()) < limit and net.history_[0]["loss"] < 0.5


def strike(client, signum, after, told):
    "Send a signal to the second worker some seconds after the first epoch"
    pids = client.run(os.getpid)
    victim = pids[sorted(pids)[1]]

    def progress(entry):
        told.append(entry)
        if len(told) == 1:
            threading.Timer(after, os.kill, (victim, signum)).start()

    return victim, progress


@pytest.mark.campaign
def test_a_worker_that_is_killed_in_mid_epoch_costs_no_quality(tmp_path, client):
    X, _ = lazy(12_000, 12, features=6)
    X, y = (
        X[:, :5],
        X[:, 0] + X[:, 5] > 0,
    )  # what is not known of a label keeps the loss from falling for ever
    kw = {"epochs": 6, "batch_size": 100, "learning_rate": 0.01}
    held, told = (X[:4000].compute(), y[:4000].compute()), []
    undisturbed = network(Slow, **kw).fit(
        X, y, client=client, validation=held, checkpoint=Checkpoint(every=0.5)
    )
    victim, progress = strike(client, signal.SIGKILL, 0.6, told)
    net = network(Slow, **kw).fit(
        X,
        y,
        client=client,
        validation=held,
        checkpoint=Checkpoint(tmp_path, 0.5),
        progress=progress,
    )
    assert victim not in client.run(os.getpid).values()
    assert [h["epoch"] for h in told] == [1, 2, 3, 4, 5, 6] == [h["epoch"] for h in net.history_]
    assert net.history_[-1]["validation_loss"] == pytest.approx(
        undisturbed.history_[-1]["validation_loss"], abs=0.02
    )


@pytest.mark.slow
def test_a_worker_that_hangs_is_left_behind(monkeypatch, client):
    monkeypatch.setattr(gang, "TIMEOUT", 5)
    monkeypatch.setattr(gang, "GRACE", 3)
    X, y = lazy(6000, 6, features=5)
    told = []
    client.wait_for_workers(2)
    victim, progress = strike(client, signal.SIGSTOP, 0.3, told)
    try:
        net = network(Slow, epochs=4, batch_size=100).fit(
            X, y, client=client, checkpoint=Checkpoint(every=0.3), progress=progress
        )
    finally:
        os.kill(victim, signal.SIGCONT)
    assert len(net.history_) == 4


# ---- on a card


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_card_learns_the_same():
    X, y = labelled(20_000, 20)
    kw = {"epochs": 5, "batch_size": 500, "learning_rate": 0.01}
    here, there = network(device="cpu", **kw).fit(X, y), network(device="cuda", **kw).fit(X, y)
    assert (
        there.history_[-1]["loss"] == pytest.approx(here.history_[-1]["loss"], rel=0.02)
        and not next(there.module_.parameters()).is_cuda
    )
    assert network(device="cuda", precision="float32", **kw).fit(X, y).history_[-1][
        "loss"
    ] == pytest.approx(here.history_[-1]["loss"], rel=0.01)
