"""The hot path compiled ahead: a first look at a file compiles nothing any more"""

import json
import os
import subprocess
import sys

import pytest

# what `scalai warm` has not compiled of what a look at a file needs, as (kernel, types)
LEFT = """
import json, sys
import pandas as pd, xarray as xr
import scalai_nb as sn
from scalai_nb.kernels import columns, features, linear, scores
from scalai_nb.operations.warming import warm

def compiled():
    modules = columns, features, linear, scores
    kernels = {k.py_func: k for m in modules for k in vars(m).values() if hasattr(k, "stats")}
    return {(k.__name__, str(s)) for k in kernels.values() for s in k.signatures}

warm(lambda *_: None)
warmed = compiled()
table = pd.read_csv(sys.argv[1], parse_dates=["time"])
ds = xr.Dataset.from_dataframe(table).rename(index="row")
sn.drift(sn.summarize(ds), ds)
X = sn.Transform(["x", "n"], ["kind"]).fit(ds).transform(ds)
model = sn.LogisticRegression().fit(X, ds["late"])
sn.evaluate(ds["late"], model.predict_proba(X)[:, 1], by=ds["kind"])
print(json.dumps([len(warmed), sorted(compiled() - warmed)]))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    "A folder with a file that is not the project's, and a user's cache that is empty"
    home = tmp_path_factory.mktemp("machine")
    rows = "\n".join(
        f"2024-01-01 {i % 24:02}:00,{i * 0.37},{i},{'ab'[i % 2]},{i % 3 % 2}" for i in range(50_000)
    )
    (home / "table.csv").write_text(f"time,x,n,kind,late\n{rows}\n")
    return home, {**os.environ, "XDG_CACHE_HOME": str(home / "cache")}


def run(machine, *words):
    home, env = machine
    done = subprocess.run([sys.executable, *words], cwd=home, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_first_look_at_a_file_compiles_nothing_when_it_is_warm(machine):
    warmed, left = json.loads(run(machine, "-c", LEFT, "table.csv"))
    assert warmed > 30 and left == []


def test_it_is_done_once_and_not_where_nothing_can_be_kept(machine):
    home, env = machine
    behind = "from scalai_nb.operations.warming import warm_behind; print(warm_behind())"
    assert "compiled" in run(machine, "-m", "scalai_nb", "warm")
    assert run(machine, "-c", behind) == "None\n"
    (home / "file").write_text("")
    assert run((home, {**env, "XDG_CACHE_HOME": str(home / "file")}), "-c", behind) == "None\n"
