"""Clusters and components: scikit-learn's contract and results, whatever the rows come as

The kernel against float64 NumPy.
"""

import numpy as np
import pytest
import xarray as xr
from dask import array as da
from hypothesis import given, settings, strategies as st
from sklearn import cluster, decomposition
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

from scalai_nb.compute.cluster import connect
from scalai_nb.compute.laws import check_mergeable
from scalai_nb.environment import Environment
from scalai_nb.errors import ParameterError, ScalaiError
from scalai_nb.kernels import clusters as kernels
from scalai_nb.learn.linear import kmeans as module
from scalai_nb.learn.features import rows as rows_module
from scalai_nb.learn.linear.kmeans import KMeans, assign, farthest
from scalai_nb.learn.linear.pca import PCA
from scalai_nb.learn.features.rows import Rows
from scalai_nb.learn.features.transform import Transform

LOCAL = Environment(
    name="test", root=None, cluster="local", workers=2, memory=2_000_000_000
)  # beyond 80 % a worker would pause
RNG = np.random.default_rng


def groups(n=2000, k=5, features=3, spread=0.4, seed=0, dtype=np.float64):
    "Rows about `k` centres, the group of each row, and weights, one in eight of them 0"
    r = RNG(seed)
    of = r.integers(0, k, n)
    return (
        (
            10 * RNG(99).normal(size=(k, features))[of] + spread * r.normal(size=(n, features))
        ).astype(dtype),
        of,
        r.integers(0, 8, n) / 4,
    )


# ---- scikit-learn's contract


@pytest.mark.filterwarnings(
    "ignore:Of 8 centres only:sklearn.exceptions.ConvergenceWarning"
)  # checks have few distinct rows
@pytest.mark.parametrize(
    "estimator", [KMeans(n_init=2), KMeans(3, init="random"), PCA(), PCA(whiten=True)]
)
def test_contract(estimator):
    done = check_estimator(estimator, on_skip=None)
    assert [c["check_name"] for c in done if c["status"] != "passed"] == [
        "check_array_api_input"
    ], "it wants SCIPY_ARRAY_API"


# ---- the kernel


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 5, 1500]),
    st.sampled_from([1, 2, 33]),
    st.sampled_from([1, 2, 9, 70]),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.sampled_from([0, 1000]),
)
def test_assign_is_that_of_numpy(seed, n, features, k, dtype, weighted, far):
    r = RNG(seed)
    X, centers = (
        (far + r.normal(size=(n, features))).astype(dtype),
        far + r.normal(size=(k, features)),
    )
    weight = np.where(r.random(n) < 0.2, 0, r.random(n)) if weighted else None
    labels, away = np.full(n, -1, np.int32), np.full(n, np.nan)
    inertia, mass, sums = kernels.assign(X, weight, centers, labels, away)
    exact, w = (
        ((X.astype(np.float64)[:, None] - centers) ** 2).sum(axis=2),
        np.ones(n) if weight is None else weight,
    )
    tol = {
        "rtol": 0,
        "atol": (features + 5)
        * (1e-5 * max(1, far / 50) if dtype == np.float32 else 1e-11 * max(1, far)),
    }
    chosen = exact[np.arange(n), labels]
    np.testing.assert_allclose(chosen, exact.min(axis=1) if n else [], **tol)
    np.testing.assert_allclose(away, chosen, **tol)
    np.testing.assert_allclose(inertia, w @ chosen, rtol=0, atol=tol["atol"] * (n + 1))
    np.testing.assert_allclose(mass, np.bincount(labels, w, k))
    about = (X.astype(np.float64) - kernels.middle(centers, dtype)) * w[:, None]
    np.testing.assert_allclose(
        sums,
        np.array([about[labels == c].sum(axis=0) for c in range(k)]),
        rtol=0,
        atol=tol["atol"] * (n + 1),
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            (np.ones((3, 2), int), None, np.ones((1, 2))),
            "X is int64; accepted: float32 and float64",
        ),
        ((np.ones((3, 2), order="F"), None, np.ones((1, 2))), "C-contiguous"),
        ((np.ones((3, 2)), None, np.ones((1, 2)), np.zeros(3, int)), "labels is int64"),
        ((np.ones((3, 2)), None, np.ones((1, 2)), None, np.zeros(2)), "of the shape"),
    ],
)
def test_the_kernel_refuses_what_it_cannot_take(args, words):
    with pytest.raises(ParameterError, match=words):
        kernels.assign(*args)


# ---- laws


def blocks(*sizes):
    return [(X, None, w) for X, _, w in (groups(n, seed=i) for i, n in enumerate(sizes))]


def joined(blocks):
    return np.concatenate([b[0] for b in blocks]), None, np.concatenate([b[2] for b in blocks])


@pytest.mark.parametrize("sizes", [(300, 0, 71), (0, 0, 0), (1, 1, 1)])
def test_laws(sizes):
    centers = 5 * RNG(5).normal(size=(4, 3))
    check_mergeable(assign(centers), blocks(*sizes), joined)
    check_mergeable(farthest(centers, 3), blocks(*sizes), joined)


# ---- clusters


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_from_the_same_centres_it_ends_where_scikit_learn_does(dtype, weighted):
    X, _, w = groups(spread=5, dtype=dtype)
    first, w = X[:5].astype(np.float64), w if weighted else None
    ours = KMeans(5, init=first, tol=0).fit(X, sample_weight=w)
    theirs = cluster.KMeans(5, init=first, tol=0, n_init=1).fit(
        X.astype(np.float64), sample_weight=w
    )
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-4)
    assert (
        np.isclose(ours.inertia_, theirs.inertia_, rtol=1e-6)
        and (ours.labels_ == theirs.labels_).mean() > 0.999
    )
    assert np.isclose(
        ours.score(X, sample_weight=w),
        theirs.score(X.astype(np.float64), sample_weight=w),
        rtol=1e-6,
    )
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X.astype(np.float64)), atol=1e-3)
    assert ours.transform(X).dtype == dtype and ours.labels_.dtype == np.int32


@pytest.mark.parametrize("init", ["k-means||", "random"])
def test_it_finds_as_good_clusters_as_scikit_learn(init):
    "The median over ten seeds: where to begin is drawn, and any one draw may be unlucky"
    X, _, _ = groups(3000, 12, spread=3)
    ours = np.median([KMeans(12, init=init, random_state=i).fit(X).inertia_ for i in range(10)])
    theirs = np.median(
        [
            cluster.KMeans(12, init=init.replace("means||", "means++"), random_state=i, n_init=1)
            .fit(X)
            .inertia_
            for i in range(10)
        ]
    )
    assert ours < 1.05 * theirs


def test_many_rows_begin_on_a_sample(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 1500)
    X, of, _ = groups(40_000)
    passes = []
    monkeypatch.setattr(
        module,
        "lloyd",
        lambda fold, *a, f=module.lloyd, **k: passes.append(f(fold, *a, **k)) or passes[-1],
    )
    model = KMeans(5, random_state=0).fit(X[np.argsort(of, kind="stable")])
    assert len(passes) == 2 and passes[1][1] == model.n_iter_ <= 3
    np.testing.assert_allclose(
        np.sort(model.cluster_centers_[:, 0]),
        np.sort([X[of == g, 0].mean() for g in range(5)]),
        atol=1e-6,
    )


def test_centres_that_lose_their_rows_begin_anew():
    X, _, _ = groups()
    nowhere = np.concatenate([X[:1], np.full((4, 3), 1e3) + np.arange(4)[:, None]])
    model = KMeans(5, init=nowhere, tol=0).fit(X)
    assert (np.bincount(model.labels_, minlength=5) > 0).all()
    assert np.isclose(
        model.inertia_, cluster.KMeans(5, init=nowhere, tol=0, n_init=1).fit(X).inertia_
    )


@pytest.mark.parametrize(
    "form",
    [
        "columns of memory",
        "DataArray",
        "Dask",
        "Dataset",
        "Dataset on Dask",
        "source",
        "bare blocks",
        "source with weights",
    ],
)
def test_any_form_of_rows_gives_the_same(form):
    X, _, w = groups()
    columns = xr.Dataset({**{f"x{j}": ("row", X[:, j]) for j in range(3)}, "w": ("row", w)})
    parts = [slice(i, i + 300) for i in range(0, len(X), 300)]
    lazy = da.from_array(X, chunks=(700, 2))
    args, weight = {
        "columns of memory": (np.asfortranarray(X), w),
        "DataArray": (xr.DataArray(X, dims=("row", "feature")), w),
        "Dask": (lazy, w),
        "Dataset": (columns, "w"),
        "Dataset on Dask": (columns.chunk(row=700), "w"),
        "source": ([(X[p], None) for p in parts], None),
        "bare blocks": (Rows(lambda: (X[p] for p in parts)), None),
        "source with weights": (Rows(lambda: ((X[p], None, w[p]) for p in parts)), None),
    }[form]
    plain = KMeans(5, random_state=0).fit(
        X, sample_weight=None if form in ("source", "bare blocks") else w
    )
    other = KMeans(5, random_state=0).fit(args, sample_weight=weight)
    np.testing.assert_allclose(other.cluster_centers_, plain.cluster_centers_, rtol=1e-9)
    assert np.isclose(other.inertia_, plain.inertia_) and np.array_equal(
        np.asarray(other.predict(lazy)), plain.labels_
    )
    assert hasattr(other, "labels_") == (form in ("columns of memory", "DataArray"))
    if form in ("DataArray", "Dask", "columns of memory", "bare blocks"):
        np.testing.assert_allclose(
            PCA(2).fit(args).components_, PCA(2).fit(X).components_, rtol=1e-7
        )


@pytest.fixture(scope="module")
def client():
    with connect(LOCAL) as client:
        yield client


def test_a_cluster_finds_the_same(client):
    X, _, _ = groups()
    lazy = da.from_array(X, chunks=(700, 3))
    np.testing.assert_allclose(
        KMeans(5, random_state=0).fit(lazy, client=client).cluster_centers_,
        KMeans(5, random_state=0).fit(X).cluster_centers_,
    )
    np.testing.assert_allclose(PCA().fit(lazy, client=client).components_, PCA().fit(X).components_)
    ds = xr.Dataset({"a": ("row", X[:, 0]), "b": ("row", X[:, 1])})
    t = Transform(numeric=["a", "b"]).fit(ds)
    there = KMeans(5, random_state=0).fit(ds.chunk(row=700), transform=t, client=client)
    assert np.isclose(
        there.inertia_, KMeans(5, random_state=0).fit(t.transform(ds)).inertia_, rtol=1e-5
    )
    assert np.array_equal(there.predict(ds, transform=t), there.predict(t.transform(ds).values))


def test_the_number_of_cores_changes_no_bit(monkeypatch):
    X, _, w = groups(150_000, dtype=np.float32)
    monkeypatch.setattr(rows_module, "PART", 30_000)

    def fitted(cores):
        monkeypatch.setattr(rows_module, "threads", lambda: cores)
        return KMeans(5, random_state=0).fit(
            X, sample_weight=w
        ).cluster_centers_.tobytes(), PCA().fit(X).components_.tobytes()

    assert fitted(1) == fitted(2) == fitted(7)


def test_batches_move_the_centres():
    X, of, w = groups(6000)
    model = KMeans(5, random_state=1)
    for i in range(0, 6000, 500):
        model.partial_fit(X[i : i + 500], sample_weight=w[i : i + 500])
    assert np.isclose(model.counts_.sum(), w.sum()) and model.n_iter_ == 12
    assert -model.score(X) < 1.2 * cluster.KMeans(5, n_init=5, random_state=0).fit(X).inertia_


def test_few_distinct_rows_warn():
    with pytest.warns(ConvergenceWarning, match="Of 4 centres only 2 differ"):
        model = KMeans(4, random_state=0).fit(np.repeat([[0.0], [1.0]], 10, axis=0))
    assert model.inertia_ == 0 and np.unique(model.labels_).size == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_wherever_it_is(bad, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 1500)
    X, _, w = groups(40_000)
    spoilt, weight = X.copy(), w.copy()
    spoilt[34_567, 1] = weight[34_567] = bad
    for estimator in (KMeans(5, random_state=0), PCA()):
        for form in (spoilt, da.from_array(spoilt, chunks=(9000, 3)), [(spoilt, None)]):
            with pytest.raises(ScalaiError, match="Input X contains NaN or infinity"):
                estimator.fit(form)
    for form in ((X, None, weight), ([(X, None, weight)],)):
        with pytest.raises(ValueError, match="weight"):
            KMeans(5).fit(*form)
    fitted = KMeans(5, random_state=0).fit(X)
    with pytest.raises(ValueError, match="NaN|infinity"):
        fitted.predict(spoilt)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_clusters": 0}, "n_clusters=0 is not known; accepted: a whole number from 1 on"),
        ({"n_init": "auto"}, "n_init='auto'"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"init": "k-means++"}, "init='k-means[+][+]' is not known; accepted: 'k-means||'"),
        ({"init": np.ones((2, 3))}, r"init has the shape \(2, 3\)"),
        ({"init": np.full((8, 3), np.nan)}, "finite centres"),
        ({"tol": -1}, "tol=-1"),
        ({"n_clusters": 3000}, "n_samples=2000 should be >= n_clusters=3000"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        KMeans(**options).fit(groups()[0])


def test_no_rows_and_no_weight():
    X, _, _ = groups(20)
    for estimator in (KMeans(2), PCA()):
        with pytest.raises(ValueError, match="0 sample"):
            estimator.fit(X[:0])
    with pytest.raises(ValueError, match="non-zero"):
        KMeans(2).fit(X, sample_weight=np.zeros(20))
    with pytest.raises(ValueError, match="The weights of all rows are 0"):
        KMeans(2).fit([(X, None, np.zeros(20))])


# ---- components


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("n_components", [None, 1, 3, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_components_are_scikit_learns(n_components, whiten, dtype):
    r = RNG(0)
    X = (
        r.normal(size=(500, 4)) @ r.normal(size=(4, 6))
        + 0.1 * r.normal(size=(500, 6))
        + [5, 0, -3, 1e3, 0, 0]
    ).astype(dtype)
    ours, theirs = (
        PCA(n_components, whiten=whiten).fit(X),
        decomposition.PCA(n_components, whiten=whiten, svd_solver="full").fit(X.astype(np.float64)),
    )
    for name in (
        "n_components_",
        "mean_",
        "components_",
        "explained_variance_",
        "explained_variance_ratio_",
        "singular_values_",
        "noise_variance_",
        "n_samples_",
    ):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-9, err_msg=name
        )
    tol = 2e-3 if dtype == np.float32 else 1e-7
    np.testing.assert_allclose(
        ours.transform(X), theirs.transform(X.astype(np.float64)), atol=tol * (10 if whiten else 1)
    )
    np.testing.assert_allclose(
        ours.inverse_transform(ours.transform(X)),
        theirs.inverse_transform(theirs.transform(X.astype(np.float64))),
        atol=tol,
    )
    assert ours.transform(X).dtype == dtype
    np.testing.assert_allclose(
        ours.transform(da.from_array(X, chunks=(200, 3))).compute(), ours.transform(X)
    )


def test_more_rows_later_is_all_rows_at_once():
    X, _, _ = groups()
    whole, parts = PCA(2).fit(X), PCA(2)
    for part in (slice(0, 2), slice(2, 900), slice(900, None)):
        parts.partial_fit(X[part])
    np.testing.assert_allclose(parts.components_, whole.components_, rtol=1e-9)
    np.testing.assert_allclose(parts.explained_variance_, whole.explained_variance_)
    assert parts.fit(X[:50]).n_samples_ == 50


def test_few_rows_and_constant_features():
    X, _, _ = groups(3, features=5)
    assert PCA().fit(X).components_.shape == (3, 5) and PCA().fit(
        np.ones((9, 2))
    ).explained_variance_.tolist() == [0, 0]
    assert np.isfinite(PCA(whiten=True).fit(np.ones((9, 2))).transform(np.ones((9, 2)))).all()
    for n in (0, 4, -1, 1.5, "mle", True):
        with pytest.raises(
            ParameterError,
            match="is not known; accepted: None, a whole number from 1 to 3, or a share",
        ):
            PCA(n).fit(X)
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        PCA().fit(X[:1])
    with pytest.raises(ValueError, match="X has 2 columns; accepted: 3"):
        PCA().fit(X).inverse_transform(X[:, :2])


def test_a_source_of_blocks_is_as_good_as_an_array():
    X, _, _ = groups()
    parts = [(X[i : i + 300], None) for i in range(0, len(X), 300)]
    np.testing.assert_allclose(PCA().fit(parts).components_, PCA().fit(X).components_)
