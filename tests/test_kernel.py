"""Kernels of environments at work: their limits, what they refuse, what they say, Ctrl-C"""

import html
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from conftest import free_port
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager, start_new_kernel

from scalai_nb.jupyter import kernels

SETTINGS = """
[DEFAULT]
lake = data/lake/lake

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


def written(path, kernel=None):
    "The notebook of numbers at `path`; Voila takes the kernel that it names, as JupyterLab does"
    spec = {"name": kernel, "display_name": kernel, "language": "python"}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None}
    nb = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": spec} if kernel else {},
        "cells": [{**cell, "source": NUMBERS}],
    }
    path.write_text(json.dumps(nb))
    return path.name


def in_a_notebook(script, *words):
    "What the notebook of numbers prints, executed by a script that writes SCRIPT.ipynb"
    command = [Path(sys.executable).parent / script, *words]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    outputs = json.loads(Path(f"{script}.ipynb").read_text())["cells"][-1]["outputs"]
    return "".join("".join(o["text"]) for o in outputs)


def on_pages(folder, names):
    "What Voila shows of notebooks in a folder"
    port = free_port()
    words = ["--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", "--Voila.config_file_paths="]
    voila = subprocess.Popen(
        [sys.executable, "-m", "voila", str(folder), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for name in names:
            page = asked(f"http://127.0.0.1:{port}/voila/render/{name}", voila)
            yield html.unescape(re.search(r"\[\d+\.\d{6}[^\]]*\][^<]*", page)[0])
    finally:
        voila.terminate()
        voila.wait(30)


def asked(address, server, seconds=90):
    "A page, once the server is there"
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            return urlopen(address, timeout=seconds).read().decode()
        except (ConnectionError, URLError) as e:
            said = e
        time.sleep(0.2)
    raise AssertionError(said)


@pytest.mark.slow
@pytest.mark.parametrize("all_pairs", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_one_notebook_gives_the_same_numbers_under_each_kernel(project, start, all_pairs):
    """By the kernel's own interface, by papermill, by `jupyter execute` and by Voila

    The two that start a process for each notebook do so under one kernel, in a campaign under all.
    """
    specs = KernelSpecManager().find_kernel_specs()
    names = sorted(k for k, place in specs.items() if Path(place).is_relative_to(project))
    assert names == ["scalai-laptop", "scalai-pair", "scalai-small"]
    plain, printed = written(project / "numbers.ipynb"), {}
    for name in names:
        printed[name, "kernel"] = start(name.removeprefix("scalai-"))(NUMBERS)
    for name in names if all_pairs else ["scalai-small"]:
        words = "-k", name, plain, "papermill.ipynb"
        printed[name, "papermill"] = in_a_notebook("papermill", *words)
    for name in names if all_pairs else ["scalai-pair"]:
        words = "--output=jupyter-execute", f"--kernel_name={name}", plain
        printed[name, "jupyter execute"] = in_a_notebook("jupyter-execute", *words)
    pages = project / "pages"
    pages.mkdir(exist_ok=True)
    named = [written(pages / f"{name}.ipynb", name) for name in names]
    for name, said in zip(names, on_pages(pages, named), strict=True):
        printed[name, "voila"] = said
    assert len(printed) == (12 if all_pairs else 8)
    assert len(set(printed.values())) == 1, printed
    assert printed["scalai-laptop", "kernel"].startswith("[")


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
    cell("import dask, dask.array as da, numpy as np, xarray as xr, time")
    cell("lazy = xr.Dataset({'price': ('row', da.ones(10**10, chunks=10**7))})")
    cell("def mine(x):\n    return [x.price.values for _ in range(1)]")
    for source in (
        "lazy.compute()",
        "v = (lazy.price * 2).load()",
        "mine(lazy)",
        "np.asarray(lazy.price)",
        "dask.compute([lazy.price.data])",
        "lazy.persist()",
        "list(map(mine, [lazy]))",
    ):
        said = cell(f"begun = time.time()\n{source}")
        assert cell.reply["ename"] == "TooLarge" and "Keep it lazy" in said, (source, said)
        assert "80.0 GB" in said
        assert float(cell("time.time() - begun")) < 5
    assert cell("float(lazy.price[:1000].mean().compute()), lazy.price[:3].values") == (
        "(1.0, array([1., 1., 1.]))"
    )


def test_on_a_cluster_what_would_not_fit_stays_there(start):
    cell = start("small")
    cell("from distributed import Client\nimport dask.array as da, numpy as np")
    said = cell("client = Client(n_workers=1, dashboard_address=None)\nkept = np.ones(10**8)")
    assert cell.ok, said
    cell(
        "x = da.ones(6 * 10**7, chunks=10**7).persist()\nlarge = client.submit(np.ones, 6 * 10**7)"
    )
    assert cell.ok
    assert "Keep it lazy" in cell("x.compute()") and cell.reply["ename"] == "TooLarge"
    assert "stays on the cluster" in cell("large.result()") and cell.reply["ename"] == "TooLarge"
    said = cell("float(x.sum().compute()), client.gather(client.submit(len, large))")
    assert said.startswith("(60000000.0, 60000000)")


def test_a_restarted_kernel_says_what_the_last_one_died_of(start):
    cell = start("small")

    def dies(source):
        "What the restarter's next kernel says above its first cell"
        cell.client.execute(source)
        while cell.manager.is_alive():
            time.sleep(0.1)
        cell.manager.restart_kernel(now=True)
        cell.client.wait_for_ready(timeout=60)
        return cell("1")

    said = dies("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert "while it ran 'import os, signal'" in said and "kill -9" in said and "1.5 GB" in said
    assert cell("2") == "2"
    said = dies("import ctypes\ndef solver(): ctypes.string_at(0)\nsolver()")
    assert "it crashed (Segmentation fault)" in said and "kill -9" not in said
    # asked to go, idle or busy: nothing to tell
    for source in ("3", "while True: pass"):
        cell.client.execute(source)
        time.sleep(1)
        cell.manager.restart_kernel()
        cell.client.wait_for_ready(timeout=60)
        assert cell("4") == "4", source


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
        much = "fs = client.map(slow, range(1000), pure=False)\nclient.gather(fs)"
        cell.client.execute(much, stop_on_error=False)  # else what follows at once may be aborted
        time.sleep(2)
        begun = time.monotonic()
        cell.manager.interrupt_kernel()
        told = cell.client.get_shell_msg(timeout=20)
        assert told["content"].get("ename") == "KeyboardInterrupt", told["content"]
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
