"""The dashboard: what it reads and says; it writes nothing, and asks nobody else from a browser"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pandas as pd
import psutil
import pytest
from browser import CHROMIUM, visiting

from scalai_nb.data.lake import Lake
from scalai_nb.data.sources import from_frame
from scalai_nb.environment import environment
from scalai_nb.errors import MissingExtra, ParameterError
from scalai_nb.jupyter import dash, voila
from scalai_nb.pipeline.run import EventLog

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "[DEFAULT]\n"
    f"dashboards = {ROOT / 'dashboards'}\n"
    "\n"
    "[laptop]\n"
    "\n"
    "[ci]\n"
    "workers = 2\n"
    "memory = 4GB\n"
)

GOALS = pd.DataFrame(
    [
        ("auc", ">=", 0.68, "probability", "flights are in a useful order"),
        ("recall", ">=", 0.6, "share of late flights", "a missed flight is <expensive>"),
        ("latency_ms", "<=", 20.0, "ms", "a screen that waits is not used"),
        ("drift", "<=", 0.2, "PSI", "a hint that the world has moved"),
    ],
    columns=["goal", "comparison", "threshold", "unit", "why"],
)
EVALUATION = pd.DataFrame(
    {
        "month": [0, 4, 5, 6, 4],
        "period": ["held-out", "April", "May", "June", "April"],
        "slice_by": ["all"] * 4 + ["origin"],
        "slice": ["all"] * 4 + ["EWR"],
        "count": [26000, 27004, 27894, 27075, 9000],
        "late": [0.15, 0.16, 0.14, 0.22, 0.2],
        "auc": [0.72, 0.73, 0.71, 0.70, 0.5],
        "recall": [0.65, 0.63, 0.54, 0.70, 0.1],
        "missed": ["", "", "recall", "", "auc, recall"],
    }
)
RELEASE = pd.DataFrame(
    [
        (
            "release",
            "",
            np.nan,
            True,
            True,
            "promoted: version 1 meets every goal that decides; watch recall in later months",
        ),
        ("auc", ">= 0.68", 0.72, True, True, "held-out days: 0.720"),
        ("recall", ">= 0.6", 0.65, True, True, "held-out days: 0.650"),
        ("recall later", ">= 0.6", 0.54, False, False, "missed in May"),
        ("latency_ms", "<= 20", 1.31, True, True, "95 % within 1.31 ms"),
    ],
    columns=["check", "goal", "value", "met", "decides", "reason"],
)
REPLAY = pd.DataFrame(
    {
        "month": [4, 5, 6],
        "drift_max": [0.4, 1.3, 3.1],
        "drifted": ["temp", "temp, dewp", "temp, dewp"],
        "auc": [0.73, 0.71, 0.70],
        "recall": [0.63, 0.54, 0.70],
        "missed": ["", "recall", ""],
        "retrain": [False, True, False],
        "recall_retrained": [0.63, 0.62, 0.71],
        "recall_rule": [0.63, 0.54, 0.71],
    }
)
TABLES = {"goals": GOALS, "evaluation": EVALUATION, "release": RELEASE, "replay": REPLAY}


def write(env, **tables):
    "Write DataFrames to the lake of `env`"
    for name, table in tables.items():
        Lake(env.lake).write(name, from_frame(table), message=name)


def record(env, id, status=None, ago=600, **finished):
    "The record of a run of two steps whose second ends with `status`; None: its runner was killed"
    folder = Path(env.runs, id)
    folder.mkdir(parents=True)
    log, t = EventLog(folder / "events.jsonl"), time.time() - ago
    log.append(
        {
            "event": "run_started",
            "t": t,
            "pipeline": "flights",
            "env": env.name,
            "pid": 1,
            "about": {},
            "steps": [
                {"name": "ingest", "stem": "01_ingest", "title": "Ingest"},
                {"name": "train", "stem": "04_train", "title": "Train"},
            ],
        }
    )
    for step in ("ingest", "train"):
        log.append(
            {
                "event": "step_started",
                "t": t + 1,
                "step": step,
                "cells": [[3, "w = weather['wind_gust']"]],
                "reasons": [],
                "inputs": {},
                "parameters": {},
            }
        )
        log.append({"event": "cell", "t": t + 1, "step": step, "cell": 3, "status": "running"})
        if step == "ingest":
            log.append(
                {
                    "event": "step_finished",
                    "t": t + 3,
                    "step": step,
                    "status": "completed",
                    "rows": 336776,
                    "written": [["flights", "0J5FZ1X2Y3"]],
                }
            )
    if status:
        log.append(
            {"event": "step_finished", "t": t + 8, "step": "train", "status": status, **finished}
        )
        log.append({"event": "run_finished", "t": t + 8, "status": status})
    log.close()


@pytest.fixture
def empty(tmp_path):
    "The environment of a project without data"
    (tmp_path / "settings.ini").write_text(SETTINGS)
    return environment("laptop", settings=tmp_path / "settings.ini")


@pytest.fixture
def filled(empty):
    "The environment of a project with the pipeline's datasets and three runs"
    write(empty, **TABLES)
    record(empty, "flights-20261124-100000-lost", ago=7200)
    record(
        empty,
        "flights-20261124-110000-fail",
        "failed",
        ago=3600,
        cause="cell_error",
        error="KeyError: 'wind_gust'",
    )
    record(empty, "flights-20261124-120000-good", "completed")
    return empty


def tree(folder):
    "Every file below `folder` with its size and time"
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in Path(folder).rglob("*")}


# What it reads


def test_each_light_says_how_its_goal_stands(filled):
    lights = {light.name: light for light in dash.read(filled).lights}
    assert {name: light.status for name, light in lights.items()} == {
        "auc": "met",
        "recall": "partly met",
        "latency_ms": "met",
        "drift": "warning",
    }
    assert (lights["recall"].value, lights["recall"].where, lights["recall"].missed) == (
        0.65,
        "held-out days: 0.650",
        ("May",),
    )
    assert (lights["drift"].value, lights["drift"].where, len(lights["drift"].missed)) == (
        3.1,
        "June",
        3,
    )


def test_a_refused_release_is_red(empty):
    refused = RELEASE.assign(
        met=RELEASE.check.isin(["auc", "latency_ms"]),
        value=RELEASE.value.where(RELEASE.check != "recall", 0.5),
    )
    write(
        empty,
        **{
            **TABLES,
            "release": refused.assign(
                reason=["refused: version 2 misses recall", *refused.reason[1:]]
            ),
        },
    )
    page = dash.read(empty)
    assert page.verdict[0] == "refused"
    assert {light.name: light.status for light in page.lights}["recall"] == "missed"
    assert "✘ refused version 2 misses recall" in dash.goals(page).text


def test_a_pipeline_that_has_not_come_far_says_less(empty):
    write(empty, goals=GOALS)
    page = dash.read(empty)
    assert {light.status for light in page.lights} == {"not measured"}
    assert (
        not page.months
        and "no release yet" in dash.goals(page).text
        and "No data yet" not in dash.header(page).text
    )
    write(empty, evaluation=EVALUATION)
    page = dash.read(empty)
    assert page.months == ["April", "May", "June"]
    assert {light.name: light.status for light in page.lights} == {
        "auc": "met",
        "recall": "partly met",
        "latency_ms": "not measured",
        "drift": "not measured",
    }
    assert set(page.measures) == {"auc", "recall"}


def test_months_are_of_all_flights_and_beside_them_what_retraining_brings(filled):
    page = dash.read(filled)
    assert page.measures["auc"].lines == {"model in service": [0.73, 0.71, 0.70]}
    assert page.measures["recall"].lines["retrained every month"] == [0.63, 0.62, 0.71]
    assert page.measures["drift"].lines == {"model in service": [0.4, 1.3, 3.1]}


def test_reading_writes_nothing(filled):
    before = tree(filled.root)
    page = dash.read(filled)
    dash.header(page), dash.goals(page), dash.month(page, "auc", "May"), dash.steps(page.runs[0])
    assert tree(filled.root) == before


def test_an_empty_project_says_what_to_do_and_stays_empty(empty):
    page = dash.read(empty)
    assert (
        "No data yet" in dash.header(page).text and "scalai run flights" in dash.header(page).text
    )
    assert dash.goals(page).html == dash.month(page, None, None).html == dash.steps(None).html == ""
    assert list(tree(empty.root)) == [empty.root / "settings.ini"]


# What it says


def test_text_from_data_is_not_markup(filled):
    html = dash.goals(dash.read(filled)).html
    assert "&lt;expensive&gt;" in html and "<expensive>" not in html


def test_a_month_says_which_goals_it_misses(filled):
    text = dash.month(dash.read(filled), "recall", "May").text
    assert (
        "misses Recall" in text
        and re.search(r"Recall +54 % +✘ ≥ 60 %", text)
        and re.search(r"Drift +1.3 +! ≤ 0.2", text)
    )
    assert "27,894" in text and "temp, dewp" in text and "train again: yes" in text
    assert "meets every goal" in dash.month(dash.read(filled), "recall", "June").text


def test_a_chart_asks_nobody_and_can_be_read_aloud(filled):
    page = dash.read(filled)
    drawn = dash.chart(page.months, page.measures["recall"], "May")
    assert not re.findall(r"(?:href|src)=\"(?!#)|url\((?!#)|@import", drawn.html)
    spoken = re.search(r'role="img" aria-label="([^"]*)"', drawn.html)[1]
    assert re.search(r"May +54 % +54 % +62 %", spoken)


def test_months_without_a_value_are_gaps(filled):
    measure = dash.Measure("x", "share", ">= 0.5", {"a": [0.4, float("nan"), 0.6]})
    assert dash.chart(["April", "May", "June"], measure).text.splitlines()[2].split() == [
        "May",
        "–",
    ]


def test_runs_tell_completed_from_failed_from_lost(filled):
    page = dash.read(filled)
    assert [label.splitlines()[1].split(" · ")[0] for label in dash.run_options(page)] == [
        "✔ completed",
        "✘ failed",
        "? lost",
    ]
    good, failed, lost = (dash.steps(r).text for r in page.runs)
    assert "336,776" in good and "flights" in good and "scalai run" not in good
    assert (
        "train failed KeyError: 'wind_gust' Cell 4: w = weather['wind_gust']" in failed
        and "scalai run flights" in failed
    )
    assert "train lost The runner ended without a word" in lost and "scalai run flights" in lost


# Serving


def test_what_cannot_be_served_is_one_sentence(empty, monkeypatch):
    with pytest.raises(ParameterError, match="Did you mean 'index'?"):
        voila.serve("idnex", empty)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ParameterError, match="pass another, or 0 for any that is free"):
            voila.serve("index", empty, port=taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "voila.app", None)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'scalai-nb[lab]'")):
        voila.serve("index", empty)


def test_the_kernels_of_a_dashboard_get_exactly_its_environment(empty, monkeypatch):
    env = environment("ci", settings=empty.root / "settings.ini", lake="elsewhere", jobs=7)
    for key, value in env.variables.items():
        monkeypatch.setenv(key, value)
    assert environment() == env


def test_the_served_process_forgets_its_variables(monkeypatch):
    monkeypatch.setenv("SCALAI_ENV", "ci")
    monkeypatch.delenv("SCALAI_LAKE", raising=False)
    with voila._variables_set({"SCALAI_ENV": "laptop", "SCALAI_LAKE": "x"}):
        assert os.environ["SCALAI_LAKE"] == "x"
    assert os.environ["SCALAI_ENV"] == "ci" and "SCALAI_LAKE" not in os.environ


@contextmanager
def serving(env, idle):
    "Serve the dashboard in a process of its own: (address, process); its kernels end with it"
    code = f"from scalai_nb.jupyter.voila import serve; serve('index', 'laptop', idle={idle})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=env.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = psutil.Process(process.pid)
    try:
        yield re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0], server
    finally:
        kernels = server.children(recursive=True)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "Traceback" not in said, said
    assert not [k for k in kernels if k.is_running() and k.status() != psutil.STATUS_ZOMBIE]


def wait_until(true, seconds=30):
    "Whether `true()` comes true"
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def test_a_kernel_nobody_looks_at_is_ended(filled):
    with serving(filled, idle=2) as (address, server), urlopen(address, timeout=60):
        assert wait_until(server.children)
        assert wait_until(lambda: not server.children(), 60)


def test_ctrl_c_ends_the_kernel_of_a_page_that_is_open(filled):
    with serving(filled, idle=300) as (address, server):
        page = urlopen(address, timeout=60).read().decode()
        assert "application/vnd.voila.cell-output+json" in page and not re.findall(
            r'(?:href|src)="(?:https?:)?//', page
        )
        assert len(server.children()) == 1


@pytest.mark.browser
def test_the_dashboard_in_a_browser(filled):
    if not CHROMIUM:
        pytest.skip("no Chromium; run make test-services")
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)
    with (
        serving(filled, idle=300) as (address, server),
        visiting("http://127.0.0.1:") as visit,
    ):
        page = visit.page
        page.goto(address)
        expect(page.get_by_role("heading", name="Flights", exact=True)).to_be_visible(
            timeout=60_000
        )
        expect(page.locator(".scalai-grid article")).to_have_count(4)
        expect(page.locator(".scalai-grid .warn", has_text="Recall")).to_contain_text("partly met")

        chart = page.locator(".scalai-chart:visible")
        expect(chart).to_contain_text("goal ≥ 0.68")
        page.get_by_role("radio", name="Recall").check()
        expect(chart).to_contain_text("goal ≥ 60 %")
        page.get_by_role("radio", name="May").focus()
        page.keyboard.press("Space")
        expect(page.locator(".scalai-split article").nth(1)).to_contain_text("misses Recall")

        steps = page.locator(".scalai-beside")
        expect(steps).to_contain_text("336,776")
        page.get_by_role("radio", name="failed").check()
        expect(steps).to_contain_text("KeyError: 'wind_gust'")

        page.set_viewport_size({"width": 390, "height": 800})
        expect(page.locator(".scalai-chart.narrow svg")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert len(server.children()) == 1
        page.unroute_all()  # what a page sends when it is closed cannot be routed any more
        page.close(run_before_unload=True)
        assert wait_until(lambda: not server.children())
    assert (visit.errors, visit.outside) == ([], [])
