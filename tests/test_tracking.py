"A run and its steps in MLflow, without a word, a request to anybody, or a file in the wrong place"

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from scalai_nb.models.tracking import client, track


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return SimpleNamespace(tracking=f"sqlite:///{tmp_path_factory.mktemp('store')}/deep/tracking.db")


def runs(env, experiment):
    c = client(env)
    return {r.info.run_name: r for r in c.search_runs([c.get_experiment_by_name(experiment).experiment_id])}


def test_a_run_with_its_steps(env, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("<h1>flights</h1>")
    step = {"name": "train", "params": {"months": [1, 2]}, "metrics": {"seconds": 2.5, "rows": None, "gap": float("nan")},
            "tags": {"cause": "cell_error"}, "status": "failed", "started": 100.0, "finished": 102.5}  # fmt: skip
    parent = track(env, "flights", "run-1", params={"jobs": 2}, metrics={"seconds": 5}, tags={"code": "abc"}, artifacts=[report],
                   status="cancelled", started=99.0, finished=104.0, steps=[step, {"name": "evaluate", "status": "cached"}])  # fmt: skip
    logged = runs(env, "flights")
    run, train, evaluate = logged["run-1"], logged["train"], logged["evaluate"]
    assert run.info.run_id == parent and set(logged) == {"run-1", "train", "evaluate"}
    assert (run.info.status, train.info.status, evaluate.info.status) == ("KILLED", "FAILED", "FINISHED")
    assert (run.info.start_time, run.info.end_time) == (99_000, 104_000) and train.info.end_time == 102_500
    assert run.data.params == {"jobs": "2"} and run.data.metrics == {"seconds": 5} and run.data.tags["code"] == "abc"
    assert train.data.params == {"months": "[1, 2]"} and train.data.metrics == {"seconds": 2.5}
    assert train.data.tags["mlflow.parentRunId"] == parent and train.data.tags["scalai.status"] == "failed"
    assert "mlflow.parentRunId" not in run.data.tags
    assert [a.path for a in client(env).list_artifacts(parent)] == ["report.html"]


def test_runs_of_one_pipeline_share_an_experiment(env):
    ids = {track(env, "taxis", f"run-{i}") for i in range(2)}
    assert {r.info.run_id for r in runs(env, "taxis").values()} == ids


def test_quiet_and_private(tmp_path):
    "In a bare process, because MLflow keeps still by itself where it sees a test or a CI service"
    code = f"""
    import socket, sys
    def connect(self, address, *rest): print("request to", address); raise OSError("no network")
    def lookup(*rest, **kw): print("lookup of", rest[0]); raise OSError("no network")
    socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo = connect, connect, lookup
    import numpy as np, xarray as xr
    from types import SimpleNamespace
    from sklearn.linear_model import LogisticRegression
    from scalai_nb.learn.transform import Transform
    from scalai_nb.models.package import package
    from scalai_nb.models.registry import Registry
    from scalai_nb.models.tracking import track
    env = SimpleNamespace(models="{tmp_path}/store/models", tracking="sqlite:///{tmp_path}/store/tracking.db")
    hours = xr.Dataset({{"hour": ("row", np.arange(24.0))}})
    t = Transform(["hour"]).fit(hours)
    registry = Registry(env)
    for _ in range(2):
        v = registry.register(package(t, LogisticRegression().fit(t.transform(hours).values, hours.hour > 15)), "late")
        registry.promote("late", v.version)
    registry.rollback("late")
    open("report.html", "w").write("x")
    track(env, "flights", "run-1", artifacts=["report.html"], steps=[dict(name="train")])
    import mlflow.telemetry
    assert mlflow.telemetry.get_telemetry_client() is None
    import time; time.sleep(1)  # a thread would have asked by now
    """
    (tmp_path / "work").mkdir()
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code)], cwd=tmp_path / "work", env=bare,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["report.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "work"]
    assert {p.name for p in (tmp_path / "store").iterdir()} == {"tracking.db", "tracking.db.lock", "artifacts", "models", "models.lock"}
