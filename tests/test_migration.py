"""MLflow's file, killed at any statement of its migrations: it is whole again, and loses nothing"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy import Project

from scalai_nb.errors import WorkFailed
from scalai_nb.tracking import migration
from scalai_nb.tracking.migration import set_up, unfinished
from scalai_nb.tracking.mlflow_sink import client

SNAPSHOTS = """
import shutil, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from mlflow.store.db import utils
folder = Path(sys.argv[1])
count = 0

@event.listens_for(Engine, "before_cursor_execute")
def before(connection, cursor, statement, *_):
    global count
    if statement.lstrip().upper().startswith(("SELECT", "PRAGMA")):
        return
    for file in folder.glob("live.db*"):
        shutil.copy(file, folder / file.name.replace("live", f"{count:04}"))
    count += 1

utils._initialize_tables(utils.create_sqlalchemy_engine(f"sqlite:///{folder}/live.db"))
"""
SET_UP = (
    "import sys\n"
    "from pathlib import Path\n"
    "from scalai_nb.tracking.migration import set_up\n"
    "import mlflow.store.db.utils\n"
    "print('begin', flush=True)\n"
    "set_up(Path(sys.argv[1]))"
)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    "The file, and its journal, before each statement that MLflow's own way of setting it up does"
    folder = tmp_path_factory.mktemp("snapshots")
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    subprocess.run([sys.executable, "-c", SNAPSHOTS, str(folder)], check=True, env=quiet)
    found = sorted(folder.glob("*.db"))[:-1]
    assert len(found) > 300
    return found


def usable(file: Path) -> None:
    "MLflow's client writes to a file and reads it"
    c = client(SimpleNamespace(tracking=f"sqlite:///{file}"))
    run = c.create_run(c.create_experiment("x", artifact_location=file.parent.as_uri()))
    c.log_metric(run.info.run_id, "auc", 0.5)
    assert c.get_run(run.info.run_id).data.metrics == {"auc": 0.5}
    assert [f.name for f in file.parent.glob(f"{file.name}.new*")] == []


def check(snapshot: Path, file: Path) -> None:
    "What was killed at a statement is whole after it is set up"
    for part in snapshot.parent.glob(f"{snapshot.name}*"):
        shutil.copy(part, file.parent / part.name.replace(snapshot.name, file.name))
    set_up(file)
    assert unfinished(file) == ""


@pytest.mark.parametrize("seed", range(3))
def test_a_file_that_was_killed_in_mid_migration_is_whole_again(snapshots, tmp_path, seed):
    file = tmp_path / "tracking.db"
    check(random.Random(seed).choice(snapshots), file)
    usable(file)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_every_statement(snapshots, tmp_path):
    for snapshot in snapshots:
        folder = tmp_path / snapshot.stem
        folder.mkdir()
        check(snapshot, folder / "tracking.db")


@pytest.mark.parametrize("seed", range(2))
def test_setting_up_may_be_killed(tmp_path, seed):
    file = tmp_path / "tracking.db"
    words = [sys.executable, "-c", SET_UP, str(file)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(random.Random(seed).uniform(0, 1.4))
        process.send_signal(signal.SIGKILL)
    assert not file.exists() or file.stat().st_size == 0 or not unfinished(file)
    usable(file)


def test_runs_that_are_there_stay_when_mlflow_has_a_newer_schema(tmp_path, monkeypatch):
    file = tmp_path / "tracking.db"
    usable(file)
    monkeypatch.setattr(migration, "unfinished", lambda _, seen=iter(["old", ""]): next(seen))
    set_up(file)
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT value FROM metrics").fetchall() == [(0.5,)]


def test_what_cannot_be_migrated_and_holds_runs_is_left_as_it_is(snapshots, tmp_path):
    file = tmp_path / "tracking.db"
    usable(file)
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
    before = file.read_bytes()
    with pytest.raises(WorkFailed, match="in the middle of a migration"):
        set_up(file)
    assert file.read_bytes() == before


def test_a_file_of_a_newer_mlflow_is_left_to_that(tmp_path):
    file = tmp_path / "tracking.db"
    set_up(file)
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    before = file.read_bytes()
    set_up(file)
    assert file.read_bytes() == before


def test_doctor_says_that_a_migration_was_interrupted(snapshots, tmp_path):
    project = Project(tmp_path, "trackers = mlflow\n")
    project.step("00_a", "n: int = 1", "n")
    assert project.said("run", "toy").returncode == 0
    project.said("runs", "send")
    [file] = tmp_path.rglob("tracking.db")
    with closing(sqlite3.connect(file)) as db, db:
        db.execute('CREATE TABLE "_alembic_tmp_runs" (run_uuid)')
    assert "in the middle of a migration" in " ".join(
        project.said("doctor", COLUMNS="200").stdout.split()
    )
    project.said("run", "toy", "--force")
    project.said("runs", "send")
    assert "in the middle of a migration" not in " ".join(
        project.said("doctor", COLUMNS="200").stdout.split()
    )
