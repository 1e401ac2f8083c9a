"""Records of runs: written down first, sent once to each tracker, kept while one is down

And what a pipeline run tells.
"""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import free_port
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy import Project, gone

from scalai_nb.environment import environment
from scalai_nb.tracking import outbox as tracking
from scalai_nb.models.registry.catalog import Catalog
from scalai_nb.tracking import mlflow_file, mlflow_sink
from scalai_nb.tracking.mlflow_file import database, version_rows
from scalai_nb.tracking.mlflow_sink import MLflow, client
from scalai_nb.tracking.outbox import deliver, record, send, spool, waiting
from scalai_nb.tracking.record import Record
from scalai_nb.pipeline.run import Run, StepRun
from scalai_nb.pipeline.tracker import Tracker, catch_up


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    "A tracking file, so that its sixty migrations are paid for once"
    file = tmp_path_factory.mktemp("mlflow") / "tracking.db"
    client(SimpleNamespace(tracking=f"sqlite:///{file}"))
    return file.read_bytes()


@pytest.fixture
def env(tmp_path, migrated):
    (tmp_path / "tracking.db").write_bytes(migrated)
    return SimpleNamespace(
        runs=str(tmp_path / "runs"), tracking=f"sqlite:///{tmp_path}/tracking.db", trackers="mlflow"
    )


def logged(env, experiment="flights") -> dict:
    "Name -> MLflow run; a name that is there twice fails the test"
    c = client(env)
    found = c.search_runs([c.get_experiment_by_name(experiment).experiment_id])
    assert len(found) == len({r.info.run_name for r in found})
    return {r.info.run_name: r for r in found}


# ---- the spool


def test_a_run_with_its_steps(env, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("<h1>flights</h1>")
    run = record(
        env,
        Record(
            "flights",
            "run-1",
            params={"jobs": 2},
            metrics={"seconds": 5},
            tags={"code": "abc"},
            artifacts=[report],
            status="cancelled",
            started=99.0,
            finished=104.0,
        ),
    )
    record(
        env,
        Record(
            "other",
            "train",
            parent=run,
            params={"months": [1, 2]},
            metrics={"seconds": 2.5, "rows": None, "gap": float("nan")},
            tags={"cause": "cell_error"},
            status="failed",
            started=100.0,
            finished=102.5,
        ),
    )
    record(env, Record("flights", "evaluate", parent=run, status="cached"))
    report.unlink()
    assert send(env) == 3 and send(env) == 0
    runs = logged(env)
    whole, train, evaluate = runs["run-1"], runs["train"], runs["evaluate"]
    assert (whole.info.status, train.info.status, evaluate.info.status) == (
        "KILLED",
        "FAILED",
        "FINISHED",
    )
    assert (whole.info.start_time, whole.info.end_time) == (
        99_000,
        104_000,
    ) and train.info.end_time == 102_500
    assert (
        whole.data.params == {"jobs": "2"}
        and whole.data.metrics == {"seconds": 5}
        and whole.data.tags["code"] == "abc"
    )
    assert train.data.params == {"months": "[1, 2]"} and train.data.metrics == {"seconds": 2.5}
    assert (
        train.data.tags["mlflow.parentRunId"] == whole.info.run_id
        and train.data.tags["scalai.status"] == "failed"
    )
    assert "mlflow.parentRunId" not in whole.data.tags
    assert [a.path for a in client(env).list_artifacts(whole.info.run_id)] == ["report.html"]
    assert [p.name for p in spool(env).iterdir()] == ["records.lock"]


def test_what_goes_on_is_told_and_then_what_it_came_to(env):
    study = record(env, Record("flights", "search", status="running", started=10.0))
    record(env, Record("flights", "trial 0", parent=study, params={"depth": 4}))
    send(env)
    assert logged(env)["search"].info.status == "RUNNING"
    record(
        env,
        Record("flights", "search", id=study, metrics={"best": 0.7}, started=10.0, finished=20.0),
    )
    send(env)
    search = logged(env)["search"]
    assert (search.info.status, search.info.start_time, search.data.metrics) == (
        "FINISHED",
        10_000,
        {"best": 0.7},
    )
    assert logged(env)["trial 0"].data.tags["mlflow.parentRunId"] == search.info.run_id


def test_a_secret_of_one_digit_does_no_damage(env, monkeypatch):
    monkeypatch.setenv("SCALAI_SECRETS", "PIN")
    monkeypatch.setenv("PIN", "4")
    record(env, Record("flights", "run-4", params={"depth": 4, "pin": 'x"4'}, metrics={"rows": 4}))
    assert send(env) == 1
    assert logged(env)["run-***"].data.params == {"depth": "***", "pin": 'x"***'} and logged(env)[
        "run-***"
    ].data.metrics == {"rows": 4}


def test_many_parameters_and_odd_names(env):
    record(
        env,
        Record(
            "flights",
            "wide",
            params={f"p{i}": "x" * 7000 for i in range(230)} | {"a=b%": 1},
            metrics={"µ": 1.0},
        ),
    )
    assert send(env) == 1
    assert len(logged(env)["wide"].data.params) == 231 and logged(env)["wide"].data.metrics == {
        "_": 1.0
    }


@settings(deadline=None)  # the first imports MLflow
@given(st.text(alphabet="ab./ \\:é", min_size=1, max_size=300))
@example("input.../../../houses.csv")
def test_any_name_becomes_a_key_that_mlflow_takes(name):
    "A file's path as well, which MLflow would take for another"
    from mlflow.utils.validation import path_not_unique, validate_param_and_metric_name

    key = mlflow_sink._key(name)
    assert validate_param_and_metric_name(key) and not path_not_unique(key) and len(key) <= 251


def test_a_sender_that_dies_repeats_nothing(env, monkeypatch):
    "It dies after MLflow has the record, in each of the places where that may be"
    for i, (where, name) in enumerate([(MLflow, "_log"), (tracking, "_clear")]):
        record(env, Record("flights", f"run-{i}", metrics={"seconds": i}))

        def die(*a):
            raise KeyboardInterrupt

        with monkeypatch.context() as m:
            m.setattr(where, name, die)
            with pytest.raises(KeyboardInterrupt):
                deliver(env)
        assert f"run-{i}" in logged(env) and len(waiting(env)) == 1
        assert (
            send(env) == 1
            and logged(env)[f"run-{i}"].data.metrics == {"seconds": i}
            and logged(env)[f"run-{i}"].info.status == "FINISHED"
        )


SENDER = """
import sys
from types import SimpleNamespace
from scalai_nb.tracking.outbox import send
print(send(SimpleNamespace(runs=sys.argv[1], tracking=sys.argv[2], trackers="mlflow")))
"""


@pytest.mark.slow
def test_versions_are_read_after_a_writer_was_killed_in_mid_transaction(env):
    "What it has left half is taken back; it was an error until somebody wrote"
    record(env, Record("flights", "good"))
    deliver(env)
    file = database(env)
    dies = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("CREATE TABLE half (x)")
db.executemany("INSERT INTO half VALUES (?)", [("x" * 999,)] * 999)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", dies, file])
    assert Path(f"{file}-journal").exists()
    assert version_rows(file) == []


def test_two_senders_and_one_that_is_killed(env):
    for i in range(60):
        record(env, Record("flights", f"trial {i}", metrics={"loss": i}))
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", SENDER, env.runs, env.tracking],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    deadline = time.monotonic() + 60
    while len(list(spool(env).glob("*.mlflow"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    holder = int((spool(env) / "records.lock").read_text().split()[1])
    os.kill(holder, signal.SIGKILL)
    sent = sum(int(out or 0) for out, _ in (s.communicate(timeout=60) for s in senders))
    assert (
        sent == 60
        and not waiting(env)
        and {r.data.metrics["loss"] for r in logged(env).values()} == set(range(60))
    )


def test_what_is_damaged_is_set_aside_and_the_rest_is_sent(env):
    record(env, Record("flights", "run-1"))
    (spool(env) / "0-cut.json").write_text('{"id": "flights/r')
    (spool(env) / "0-empty.json").write_text("")
    (spool(env) / "0-alien.json").write_text('{"hello": 1}')
    done = deliver(env)
    assert done.sent == 1 and set(logged(env)) == {"run-1"} and not done.waiting
    assert sorted(Path(path).name for path, _ in done.aside) == [
        "0-alien.aside",
        "0-cut.aside",
        "0-empty.aside",
    ]
    assert f"tracking: {spool(env)}/0-cut.aside was set aside: it is damaged" in str(
        done
    ) and not str(deliver(env))


def test_what_a_tracker_refuses_does_not_hold_up_the_rest(env):
    record(env, Record("", "bad"))
    record(env, Record("flights", "good"))
    done = deliver(env)
    assert done.sent == 1 and logged(env)["good"].info.status == "FINISHED" and not waiting(env)
    assert len(done.aside) == 1 and "mlflow refuses it: Invalid experiment name" in done.aside[0][1]


def test_a_full_disk(env, tmp_path, monkeypatch):
    (tmp_path / "big").write_bytes(b"x")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        record(env, Record("flights", "run-1", artifacts=[tmp_path / "big"]))
    assert list(spool(env).iterdir()) == []


def test_a_tracker_that_is_down_and_one_that_is_not_installed(env, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    env.tracking, env.trackers = f"http://ada:hunter2@127.0.0.1:{free_port()}", "mlflow, wandb"
    for i in range(3):
        record(env, Record("flights", f"run-{i}"))
    clock = time.monotonic()
    lines = str(deliver(env)).splitlines()
    assert time.monotonic() - clock < 20 and len(waiting(env)) == 3
    assert lines[0] == (
        f"tracking: 3 records wait for {env.tracking.replace('ada:hunter2@', '')} (it "
        "does not answer); scalai runs send sends them"
    )
    assert "pip install 'scalai-nb[wandb]'" in lines[1]


# ---- MLflow's file


def test_a_schema_that_mlflow_does_not_know_is_left_to_mlflow(env, tmp_path, monkeypatch):
    file, c = database(env), client(env)
    c.create_registered_model("late")
    c.create_model_version("late", source=str(tmp_path / "package"))
    c.set_registered_model_alias("late", "champion", "1")
    assert [tuple(row[:2]) for row in version_rows(file)] == [("late", 1)]
    direct = list(Catalog(env)._rows())
    monkeypatch.setattr(mlflow_file, "known_schemas", lambda: frozenset({"000000000000"}))
    assert version_rows(file) is None
    assert [tuple(row) for row in Catalog(env)._rows()] == [tuple(row) for row in direct]


def test_a_file_that_mlflow_has_not_set_up_holds_no_versions(env, tmp_path):
    assert version_rows(tmp_path / "none.db") == []
    with closing(sqlite3.connect(tmp_path / "empty.db")) as db:
        db.execute("CREATE TABLE other (name)")
    assert version_rows(tmp_path / "empty.db") == []


# ---- trackers


def test_a_server_that_comes_up_is_told(env, mlflow_server, tmp_path):
    file = tmp_path / "04_train.ipynb"
    file.write_text("{}")
    env.tracking = f"http://127.0.0.1:{free_port()}"
    run = record(env, Record("flights", "run-1", artifacts=[file], metrics={"seconds": 5}))
    record(env, Record("flights", "train", parent=run))
    assert "2 records wait" in str(deliver(env))
    env.tracking = mlflow_server
    assert send(env) == 2 and send(env) == 0
    runs = logged(env)
    assert runs["train"].data.tags["mlflow.parentRunId"] == runs["run-1"].info.run_id and runs[
        "run-1"
    ].data.metrics == {"seconds": 5}
    assert [a.path for a in client(env).list_artifacts(runs["run-1"].info.run_id)] == [
        "04_train.ipynb"
    ]


def offline_runs(folder: Path) -> dict:
    """Name -> (id, group, config, summary, exit code) of W&B's offline runs, by W&B's own messages

    The file is a log in LevelDB's format.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        raw, at, part, records = path.read_bytes(), 7, b"", []
        while at + 7 <= len(raw):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
            size, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
            part += raw[at + 7 : at + 7 + size]
            if kind in (1, 4):
                records, part = [*records, Record.FromString(part)], b""
            at += 7 + size
        run = next(r.run for r in records if r.HasField("run"))
        summary = {
            i.key or "/".join(i.nested_key): json.loads(i.value_json)
            for r in records
            for i in r.summary.update
        }
        config = {i.key: json.loads(i.value_json) for i in run.config.update}
        exit_code = next(r.exit.exit_code for r in records if r.HasField("exit"))
        assert run.display_name not in found
        found[run.display_name] = (run.run_id, run.run_group, config, summary, exit_code)
    return found


def test_weights_and_biases_offline(env, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    asked = []
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as nobody:  # where W&B and its proxies would be asked, were anybody asked
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        threading.Thread(target=lambda: asked.append(nobody.accept()), daemon=True).start()
        for name in ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, url)
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        env.trackers = "wandb"
        (tmp_path / "04_train.ipynb").write_text("{}")
        run = record(
            env,
            Record(
                "flights/late",
                "run-1",
                params={"train.depth": 4},
                metrics={"seconds": 5.5},
                started=10.0,
                finished=15.5,
                status="running",
            ),
        )
        record(
            env,
            Record(
                "flights/late",
                "run-1",
                id=run,
                params={"train.depth": 4},
                metrics={"seconds": 5.5},
                started=10.0,
                finished=15.5,
            ),
        )
        record(
            env,
            Record(
                "flights/late",
                "train",
                parent=run,
                metrics={"roc_auc": 0.75},
                status="failed",
                artifacts=[tmp_path / "04_train.ipynb"],
                tags={"input.features": "3f2a"},
            ),
        )

        def die(*a):
            raise KeyboardInterrupt

        with monkeypatch.context() as m:
            m.setattr(tracking, "_clear", die)
            with pytest.raises(KeyboardInterrupt):
                deliver(env)
        assert set(offline_runs(Path(env.runs))) == {"run-1", "train"}
        for mark in spool(env).glob("*.wandb"):
            mark.unlink()  # as if it had died before it could say so
        assert send(env) == 3 and send(env) == 0
    assert not asked
    runs = offline_runs(Path(env.runs))
    assert set(runs) == {"run-1", "train"}
    id, group, config, summary, code = runs["run-1"]
    assert (
        group == id
        and config["train.depth"] == "4"
        and config["scalai"]["status"] == "completed"
        and summary["seconds"] == 5.5
        and code == 0
    )
    id, nested, config, summary, code = runs["train"]
    assert (
        nested == group
        and config["scalai"]["input.features"] == "3f2a"
        and summary["roc_auc"] == 0.75
        and code == 1
    )
    files = [p for p in Path(env.runs).rglob("*") if p.is_file()]
    assert "04_train.ipynb" in {p.name for p in files} and not [
        p for p in files if b"0123456789" * 4 in p.read_bytes()
    ]


@pytest.mark.slow
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
    from scalai_nb.learn.features.transform import Transform
    from scalai_nb.models.package.package import package
    from scalai_nb.models.registry.registry import Registry
    from scalai_nb.tracking.outbox import record, send
    from scalai_nb.tracking.record import Record
    env = SimpleNamespace(models="{tmp_path}/store/models", runs="{tmp_path}/store/runs", \
tracking="sqlite:///{tmp_path}/store/tracking.db", trackers="mlflow")
    hours = xr.Dataset({{"hour": ("row", np.arange(24.0))}})
    t = Transform(["hour"]).fit(hours)
    registry = Registry(env)
    for _ in range(2):
        v = registry.register(package(t, \
LogisticRegression().fit(t.transform(hours).values, hours.hour > 15)), "late")
        registry.promote("late", v.version)
    registry.rollback("late")
    open("report.html", "w").write("x")
    run = record(env, Record("flights", "run-1", artifacts=["report.html"]))
    record(env, Record("flights", "train", parent=run))
    assert send(env) == 2
    import mlflow.telemetry
    assert mlflow.telemetry.get_telemetry_client() is None
    import time; time.sleep(1)  # a thread would have asked by now
    """
    (tmp_path / "work").mkdir()
    bare = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code)],
        cwd=tmp_path / "work",
        env=bare,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["report.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "work"]
    assert {p.name for p in (tmp_path / "store").iterdir()} == {
        "tracking.db",
        "tracking.db.lock",
        "artifacts",
        "models",
        "models.lock",
        "runs",
    }


# ---- what a pipeline run tells

CONTRACT = "from scalai_nb.pipeline import Goal, In, Out, Secret\n"
WRITE = (
    "import numpy as np, xarray as xr\n"
    "from scalai_nb.pipeline import write\n"
    "write({0}, xr.Dataset({{'x': ('row', np.arange(3))}}))"
)


def sender_of(process: subprocess.Popen, seconds: float = 60) -> int:
    "Process id of the sender that a runner starts"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                sender = (
                    path.read_text().rsplit(")", 1)[1].split()[1] == str(process.pid)
                    and b"tracker import send_all" in path.with_name("cmdline").read_bytes()
                )
            except OSError:
                continue
            if sender:
                return int(path.parent.name)
        time.sleep(0.02)
    raise AssertionError(f"no sender: {process.communicate()}")


@pytest.fixture
def project(tmp_path, env):
    p = Project(
        tmp_path,
        "cluster = none\nworker_price = 3600\ntracking = sqlite:///tracking.db\nruns = runs\n",
    )
    p.step("00_a", CONTRACT + 'a: Out = "a"\ndepth: int = 4', WRITE.format("a"))
    return p


def test_a_run_is_told_with_its_steps_trials_and_cost(project, env):
    trial = (
        "from scalai_nb.environment import environment\n"
        "from scalai_nb.tracking.outbox import record\n"
        "from scalai_nb.tracking.record import Record\n"
        "record(environment(), Record('mine', 'trial 0', params={'key': Secret(token).value}, "
        "metrics={'loss': 0.5}))"
    )
    model = (
        "import numpy as np, xarray as xr\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "from scalai_nb.learn.features.transform import Transform\n"
        "from scalai_nb.models.package.package import package\n"
        "from scalai_nb.pipeline import write\n"
        "hours = xr.Dataset({'hour': ('row', np.arange(24.0))})\n"
        "t = Transform(['hour']).fit(hours)\n"
        "write(scorer, package(t, "
        "LogisticRegression().fit(t.transform(hours).values, hours.hour > 15)), "
        "metrics={'roc_auc': 0.75, 'recall': 0.5})\n"
    )
    project.step(
        "01_b",
        CONTRACT
        + 'a: In = "a"\nscorer: Out = "late"\nrecall: Goal = ">= 0.6"\ntoken: Secret = "TOKEN"',
        trial,
        model,
    )
    process = project.start("run", "toy", TOKEN='hunter2"x')
    sender = sender_of(process)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert gone(sender, 0.1)
    send(env)
    runs = logged(env, "toy")
    (whole,) = [r for name, r in runs.items() if name.startswith("toy-")]
    a, b, trial = runs["a"], runs["b"], runs["trial 0"]
    assert [r.data.tags.get("mlflow.parentRunId") for r in (whole, a, b, trial)] == [
        None,
        whole.info.run_id,
        whole.info.run_id,
        b.info.run_id,
    ]
    assert {r.info.status for r in runs.values()} == {"FINISHED"} and whole.data.params[
        "a.depth"
    ] == a.data.params["depth"] == "4"
    assert (
        b.data.metrics["roc_auc"] == whole.data.metrics["b.roc_auc"] == 0.75
        and b.data.metrics["goal.recall"] == 0.6
        and b.data.tags["goal.recall"] == "missed"
    )
    assert (
        b.data.tags["input.a"] == a.data.tags["output.a"]
        and whole.data.metrics["steps_completed"] == 2
    )
    assert (
        whole.data.metrics["cost"] == pytest.approx(whole.data.metrics["worker_seconds"])
        and whole.data.metrics["worker_seconds"] > 0
    )
    c = client(env)
    assert [[f.path for f in c.list_artifacts(r.info.run_id)] for r in (whole, a, b)] == [
        ["report.html"],
        ["00_a.ipynb"],
        ["01_b.ipynb"],
    ]
    notebook = json.loads(
        Path(c.download_artifacts(b.info.run_id, "01_b.ipynb", str(project.root))).read_text()
    )
    assert notebook["metadata"]["scalai"]["status"] == "completed" and trial.data.params == {
        "key": "***"
    }
    assert not [name for name, content in project.files().items() if b"hunter2" in content]
    again = project.said(
        "run", "toy", TOKEN='hunter2"x'
    )  # all from the cache: written down, and sent with the next
    assert again.returncode == 0 and again.stdout.count("= cached") == 4, (
        again.stdout
    )  # in the lines and in the table
    assert (
        "tracking: 3 records wait for the next run to send them" in again.stderr
        and len(waiting(env)) == 3
    )
    send(env)
    cached = [
        r
        for r in client(env).search_runs([whole.info.experiment_id])
        if r.data.tags["scalai.status"] == "cached"
    ]
    assert (
        {r.data.tags["scalai.cached_from"] for r in cached} == {whole.info.run_name}
        and cached[0].data.params
        and len(cached) == 2
    )


def until(true, seconds: float = 90):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_sender_sends_while_the_run_goes_on_and_says_why_it_cannot(project, env):
    step = StepRun("a", "00_a", status="running", started=time.time())
    run = Run(
        "toy-1",
        project.root / "runs/toy-1",
        "toy",
        "laptop",
        os.getpid(),
        "running",
        started=time.time(),
        steps=[step],
    )
    here = environment("laptop", settings=project.root / "settings.ini")
    with Tracker(here) as tracker:
        tracker.step(run, step)
        until(lambda: not waiting(env))
        assert {r.info.status for r in logged(env, "toy").values()} == {"RUNNING"}
    assert gone(tracker.pid, 0.1) and tracker.said == []
    port = free_port()
    with Tracker(replace(here, tracking=f"http://127.0.0.1:{port}")) as tracker:
        tracker.step(run, step)
        until(lambda: os.fstat(tracker.words.fileno()).st_size)
        step.status, run.status, run.finished = "completed", "completed", time.time()
        tracker.step(run, step)
        tracker.end(run)
    assert gone(tracker.pid, 0.1) and len(tracker.said) == 1
    assert re.fullmatch(
        (
            rf"tracking: [24] records wait for http://127.0.0.1:{port} \(it does not answer\); "
            "scalai runs send sends them"
        ),
        tracker.said[0],
    )
    assert send(env) == 4 and {r.info.status for r in logged(env, "toy").values()} == {"FINISHED"}
    with Tracker(here) as tracker:  # somebody kills the sender
        step.status = "running"
        tracker.step(run, step)
        os.kill(tracker.pid, signal.SIGKILL)
        assert gone(tracker.pid)
        tracker.end(run)
    assert tracker.said == [
        "tracking: 3 records wait for the next run to send them, or for: scalai runs send"
    ]


def test_a_run_goes_on_though_its_tracker_is_down(project, env):
    code = (
        "import sys; from scalai_nb.pipeline.runner import run; "
        "sys.exit(run('toy').status != 'completed')"
    )
    down = {**project.env, "SCALAI_TRACKING": f"http://127.0.0.1:{free_port()}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, env=down, capture_output=True, text=True
    )
    assert done.returncode == 0 and re.search(
        r"tracking: \d records wait for .*scalai runs send", done.stderr
    ), done.stderr
    assert send(env) == 4 and {r.info.status for r in logged(env, "toy").values()} == {"FINISHED"}


def test_a_runner_that_is_killed_leaves_no_sender_and_its_run_is_told_as_lost(project, env):
    project.step(
        "01_b", CONTRACT + 'a: In = "a"', "import time; print('here.', flush=True); time.sleep(60)"
    )
    process = project.start("run", "toy")
    project.wait_for("here.", "01_b")
    sender = sender_of(process)
    process.kill()
    process.communicate()
    assert gone(sender)
    here = environment("laptop", settings=project.root / "settings.ini")
    for _ in range(2):
        assert str(catch_up(here)) == ""
    told = {
        name[:3]: (r.info.status, r.data.tags["scalai.status"])
        for name, r in logged(env, "toy").items()
    }
    assert told == {
        "toy": ("FAILED", "lost"),
        "a": ("FINISHED", "completed"),
        "b": ("FAILED", "lost"),
    } and not waiting(env)


def test_two_pipelines_at_once(project, env):
    for name in ("left", "right"):
        project.step("00_x", "n: int = 1", "import time; time.sleep(1)", pipeline=name)
    runs = [project.start("run", name) for name in ("left", "right")]
    assert [p.wait(60) for p in runs] == [0, 0]
    for p in runs:
        p.communicate()
    send(env)
    for name in ("left", "right"):
        assert {r.info.status for r in logged(env, name).values()} == {"FINISHED"} and len(
            logged(env, name)
        ) == 2


def test_a_spool_that_cannot_be_written_and_none(project):
    Path(project.root / "runs").mkdir()
    (project.root / "runs/spool").write_text("in the way")
    done = project.said("run", "toy")
    assert done.returncode == 0 and "tracking: a is not recorded" in done.stderr
    done = project.said("run", "toy", "--force", SCALAI_TRACKERS="none")
    assert done.returncode == 0 and "tracking" not in done.stderr
