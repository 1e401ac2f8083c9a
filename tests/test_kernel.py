"""Kernels of environments at work: their limits, what they refuse, what they say, Ctrl-C"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager, start_new_kernel

from scalai_nb.jupyter import kernels

SETTINGS = """
[DEFAULT]
lake = data/lake

[laptop]
cluster = none

[small]
cluster = none
memory = 1500MB
cores = 1

[pair]
cluster = local
workers = 2
worker_price = 1.5
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project with kernels of three environments"
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        (root / "settings.ini").write_text(SETTINGS)
        for variable in ("SCALAI_ENV", "SCALAI_SETTINGS"):
            patch.delenv(variable, raising=False)
        patch.setenv("JUPYTER_PATH", str(root / "share" / "jupyter"))
        patch.setenv("JUPYTER_DATA_DIR", str(root / "user"))
        patch.chdir(root)
        kernels.install(prefix=root)
        yield root


class Cells:
    "A kernel, and what its cells say"

    def __init__(self, name, folder):
        self.manager, self.client = start_new_kernel(kernel_name=name, cwd=str(folder))
        self.reply = {}

    def __call__(self, source, timeout=90):
        said = []

        def hear(message):
            content = message["content"]
            text = content.get("text") or content.get("data", {}).get("text/plain")
            said.append(text or "\n".join(content.get("traceback", ())))

        done = self.client.execute_interactive(source, timeout=timeout, output_hook=hear)
        self.reply = done["content"]
        return "".join(said)

    @property
    def ok(self):
        return self.reply["status"] == "ok"


@pytest.fixture
def start(project):
    begun = []

    def start(name):
        begun.append(Cells(f"scalai-{name}", project))
        return begun[-1]

    yield start
    for cells in begun:
        cells.client.stop_channels()
        cells.manager.shutdown_kernel(now=True)


NUMBERS = """
import numpy as np
x = np.random.default_rng(0).normal(size=(500, 8))
values = np.linalg.svd(x, compute_uv=False)
print([round(float(v), 9) for v in values], float(x.values.sum()) if hasattr(x, "values") else "")
"""


def test_one_notebook_gives_the_same_numbers_under_each_kernel(project, start):
    "By the kernel's own interface, by papermill and by nbclient's `jupyter execute`"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None}
    nb = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [{**cell, "source": NUMBERS}],
    }
    (project / "numbers.ipynb").write_text(json.dumps(nb))
    printed = {start("laptop")(NUMBERS)}
    for name in ("small", "pair"):
        printed.add(start(name)(NUMBERS))
        word = f"scalai-{name}"
        scripts = Path(sys.executable).parent
        for script, *words in (
            ("papermill", "-k", word, "numbers.ipynb", "papermill.ipynb"),
            (
                "jupyter-execute",
                "--output=jupyter-execute",
                f"--kernel_name={word}",
                "numbers.ipynb",
            ),
        ):
            command = [scripts / script, *words]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            out = json.loads(Path(f"{script}.ipynb").read_text())["cells"][-1]["outputs"]
            printed.add("".join("".join(o["text"]) for o in out))
    assert len(printed) == 1 and next(iter(printed)).startswith("[")


def test_a_cell_that_asks_for_fifty_gigabytes_is_told_what_to_do(start):
    cell = start("small")
    cell("import numpy as np\nkept = np.ones(20_000_000)")
    said = cell("more = np.ones(50 * 10**9 // 8)")
    assert cell.reply["ename"] == "MemoryError" and "Traceback" not in said
    for words in ("may take 1.5 GB (memory in [small]", "kept 160 MB: del kept", "stays lazy"):
        assert words in said
    assert cell("kept.sum(), 'more' in globals()") == "(np.float64(20000000.0), False)"


def test_what_would_not_fit_is_not_brought(start):
    cell = start("small")
    cell("import dask.array as da, xarray as xr, time")
    cell("lazy = xr.Dataset({'price': ('row', da.ones(10**10, chunks=10**7))})")
    for source in ("lazy.compute()", "lazy.price.values", "v = (lazy.price * 2).load()"):
        said = cell(f"begun = time.time()\n{source}")
        assert cell.reply["ename"] == "TooLarge" and "Keep it lazy" in said, source
        assert "80.0 GB" in said
        assert float(cell("time.time() - begun")) < 5
    assert cell("float(lazy.price[:1000].mean().compute()), lazy.price[:3].values") == (
        "(1.0, array([1., 1., 1.]))"
    )
    # a function is left as it is written
    cell("def f(x): return x.values")
    assert cell("'_scalai_fits' in f.__code__.co_names") == "False"


def test_a_kernel_has_the_cores_of_its_environment(start):
    assert start("small")("import os; len(os.sched_getaffinity(0))") == "1"


def test_a_kernel_without_its_environment_starts_and_says_so(project, tmp_path):
    (tmp_path / "settings.ini").write_text("[gone]\ncluster = none\n")
    kernels.install(prefix=project, settings=tmp_path / "settings.ini")
    (tmp_path / "settings.ini").write_text("[other]\n")
    cell = Cells("scalai-gone", tmp_path)
    try:
        assert cell("1 + 1") == "2"
    finally:
        cell.client.stop_channels()
        cell.manager.shutdown_kernel(now=True)
        kernels.remove(["gone"])


def test_a_cluster_is_accounted_for_and_an_interrupt_leaves_it(start):
    cell = start("pair")
    cell("import scalai_nb as sn, time\nclient = sn.connect()")
    assert "worker-seconds" not in cell("x = 1")
    said = cell("client.submit(lambda: time.sleep(1) or 42).result()")
    assert "42" in said and "1.0 worker-seconds · 1 tasks" in said and "cost 0.0004" in said

    said = cell("client.gather(client.map(time.sleep, [0.2] * 60, pure=False))[:1]")
    assert "tasks to go" in said and "60 tasks" in said
    cell("def slow(i):\n    time.sleep(0.5)\n    return i")
    cell("import os")
    cell("1 / 0")  # the first traceback of a kernel takes a second of imports
    ask = "sorted(client.run(os.getpid).values())"
    workers = cell(ask)
    took = []
    for _ in range(2):  # the better one: others may use this machine
        cell.client.execute("fs = client.map(slow, range(1000), pure=False)\nclient.gather(fs)")
        time.sleep(2)
        begun = time.monotonic()
        cell.manager.interrupt_kernel()
        assert cell.client.get_shell_msg(timeout=20)["content"]["ename"] == "KeyboardInterrupt"
        took.append(time.monotonic() - begun)
    assert min(took) < 2
    assert cell("del fs; client.submit(lambda: 7).result()").startswith("7")
    assert cell(ask) == workers


def test_scale_starts_a_cluster_which_runs_a_cell_and_ends(start):
    cell = start("laptop")
    assert "To start one: %scale 4" in cell("%scale")
    said = cell("%scale 1")
    assert "running" in said and "dashboard" in said, said
    assert cell("%scale 2").count("running") == 2
    assert cell("len(client.scheduler_info()['workers'])") == "2"

    cell("import os, numpy as np\nweights = np.arange(3)\ndef double(x): return 2 * x")
    source = (
        "print('there')\nthere = os.getpid()\ntwice = double(weights)\nlate = (w for w in twice)"
    )
    said = cell(f"%%remote\n{source}\ntwice.sum()")
    assert "there\n" in said and "cannot be pickled: late (generator)" in said and "6" in said
    assert cell("there != os.getpid(), twice.tolist()").startswith("(True, [0, 2, 4])")
    cell("rows = (n for n in range(3))")
    said = cell("%%remote\nlist(rows)")
    assert not cell.ok and "rows (generator) cannot be sent" in said
    cell("%%remote\n1 / 0")
    assert cell.reply["ename"] == "ZeroDivisionError"
    assert "No cluster" in cell("%scale off")
    assert "start one: %scale 2" in cell("%%remote\n1")
    for wrong in ("%scale many", "%scale 0", "%%remote now\n1"):
        said = cell(wrong)
        assert cell.reply["ename"] == "UsageError" and "write %" in said, said


def test_why_names_the_cause_and_the_remedy(start):
    cell = start("small")
    assert "Nothing has failed yet" in cell("%why")
    cell("import pandas as pd, numpy as np\nsales = pd.DataFrame({'price': [1.0]})")
    for wrong, words in (
        ("sales['prise']", ("'prise' is not a column of sales", "'price'")),
        ("import yamll", ("yamll is not installed", "%pip install yamll")),
        ("salse", ("'salse' stands for nothing yet", "'sales'")),
        ("open('nowhere.csv')", ("There is no file nowhere.csv", "Paths count from")),
        ("np.ones(10**11)", ("memory of this kernel", "stays lazy")),
        ("%lake tripz", ("'tripz' is not in",)),
        ("1 / 0", ("ZeroDivisionError: division by zero", "It came from: 1 / 0")),
    ):
        cell(wrong)
        assert not cell.ok
        said = cell("%why")
        assert all(w in said for w in words), (wrong, said)


def test_undo_brings_the_version_before_back_and_only_that(start):
    cell = start("laptop")
    assert "has written no dataset yet" in cell("%undo")
    cell("import scalai_nb as sn, xarray as xr\nlake = sn.Lake(sn.environment().lake)")
    cell("lake.write('tea', xr.Dataset({'price': ('row', [1, 2])}))")
    assert "did not exist before" in cell("%undo")
    cell("lake.write('tea', xr.Dataset({'cost': ('row', [1])}))")
    seen = cell("%undo -n")
    assert "2 -> 1 rows" in seen or "1 -> 2 rows" in seen
    assert cell("lake.version('tea').rows") == "1"
    assert "2 rows" in cell("%undo")
    assert cell("lake.read('tea').price.values.tolist()") == "[1, 2]"
    cell("w = lake.write('tea', xr.Dataset({'cost': ('row', [1])}))")
    other = start("laptop")
    other("import scalai_nb as sn, xarray as xr\nlake = sn.Lake(sn.environment().lake)")
    other("lake.write('tea', xr.Dataset({'cost': ('row', [7, 8, 9])}))")
    assert "was written again since" in cell("%undo") and not cell.ok
    assert cell("lake.version('tea').rows") == "3"
    assert "3" in cell("%summary tea") and "cost" in cell("%summary tea")
    assert "cost" in cell("%summary lake.read('tea')")
    cell("%summary nothing")
    assert cell.reply["ename"] == "NameError"


def test_a_cell_becomes_a_step_that_runs_and_goals_have_lights(project, start):
    cell = start("laptop")
    cell("import math\nfrom scalai_nb.pipeline import read, write\nimport xarray as xr\ndepth = 4")
    source = "tea = xr.Dataset({'price': ('row', [1.0, math.sqrt(depth)])})\nwrite('teas', tea)"
    assert "shop/01_ingest.ipynb has the cell" in cell(f"%%step shop/ingest\n{source}")
    assert "is there already; add -f" in cell(f"%%step ingest\n{source}") and not cell.ok
    cell("other = object()")
    assert "other (object) comes from another cell" in cell("%%step shop/late\nprint(other)")
    assert "write %%step PIPELINE/NAME" in cell("%%step Not Good\n1")
    done = subprocess.run(
        [sys.executable, "-m", "scalai_nb", "run", "shop", "-p", "ingest.depth=9", "-e", "laptop"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert cell("sn = __import__('scalai_nb'); read('teas').price.values.tolist()") == "[1.0, 3.0]"

    (project / "tea.csv").write_text("price\n3\n")
    cell("import pandas as pd")
    said = cell("%%step shop/count\npd.read_csv('tea.csv').to_csv('counted.csv')")
    assert "tea_csv: In[File] = '../../../tea.csv'" in said
    assert "counted_csv: Out[File] = 'counted.csv'" in said
    counted = next(project.glob("nbs/pipelines/shop/*count.ipynb"))
    assert "read_csv(tea_csv).to_csv(counted_csv)" in counted.read_text()
    counted.unlink()

    assert "No pipeline has a goal" in cell("%goals")
    notebook = next(project.glob("nbs/pipelines/shop/*.ipynb"))
    told = json.loads(notebook.read_text())
    told["cells"][1]["source"] += "\nfrom scalai_nb.pipeline import Goal\nauc: Goal = '>= 0.7'"
    notebook.write_text(json.dumps(told))
    said = cell("%goals")
    assert "auc" in said and ">= 0.7" in said and "not measured" in said
    log = next(project.glob(".scalai/runs/shop-*/events.jsonl"))
    lines = log.read_text().splitlines()
    for i, line in enumerate(lines):
        event = json.loads(line)
        if event["event"] == "step_finished":
            lines[i] = json.dumps({**event, "metrics": {"auc": 0.66}})
    log.write_text("\n".join(lines) + "\n")
    assert "0.66 ✘ missed" in cell("%goals shop")
    assert "'nosuch'" in cell("%goals nosuch")


def test_what_is_tracked_is_one_record(project, start):
    cell = start("laptop")
    assert "auc = 0.71" in cell("score = 0.71\n%track auc=score depth=4 note='first try'")
    cell("%track recall=0.5")
    source = """
    import mlflow
    from mlflow import MlflowClient
    client = MlflowClient(tracking_uri=sn.environment().tracking)
    found = client.search_runs([client.get_experiment_by_name('notebooks').experiment_id])
    print(len(found), found[0].data.metrics, found[0].data.params)
    """
    said = cell("import scalai_nb as sn\n" + "\n".join(x.strip() for x in source.splitlines()))
    assert said.startswith("1 ") and "'recall': 0.5" in said and "'note': 'first try'" in said, said
    assert "write name=value" in cell("%track auc")


def test_each_magic_has_help_and_its_words_complete(start):
    cell = start("laptop")
    for name in ("scale", "goals", "summary", "track", "undo", "why", "remote", "step"):
        kind = "cell" if name in ("remote", "step") else "line"
        said = cell(f"print(get_ipython().find_magic({name!r}, {kind!r}).__doc__)")
        assert f"%{name}" in said

    def completed(text):
        reply = cell.client.complete(text, len(text), reply=True, timeout=20)
        return reply["content"]["matches"]

    assert {"off", "gpu"} <= set(completed("%scale "))
    assert any("-n" in m for m in completed("%undo "))


def test_a_machine_with_other_users_can_ask_for_encryption(project):
    "`KernelManager.transport_encryption`: what a kernel says can then not be overheard"
    manager = KernelManager(kernel_name="scalai-small", transport_encryption="required")
    manager.start_kernel(cwd=str(project))
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        assert client.execute("1 + 1", reply=True, timeout=30)["content"]["status"] == "ok"
        assert "curve_secretkey" in Path(manager.connection_file).read_text()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
