"The gate fails on rows that the model has learned from, and never on others"

import json

import numpy as np
import pytest
import xarray as xr
from sklearn.ensemble import RandomForestClassifier
from test_classes import FEATURES, QUIET, plots

import scalai_nb as sn
from scalai_nb.compute.laws import alike, check_mergeable
from scalai_nb.describe import fingerprint as module
from scalai_nb.describe.fingerprint import fingerprint, row_hashes, seen
from scalai_nb.errors import ParameterError
from scalai_nb.models.package.package import Model, package
from scalai_nb.models.registry.gate import Evidence, judge

CONCAT = lambda blocks: xr.concat(blocks, "row")
COLUMNS = ["light", "water", "soil", "birds"]


def trained(ds, label="tree", estimator=None, **card):
    e = estimator or RandomForestClassifier(20, random_state=0)
    judging = sn.Judging(importance=0)
    t = sn.train(
        {"it": e}, ds, label, transform=FEATURES(), split="random", judging=judging, effort=QUIET
    )
    f = t.fit()
    return package(f.transform, f.estimator, name="plots", card=t.card() | card)


@pytest.fixture(scope="module")
def forest():
    return trained(plots(1000))


def verdict_on(model, ds, **evidence):
    return judge(model, ds, "tree", {"auc": ">= 0.5"}, evidence=Evidence(**evidence))


def check(verdict, name="seen rows"):
    found = [c for c in verdict.checks if c.name == name]
    return found[0] if found else None


def test_rows_that_it_learned_from_fail(forest):
    verdict = verdict_on(forest, plots(1000))
    line = check(verdict)
    assert verdict.measured["auc"] > 0.99 and not verdict.passed
    assert verdict.reason == "fails seen rows" and line.value == 1
    assert line.reason.startswith("the model has learned from 100.0% of the 1,000 rows")


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5])
def test_some_rows_that_it_learned_from_fail_with_their_share(forest, share):
    n = round(1000 * share)
    mixed = CONCAT([plots(1000).isel(row=slice(0, n)), plots(1000 - n, seed=1)])
    line = check(verdict_on(forest, mixed))
    assert not line.met and line.decides and line.value == pytest.approx(share, abs=0.005)


def test_a_few_rows_that_it_knows_are_a_warning(forest):
    mixed = CONCAT([plots(1000).isel(row=slice(0, 8)), plots(992, seed=1)])
    line = check(verdict_on(forest, mixed))
    assert (line.met, line.decides, line.value) == (False, False, 0.008)
    json.dumps(verdict_on(forest, plots(1000, seed=1)).to_dict())
    json.dumps(verdict_on(forest, mixed).to_dict())


def test_new_rows_pass(forest):
    verdict = verdict_on(forest, plots(1000, seed=1))
    assert verdict.passed and check(verdict).value == 0
    assert "none of the 1,000 rows" in check(verdict).reason


def test_scores_of_a_model_that_had_not_seen_them_are_fine(forest):
    ds = plots(1000)
    held = forest.predict(ds).values
    assert check(verdict_on(forest, ds, score=held)) is None


def test_a_champion_that_knows_the_rows_is_a_warning(forest):
    ds = plots(1000)
    new = trained(plots(1000, seed=5))
    verdict = judge(new, ds, "tree", {"auc": ">= 0.5"}, champion=forest)
    lines = [c for c in verdict.checks if c.name == "seen rows"]
    assert [(c.met, c.decides) for c in lines] == [(True, True), (False, False)]
    assert "the champion has learned from 100.0%" in lines[1].reason


def test_a_column_that_is_not_there_is_said(forest):
    contract = sn.Contract.infer(
        plots(500).assign(id=("row", np.arange(500))), label="tree", key="id"
    )
    keyed = trained(contract.attach(plots(500).assign(id=("row", np.arange(500)))))
    line = check(verdict_on(keyed, plots(500)))
    assert not line.decides and "'id' is not in the columns" in line.reason
    other = plots(500).assign(id=("row", np.arange(500) + 10_000))
    assert check(verdict_on(keyed, other)).met


def test_it_travels_with_the_package_and_is_on_the_card(forest, tmp_path):
    again = Model.load(forest.save(tmp_path / "m"))
    assert alike(again.learned, forest.learned) and again.learned.rows == 1000
    assert (tmp_path / "m" / "rows.zip").stat().st_size < 20_000
    about = again.card["learned_from"]
    assert (about["rows"], about["dataset"]) == (1000, None)
    assert about["fingerprint"] == "64-bit hashes of each row"
    assert check(verdict_on(again, plots(1000))).value == 1


def test_the_card_names_the_dataset_and_its_version(tmp_path):
    lake = sn.Lake(tmp_path)
    version = lake.write("plots", plots(300), "first")
    model = trained(lake.read("plots"))
    assert model.card["learned_from"]["dataset"] == f"plots@{version.id}"
    assert not check(verdict_on(model, lake.read("plots"))).met


def test_a_model_whose_rows_are_not_known_is_judged_as_before():
    ds = plots(400)
    t = FEATURES().fit(ds)
    model = package(t, sn.LogisticRegression().fit(t.transform(ds), ds.tree.values))
    assert check(verdict_on(model, ds)) is None and model.learned is None
    assert (
        package(
            t,
            sn.LogisticRegression().fit(t.transform(ds), ds.tree.values),
            card={"learned_from": "the plots of 2024"},
        ).card["learned_from"]
        == "the plots of 2024"
    )


@pytest.mark.parametrize("values", [2, 20, 400])
def test_rows_that_are_alike_by_chance_never_fail(values):
    "few values make rows alike: of 300 draws none is said to be known"
    for seed in range(300):
        rng = np.random.default_rng(seed)
        draw = lambda n, rng=rng: xr.Dataset({c: ("row", rng.zipf(1.5, n) % values) for c in "ab"})
        learned = sn.reduce(fingerprint(["a", "b"]), draw(400))
        assert not seen(learned, draw(300)).known


def test_many_rows_are_sampled_fairly(monkeypatch):
    monkeypatch.setattr(module, "KEPT", 500)
    rng = np.random.default_rng(0)
    ds = xr.Dataset({"x": ("row", rng.normal(size=20_000))})
    learned = sn.reduce(fingerprint(["x"]), ds.chunk(row=3000))
    assert len(learned.hashes) == 500 and learned.rows == 20_000
    mixed = CONCAT([ds.isel(row=slice(0, 4000)), xr.Dataset({"x": ("row", rng.normal(size=4000))})])
    found = seen(learned, mixed)
    assert found.known and found.share == pytest.approx(0.5, abs=0.12)
    assert found.compared == pytest.approx(200, abs=60) and found.rows == 8000


def test_laws_of_fingerprints():
    blocks = [plots(n, seed=s)[COLUMNS] for n, s in ((50, 0), (1, 1), (70, 0))]
    check_mergeable(fingerprint(COLUMNS), blocks, CONCAT)


def test_the_hash_is_of_what_a_value_says():
    ds = plots(50)
    same = ds.assign(
        light=ds.light.astype(np.float64),
        birds=ds.birds.astype(np.float32),
        soil=(
            "row",
            np.array([["clay", "loam", "sand"].index(s) for s in ds.soil.values]),
            {"categories": ["clay", "loam", "sand"]},
        ),
    )
    assert (row_hashes(ds, COLUMNS) == row_hashes(same, COLUMNS)).all()
    assert (row_hashes(ds, COLUMNS) != row_hashes(ds.assign(birds=ds.birds + 1), COLUMNS)).all()
    with pytest.raises(ParameterError, match="'soil' is not in the columns of the data"):
        seen(sn.reduce(fingerprint(COLUMNS), ds), ds.drop_vars("soil"))
