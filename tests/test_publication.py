"""What a step writes becomes visible when the step completes, all of it or nothing"""

import json

import numpy as np
import pytest
import xarray as xr
from toy import Project, statuses

from scalai_nb.data.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.errors import ModelNotFound, VersionNotFound
from scalai_nb.models.registry.registry import Registry

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
def project(tmp_path):
    "A step that writes a dataset and a model, and a reader of both"
    p = Project(tmp_path, "cluster = none\ntrackers = none\n")
    p.step("00_make", CONTRACT, WRITE, "assert n < 9, 'too many'")
    reads = 'a: In = "a"\nm: In[Model] = "m"'
    use = "from scalai_nb.pipeline import read\nprint('scored', len(read(m).predict(read(a))))"
    p.step("01_use", CONTRACT.splitlines()[0] + "\n" + reads, use)
    return p


def registry(project) -> Registry:
    return Registry(environment("laptop", settings=project.root / "settings.ini"))


def run(project, *words: str, code: int = 0) -> dict:
    done = project.scalai("run", "toy", "--json", *words)
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
