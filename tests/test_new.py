"`scalai new`: a file becomes a project that runs and is tested; a bad one changes nothing"

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from toy import said

import scalai_nb as sn
from scalai_nb.pipeline.run import load_run

HERE = {k: v for k, v in os.environ.items() if not k.startswith("SCALAI_")}
BIN = Path(sys.executable).parent
ENV = HERE | {"PATH": f"{BIN}:{HERE['PATH']}", "SCALAI_TRACKERS": "none"}


def run(folder: Path, *words: str, timeout: float = 200) -> subprocess.CompletedProcess:
    "A command in a folder, with this environment's programs on its path"
    return subprocess.run(
        words,
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def new(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess:
    return said(folder, ENV, "new", name, *words)


def sales(n: int = 2_000) -> pd.DataFrame:
    "Columns with odd names; `gone` has nothing, `known after` gives the label away"
    rng = np.random.default_rng(7)
    x = rng.normal(size=n)
    found = pd.DataFrame(
        {
            "sale_id": np.arange(n),
            "sold at": pd.date_range("2023-01-01", periods=n, freq="h"),
            "Größe {{ m² }}": x,
            'he said "x"': rng.choice(["a,b", 'c"d', "<b>e</b>"], n),
            "customer_email": [f"{i}@example.com" for i in range(n)],
            "gone": np.nan,
        }
    )
    found["price"] = 3 * x + rng.normal(size=n)
    found["known after"] = 2 * found["price"]
    found["dear"] = np.where(found["price"] > 1, "yes", "no")
    found["class"] = np.digitize(found["price"], [-2, 0, 2])
    return found


def written(folder: Path, kind: str) -> str:
    "The sales, or a grid, as a file of a kind; what --data is told"
    if kind == "csv":
        sales().to_csv(folder / "sales.csv", index=False)
    elif kind == "parquet":
        sales().to_parquet(folder / "sales.parquet")
    elif kind == "db":
        with sqlite3.connect(folder / "sales.db") as database:
            sales().to_sql("sales", database, index=False)
            sales().to_sql("others", database, index=False)
        return "sales.db::sales"
    else:
        rng = np.random.default_rng(7)
        shape, over = (120, 3, 4), ("time", "lat", "lon")
        t2m = 280 + rng.normal(size=shape)
        made = xr.Dataset(
            {"t2m": (over, t2m, {"units": "K"}), "rain": (over, t2m + rng.gamma(1, 1, shape))},
            {
                "time": pd.date_range("2020-01-01", periods=120),
                "lat": np.arange(3.0),
                "lon": np.arange(4.0),
            },
        )
        made.to_netcdf(folder / "sales.nc") if kind == "nc" else made.to_zarr(
            folder / "sales.zarr", consolidated=False
        )
    return f"sales.{kind}"


KINDS = [  # file, more words, what is predicted
    ("csv", ["--label", "dear", "--time", "sold at"], "two classes"),
    ("db", ["--label", "class"], "classes"),
    ("zarr", ["--label", "rain"], "numbers"),
    ("nc", [], None),
]
PARQUET = ("parquet", ["--label", "price"], "numbers")  # as zarr, but for its first two steps
EACH = [*KINDS, pytest.param(*PARQUET, marks=pytest.mark.campaign)]


@pytest.mark.parametrize(("file", "words", "kind"), EACH, ids=[k[0] for k in [*KINDS, PARQUET]])
def test_a_file_becomes_a_system(tmp_path, file, words, kind):
    "`make demo`, which runs it, is green on the first call, and leaves a champion that answers"
    made = new(tmp_path, "shop", "--data", written(tmp_path, file), *words)
    assert made.returncode == 0, made.stderr
    project = tmp_path / "shop"
    done = run(project, "make", "demo") if file == "csv" else said(project, ENV, "run", "shop")
    assert done.returncode == 0, done.stdout + done.stderr
    env = sn.environment("laptop", settings=project / "settings.ini")
    lake = sn.Lake(env.lake)
    if kind is None:
        assert set(lake.names()) == {"shop", "goals", "profile", "drift", "watch"}
        found = load_run(env, "latest").step("watch").metrics
        assert set(found) == {"broken", "missing", "drift"} and found["broken"] == 0
        return
    registry = sn.Registry(env)
    champion = registry.champion("shop-model")
    assert champion, done.stdout
    model, rows = registry.load("shop-model", "champion"), lake.read("held_out").load()
    score = model.predict(rows)
    assert score.ndim == (2 if kind == "classes" else 1) and not score.isnull().any()
    assert ("known after" in model.contract.later) == (file in ("csv", "parquet"))
    learned = {c.name for c in model.contract.columns if c.role == "feature"}
    assert not {"sale_id", "customer_email", "gone"} & learned
    if model.contract.time:  # the newest rows judged, and the dashboard shows each period
        assert lake.read("history").attrs["history"] in lake.read("history")
        times = lake.read("shop")[model.contract.time].values
        assert rows[model.contract.time].values.min() >= np.quantile(
            times.astype(int), 0.79
        ).astype(times.dtype)


def test_parquet_becomes_the_rows_of_a_system(tmp_path):
    made = new(tmp_path, "shop", "--data", written(tmp_path, "parquet"), "--label", "price")
    assert made.returncode == 0, made.stderr
    data = tmp_path / "shop/pipelines/shop/02_data.ipynb"
    done = said(tmp_path / "shop", ENV, "run", str(data))
    assert done.returncode == 0, done.stdout + done.stderr
    env = sn.environment("laptop", settings=tmp_path / "shop/settings.ini")
    rows, expected = sn.Lake(env.lake).read("shop").load(), sales()
    assert set(rows.data_vars) == {*expected.columns}
    np.testing.assert_array_equal(rows["price"], expected["price"])
    assert "known after" in sn.Contract.of(rows).later


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project of which a model is to predict a number"
    folder = tmp_path_factory.mktemp("new")
    sales().to_csv(folder / "sales.csv", index=False)
    made = new(folder, "shop", "--data", "sales.csv", "--label", "price")
    assert made.returncode == 0, made.stderr
    return folder / "shop", made.stdout


def test_what_was_decided_is_told(project):
    _, said = project
    for words in (
        "shop: 2,000 rows, 10 columns",
        "price is predicted, a number",
        "sold at says when",
        "sale_id is the key",
        "customer_email: about persons",
        "gone: the same in all rows",
        "known after gives price away",
        "next: cd shop && make demo",
    ):
        assert words in said


def test_its_tests_are_green_and_can_fail(project):
    "`make test` on a few rows; and red where a notebook is broken"
    folder, _ = project
    done = run(folder, "make", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    notebook = folder / "pipelines/shop/04_evaluate.ipynb"
    text = notebook.read_text()
    notebook.write_text(text.replace("model.predict(rows)", "model.predict(rows[[]])"))
    try:
        assert run(folder, "make", "test").returncode != 0
    finally:
        notebook.write_text(text)


def test_a_delivery_that_breaks_the_contract_changes_nothing(project):
    folder, _ = project
    env = sn.environment("test", settings=folder / "settings.ini")
    words = ["run", "pipelines/shop/02_data.ipynb", "--env", "test"]
    assert said(folder, ENV, *words).returncode == 0
    before = sn.Lake(env.lake).log("shop")
    source = folder.parent / "sales.csv"
    text = source.read_text()
    sales().drop(columns=["Größe {{ m² }}"]).to_csv(source, index=False)
    try:
        done = said(folder, ENV, *words)
    finally:
        source.write_text(text)
    assert done.returncode == 1 and "Größe" in done.stdout
    assert sn.Lake(env.lake).log("shop") == before


def test_the_notebooks_read_well(project):
    "They are formatted, lint-free and of the version of the format that Jupyter writes"
    folder, _ = project
    for check in (["check", "--select", "E,F"], ["format", "--check"]):
        words = ["--isolated", "--line-length", "100", "pipelines", "tests"]
        done = run(folder, "ruff", *check, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    import nbformat

    for path in sorted(folder.glob("pipelines/shop/*.ipynb")):
        nb = nbformat.read(path, 4)
        nbformat.validate(nb)
        assert nb.cells[0].source.startswith("# ") and "\n> " in nb.cells[0].source


BAD = {  # content of a file, words -> what is said
    "no rows": ("a,b\n", ["--label", "a"], "have 0 rows"),
    "one row": ("a,b\n1,2\n", [], "begin with 2 or more"),
    "one class, and a byte order mark": (
        "\ufeffa,b\n" + 60 * "1,2\n",
        ["--label", "b"],
        "in all 60 rows",
    ),
    "one name twice": ("a,a\n1,2\n", [], "twice"),
    "no header": ("1,2\n3,4\n", [], "no names of columns"),
    "two encodings": (b"name\ncaf\xc3\xa9\ncaf\xe9\n", [], "line 3"),
    "no such label": ("a,b\n" + 60 * "1,2\n", ["--label", "c"], "known: a, b"),
    "a label that is missing": ("a,b\n" + 60 * "1,\n", ["--label", "b"], "missing in all 60 rows"),
    "no such time": ("a,b\n" + 60 * "1,2\n", ["--time", "a"], "times"),
    "a label alone": ("a\n" + 30 * "1\n2\n", ["--label", "a"], "no columns to learn from"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_files_leave_nothing(tmp_path, bad):
    content, words, said = BAD[bad]
    path = tmp_path / "bad.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = new(tmp_path, "shop", "--data", "bad.csv", *words)
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.csv"]


def test_what_is_there_is_kept(tmp_path):
    "Another project, a folder of somebody's, a name that is none; and a look changes nothing"
    data = written(tmp_path, "csv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    for name, why in (("mine", "there already"), ("Shop!", "does not name a project")):
        done = new(tmp_path, name, "--data", data)
        assert done.returncode == 2 and why in done.stderr
    looked = new(tmp_path, "shop", "--data", data, "--label", "price", "--dry-run")
    assert looked.returncode == 0 and "would be written to shop" in looked.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "sales.csv"]
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_ten_thousand_columns(tmp_path):
    "In time that grows with the columns, not with their square"
    rng = np.random.default_rng(0)
    names = ["y", *(f"c{i}" for i in range(9_999))]
    lines = [
        ",".join(names),
        *(",".join(f"{x:.3f}" for x in row) for row in rng.normal(size=(60, 10_000))),
    ]
    (tmp_path / "wide.csv").write_text("\n".join(lines))
    before = os.times()
    done = run(tmp_path, "scalai", "new", "wide", "--data", "wide.csv", "--label", "y")
    assert done.returncode == 0, done.stderr
    after = os.times()
    assert after.children_user - before.children_user < 45  # by the square: minutes
    contract = json.loads((tmp_path / "wide/pipelines/wide/contract.json").read_text())
    assert len(contract["columns"]) == 10_000
