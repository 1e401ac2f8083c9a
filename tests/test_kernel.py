"""Kernels of environments at work: their limits, what they refuse, what they say, Ctrl-C"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

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
    printed = set()
    for name in ("laptop", "small", "pair"):
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

    cell("def slow(i):\n    time.sleep(0.5)\n    return i")
    cell("import os")
    ask = "sorted(client.run(os.getpid).values())"
    workers = cell(ask)
    cell.client.execute("fs = client.map(slow, range(1000))\nclient.gather(fs)")
    time.sleep(2)
    begun = time.monotonic()
    cell.manager.interrupt_kernel()
    reply = cell.client.get_shell_msg(timeout=20)["content"]
    assert reply["ename"] == "KeyboardInterrupt"
    assert time.monotonic() - begun < 2
    assert cell("del fs; client.submit(lambda: 7).result()").startswith("7")
    assert cell(ask) == workers
