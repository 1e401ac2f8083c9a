"""The magics: cheap to load, one sentence for a wrong word; they show, and write nothing"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr
from IPython.core.error import UsageError
from jupyter_client.manager import start_new_kernel

from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.jupyter import magics
from scalai_nb.pipeline.run import EventLog


class Shell(dict):
    "As much of IPython as an extension sees"

    def register_magic_function(self, function, kind, name):
        self[name] = function

    def set_hook(self, name, function, re_key):
        self[re_key] = function


@pytest.fixture
def shell(tmp_path, monkeypatch):
    "The magics as IPython calls them, in a project of its own"
    (tmp_path / "settings.ini").write_text("[laptop]\n\n[ci]\nworkers = 2\n")
    monkeypatch.setenv("SCALAI_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("SCALAI_ENV", "ci")
    shell = Shell()
    magics.load_ipython_extension(shell)
    return shell


@pytest.fixture
def filled(shell):
    "The same with a dataset of two versions and a failed run"
    env = environment()
    trips = xr.Dataset(
        {
            "distance": ("row", [1400, 1416], {"units": "mile"}),
            "carrier": ("row", [0, -1], {"categories": ["<UA>"]}),
        }
    )
    Lake(env.lake).write("trips", trips, message="<first>")
    Lake(env.lake).tag("trips", "start")
    Lake(env.lake).append("trips", trips, message="second")
    folder = Path(env.runs, "flights-20260102-030405-0a0a")
    folder.mkdir(parents=True)
    log = EventLog(folder / "events.jsonl")
    for event in (
        {
            "event": "run_started",
            "t": time.time() - 7300,
            "pipeline": "flights",
            "env": "ci",
            "pid": 1,
            "about": {},
            "steps": [{"name": "train", "stem": "04_train"}],
        },
        {
            "event": "step_finished",
            "t": time.time(),
            "step": "train",
            "status": "failed",
            "cause": "kernel_oom",
            "error": "The limit of 4 GB was reached.",
        },
        {"event": "run_finished", "t": time.time(), "status": "failed"},
    ):
        log.append(event)
    log.close()
    return shell


def test_loading_is_cheap():
    code = """if True:
        import IPython, sys, time
        before, start = set(sys.modules), time.process_time()
        from scalai_nb.jupyter import magics
        class Shell: register_magic_function = set_hook = lambda *args, **kw: None
        magics.load_ipython_extension(Shell())
        print(time.process_time() - start, \
*{m.partition('.')[0] for m in set(sys.modules) - before})"""
    seconds, *modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 0.1
    assert not {
        "numpy",
        "pandas",
        "xarray",
        "dask",
        "icechunk",
        "matplotlib",
        "rich",
        "mlflow",
    } & set(modules)


def test_scalai_says_where_one_is(filled):
    text = filled["scalai"]().text
    assert (
        "environment ci" in text
        and environment().lake in text
        and "trips" in text
        and "✘ failed" in text
    )


def test_lake_lists_the_newest_versions(filled):
    name, version, rows, *_, message = filled["lake"]().text.splitlines()[1].split()
    assert (
        (name, rows, message) == ("trips", "4", "second")
        and environment().lake
        and len(version) == 8
    )


def test_lake_shows_columns_and_versions_of_one_dataset(filled):
    shown = filled["lake"]("trips")
    assert "distance int64    mile" in shown.text and "carrier  category" in shown.text
    first = shown.text.splitlines()[-1]
    assert "<first>" in first and first.endswith("start")
    assert "&lt;first&gt;" in shown.html and "<first>" not in shown.html
    assert "trips@start" in filled["lake"]("trips@start").text


def test_runs_lists_runs_and_shows_one(filled):
    assert "✘ failed 2 h ago 2 h 01 min" in " ".join(filled["runs"]().text.split())
    assert "The limit of 4 GB was reached." in filled["runs"]("latest").text


def test_plan_says_what_is_stale_and_why(shell):
    folder = Path(environment().pipelines, "tiny")
    folder.mkdir(parents=True)
    (
        folder / "01_ingest.ipynb"
    ).write_text("""{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, \
"cells": [{"id": "a", "cell_type": "code", "metadata":
        {"tags": ["parameters"]}, "outputs": [], "execution_count": null, \
"source": "from scalai_nb.pipeline import Out\\ntrips: Out = 'trips'"}]}""")
    line = shell["plan"]("tiny").text.splitlines()[1]
    assert "ingest" in line and "stale" in line and "never run" in line and line.endswith("trips")


def test_an_empty_project_names_the_command_and_stays_empty(shell, tmp_path):
    for name in ("scalai", "lake", "runs"):
        assert "scalai run PIPELINE" in shell[name]().text
    assert [p.name for p in tmp_path.iterdir()] == ["settings.ini"]


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("lake", "tripz", "Did you mean 'trips'?"),
        ("lake", "trips@nosuch", "'nosuch'"),
        ("runs", "zzz", "'zzz' is not a run"),
        ("lake", "trips more", "write %lake [NAME]"),
        ("scalai", "what", "write %scalai"),
        ("plan", "nosuch", "'nosuch'"),
    ],
)
def test_a_wrong_word_is_one_sentence(filled, name, line, words):
    with pytest.raises(UsageError) as e:
        filled[name](line)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_in_a_kernel_a_magic_is_a_value_with_html_and_an_error_stops(filled):
    manager, client = start_new_kernel()
    said = []
    try:

        def run(source):
            return client.execute_interactive(
                source, timeout=60, output_hook=lambda m: said.append(m["content"])
            )["content"]

        assert run("%load_ext scalai_nb.jupyter.magics\nx = %lake\nx")["status"] == "ok"
        assert "<table>" in next(c["data"] for c in said if "data" in c)["text/html"]
        failed = run("%lake tripz")
        assert (failed["status"], failed["ename"]) == ("error", "UsageError")
        assert "Traceback" not in "".join(c.get("text", "") for c in said)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
