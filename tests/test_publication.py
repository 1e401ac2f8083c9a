"""What a step writes becomes visible when the step completes, all of it or nothing"""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from toy import Project, statuses

from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.lake.publication import pending
from scalai_nb.environment import environment
from scalai_nb.errors import ModelNotFound, VersionNotFound
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.package.package import package
from scalai_nb.models.registry.registry import Registry

CAMPAIGN = [pytest.mark.campaign, pytest.mark.slow]
CONTRACT = (
    'from scalai_nb.pipeline import In, Model, Out\na: Out = "a"\nm: Out[Model] = "m"\nn: int = 1'
)
WRITE = (
    "import numpy as np, xarray as xr\n"
    "from sklearn.linear_model import LogisticRegression\n"
    "from scalai_nb.learn.features.transform import Transform\n"
    "from scalai_nb.models.package.package import package\n"
    "from scalai_nb.pipeline import read, write\n"
    "ds = xr.Dataset({'x': ('row', np.arange(40.0) * n)})\n"
    "transform = Transform(['x']).fit(ds)\n"
    "estimator = LogisticRegression().fit(transform.transform(ds), np.arange(40) > 20)\n"
    "made = write(m, package(transform, estimator, name='m'), metrics={'auc': 0.5 + n / 10})\n"
    "write(a, ds)"
)


@pytest.fixture
def project(tmp_path, database):
    "A step that writes a dataset and a model, and a reader of both"
    p = Project(tmp_path, database=database)
    p.step("00_make", CONTRACT, WRITE, "assert n < 9, 'too many'")
    reads = 'a: In = "a"\nm: In[Model] = "m"'
    use = "from scalai_nb.pipeline import read\nprint('scored', len(read(m).predict(read(a))))"
    p.step("01_use", CONTRACT.splitlines()[0] + "\n" + reads, use)
    return p


def registry(project) -> Registry:
    return Registry(environment("laptop", settings=project.root / "settings.ini"))


def run(project, *words: str, code: int = 0) -> dict:
    done = project.said("run", "toy", "--json", *words)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_failed_step_leaves_data_and_models_as_they_were(project):
    found = run(project, "-p", "make.n=9", code=1)
    assert statuses(found)["make"] == ("failed", "cell_error")
    with pytest.raises(ModelNotFound):
        registry(project).get("m", "latest")
    assert registry(project).names() == [] == Lake(project.root / ".scalai/lake").names()
    first = run(project)
    assert statuses(first) == {"make": ("completed", None), "use": ("completed", None)}
    version = registry(project).get("m", "latest")
    assert version.metrics == {"auc": 0.6} and version.tags["step"] == "make"
    run(project, "-p", "make.n=9", code=1)
    assert registry(project).get("m", "latest") == version
    assert [v.version for v in registry(project).versions("m")] == [version.version]
    with pytest.raises(VersionNotFound):
        registry(project).get("m", version.version + 1)
    assert Lake(project.root / ".scalai/lake").read("a")["x"].max() == 39


def test_models_of_a_conflict_are_not_seen(project):
    run(project)
    slow = "import time; print('ready', flush=True); time.sleep(4)"
    project.step("00_make", CONTRACT, WRITE, slow)
    process = project.start("run", "toy", "-p", "make.n=2", "--json")
    project.wait_for("ready", "00_make")
    theirs = xr.Dataset({"x": ("row", np.arange(3.0))})
    Lake(project.root / ".scalai/lake").write("a", theirs)
    out, _ = process.communicate(timeout=60)
    assert statuses(json.loads(out))["make"] == ("failed", "conflict")
    assert registry(project).get("m", "latest").metrics == {"auc": 0.6}


# --- a process that publishes dies at any line --------------------------------------------------

KILL = """
import os, shutil, sys
from pathlib import Path
import icechunk, mlflow, numpy, onnxruntime, sqlalchemy, xarray, zarr
from mlflow.store.model_registry import sqlalchemy_store
from mlflow.tracking import MlflowClient
from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.models.package.package import Model
from scalai_nb.models.registry.registry import Registry

ROOMS = ("scalai_nb/data/lake/lake", "scalai_nb/data/lake/publication", "scalai_nb/models/registry",
         "scalai_nb/files")
root, lines = Path(sys.argv[1]), list(map(int, sys.argv[2].split(",")))

def publish(folder, last):
    "Publish, and die at a line; the number of lines if there are fewer"
    seen = 0
    def trace(frame, event, arg):
        nonlocal seen
        if not any(room in frame.f_code.co_filename for room in ROOMS):
            return None
        seen += event == "line"
        if seen == last:
            os.kill(os.getpid(), 9)
        return trace
    env = environment("laptop", settings=folder / "settings.ini")
    registry = Registry(env)
    sys.settrace(trace)
    registry.publish("run.make", ["a", "b"], {("m", 2): "champion", ("n", 1): ""})
    sys.settrace(None)
    return seen

for line in lines:
    folder = root / str(line)
    shutil.copytree(root / "before", folder)
    if os.fork() == 0:
        print(publish(folder, line), flush=True)
        os._exit(0)
    os.wait()
"""


def visible(folder) -> dict:
    "What a reader finds: the newest versions of datasets and models, and the champions"
    env = environment("laptop", settings=folder / "settings.ini")
    lake, models = Lake(env.lake), Registry(env)
    found = {f"dataset {name}": lake.version(name).id for name in lake.names()}
    found |= {f"dataset {n}, read": float(lake.read(n).x.max()) for n in lake.names()}
    for name in models.names():
        found[f"model {name}"] = models.get(name, "latest").version
        aliases = ((a, v.version) for v in models.versions(name) for a in v.aliases)
        found |= {f"model {name}@{alias}": version for alias, version in aliases}
    return found


@pytest.fixture(scope="module")
def before(tmp_path_factory, database):
    "A project with a dataset and a champion, and what a step has written and not published"
    root = tmp_path_factory.mktemp("publication")
    (root / "before").mkdir()
    made = Project(root / "before", database=database)
    env = environment("laptop", settings=made.root / "settings.ini")
    lake, models = Lake(env.lake), Registry(env)
    ds = xr.Dataset({"x": ("row", np.arange(40.0))})
    transform = Transform(["x"]).fit(ds)
    estimator = LogisticRegression().fit(transform.transform(ds), ds.x > 20)
    model = package(transform, estimator, name="m")
    lake.write("a", ds)
    models.register(model, "m", alias="champion")
    for name in ("a", "b"):
        lake.write(name, ds + 1, branch="run.make")
    for name in ("m", "n"):
        models.register(model, name, staged="run.make")
    return root


def killed_at(root, lines) -> str:
    words = [sys.executable, "-c", KILL, root, ",".join(map(str, lines))]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("tries", [12, pytest.param(None, marks=CAMPAIGN)])
def test_a_publication_is_whole_or_not_there_wherever_its_process_dies(before, tries):
    total = int(killed_at(before, [10**9]))
    old, new = visible(before / "before"), visible(before / str(10**9))
    assert old == {"dataset a": ANY, "dataset a, read": 39, "model m": 1, "model m@champion": 1}
    assert new == {
        "dataset a": ANY,
        "dataset b": ANY,
        "dataset a, read": 40,
        "dataset b, read": 40,
        "model m": 2,
        "model m@champion": 2,
        "model m@previous": 1,
        "model n": 1,
    }
    every = range(1, total + 1)
    lines = random.Random(12).sample(every, tries or total)
    killed_at(before, lines)
    outcomes = Counter()
    for line in sorted(lines):
        folder = before / str(line)
        found = visible(folder)
        assert found in (old, new), f"line {line}: {found}"
        outcomes["old" if found == old else "new"] += 1
        env = environment("laptop", settings=folder / "settings.ini")
        Registry(env).settle()
        assert visible(folder) == found and not pending(Path(env.lake))
        assert Lake(env.lake).write("a", xr.Dataset({"x": ("row", [7.0])})).rows == 1
        assert Registry(env).promote("m", 1, "champion").version == 1
        assert visible(folder) == {**found, "dataset a": ANY, "dataset a, read": 7} | (
            {} if found == old else {"model m@champion": 1, "model m@previous": 2}
        )
        shutil.rmtree(folder)
    assert min(outcomes["old"], outcomes["new"]) > len(lines) // 10
    print(f"{total} lines, killed at {len(lines)}: {dict(outcomes)}")
