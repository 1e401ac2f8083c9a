"""The page of any project: what it reads and says; it writes nothing, and asks nobody else"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import xarray as xr
from browser import CHROMIUM, faults, visiting
from conftest import tool
from dashboards import kernels, serving, wait_until
from toy import Project, notebook

from scalai_nb.data.lake.lake import Lake
from scalai_nb.describe.summary import summarize
from scalai_nb.environment import environment
from scalai_nb.errors import MissingExtra, ParameterError
from scalai_nb.jupyter import dash, voila
from scalai_nb.jupyter.page import histories, standing
from scalai_nb.jupyter.page.in_service import service_part
from scalai_nb.jupyter.pages.site_pages import PAGES
from scalai_nb.models.registry.registry import Registry
from scalai_nb.models.registry.verdict import Check, Verdict
from scalai_nb.monitoring.label_windows import QualityWatch
from scalai_nb.monitoring.watch import Watch
from scalai_nb.pipeline.run import EventLog
from scalai_nb.pipeline.showing.goal_lights import Light

PIPELINE = "orchard"


@pytest.fixture
def empty(tmp_path):
    "The environment of a project of settings alone"
    (tmp_path / "settings.ini").write_text("[laptop]\n")
    return environment("laptop", settings=tmp_path / "settings.ini")


def record(env, pipeline, number, status=None, metrics=None, **finished):
    "The record of a run of two steps whose second ends with `status`; None: its runner was killed"
    folder = Path(env.runs, f"{pipeline}-20261124-{number:06}")
    folder.mkdir(parents=True)
    log, t = EventLog(folder / "events.jsonl"), 1.7e9 + number
    steps = [{"name": n, "stem": s, "title": ""} for n, s in (("in", "01_in"), ("fit", "02_fit"))]
    started = {"reasons": [], "inputs": {}, "parameters": {}, "cells": [[3, "w = x['wind']"]]}
    about = {"pipeline": pipeline, "env": "laptop", "pid": 1, "about": {}, "steps": steps}
    log.append({"event": "run_started", "t": t, **about})
    for step in ("in", "fit"):
        log.append({"event": "step_started", "t": t + 1, "step": step, **started})
    log.append({"event": "cell", "t": t + 1, "step": "fit", "cell": 3, "status": "running"})
    done = {"status": "completed", "metrics": metrics or {}, "rows": 336776}
    log.append({"event": "step_finished", "t": t + 3, "step": "in", **done})
    if status:
        ended = {"status": status, **finished}
        log.append({"event": "step_finished", "t": t + 8, "step": "fit", **ended})
        log.append({"event": "run_finished", "t": t + 8, "status": status})
    log.close()
    return folder


def tree(folder):
    "Every file below `folder` with its size and time"
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in Path(folder).rglob("*")}


def judged(env, version, *checks):
    "The gate says something of a version; it is written into the history as the gate does"
    registry = Registry(env)
    v = registry.get("ripeness", version)
    gate = Verdict("ripeness", v.digest, None, 400, checks).to_dict()
    registry.judged("ripeness", version, "said", "you", evidence={"gate": gate})


# What it reads


def test_a_goal_is_the_contract_s_and_its_value_the_gate_s_then_a_run_s(orchard_env):
    page = dash.read(orchard_env)
    lights = {light.name: light for light in page.lights}
    assert list(lights) == ["roc_auc", "precision", "latency_ms", "rmse"]
    auc = lights["roc_auc"]
    assert (auc.goal, auc.why[:14], auc.value > 0.7) == (">= 0.7", "a ripe crate i", True)
    assert auc.where.startswith("ripeness version 1: on 400 rows")  # not the metric 0.5 of the run
    precision = lights["precision"]
    assert precision.value == 0.8 and precision.where.endswith("train")
    assert {name: light.status for name, light in lights.items()} == {
        "roc_auc": "partly met",  # of the three weeks one missed it
        "precision": "warning",  # the gate has not asked for it
        "latency_ms": "met",
        "rmse": "not measured",
    }
    assert auc.missed == ("<b>two</b>",)


def test_without_records_the_metrics_of_the_version_and_then_a_history_speak(orchard_env):
    shutil.rmtree(orchard_env.runs)
    (Path(orchard_env.models) / "ripeness/history.jsonl").unlink()
    lights = {light.name: light for light in dash.read(orchard_env).lights}
    assert (lights["precision"].value, lights["precision"].where) == (0.8, "ripeness 1")
    assert lights["precision"].status == "missed"  # nobody says that it does not decide
    light = histories.with_history(Light("roc_auc", ">= 0.7"), dash.read(orchard_env).histories)
    assert (light.value, light.where) == (0.8, "weeks: three")


def test_the_last_verdict_counts_and_a_refusal_is_red(orchard_env):
    judged(orchard_env, 1, Check("roc_auc", False, "on 9 rows", ">= 0.7", 0.4))
    page = dash.read(orchard_env)
    assert page.lights[0].status == "missed" and page.lights[0].where.endswith("on 9 rows")
    text = standing.model_part(page.env, page.models[0]).text
    assert "✘ refused" in text and "fails roc_auc" in text
    judged(orchard_env, 1, Check("roc_auc", False, "cannot be measured: one class"))
    light = dash.read(orchard_env).lights[0]
    assert light.value == 0.5 and light.where.startswith("run ")  # the metric of the run


def test_champion_challengers_and_the_gate(orchard_env):
    registry = Registry(orchard_env)
    registry.register(
        registry.load("ripeness"), "ripeness", {"precision": 0.95}, alias="challenger"
    )
    (model,) = dash.read(orchard_env).models
    assert (model.champion.version, [v.version for v in model.versions]) == (1, [2, 1])
    text = standing.model_part(orchard_env, model).text
    assert re.search(r"version 1, champion since (just now|\d+ min ago), by \w+\.", text)
    assert re.search(r"2 +challenger +just now +not judged +precision 0.95", text)
    assert "passes every check that decides" in text and "latency_ms" in text


def test_data_that_have_moved_on_are_told_and_compared_when_asked(orchard_env):
    page = dash.read(orchard_env)
    assert page.models[0].newer == []
    assert "newest data there are" in standing.model_part(page.env, page.models[0]).text
    heavier = xr.Dataset({"weight": ("row", np.full(400, 14.0)), "ripe": ("row", np.ones(400))})
    Lake(orchard_env.lake).write("crates", heavier)
    (model,) = dash.read(orchard_env).models
    (newer,) = model.newer
    assert "crates has a newer version" in standing.model_part(orchard_env, model).text
    assert re.search(
        r"weight +[\d.]+ +! has moved",
        standing.drift_part(orchard_env, model.champion, newer).text,
    )


def test_too_many_rows_to_wait_for_are_not_read(orchard_env, monkeypatch):
    monkeypatch.setattr(standing, "QUICK", 399)
    now = Lake(orchard_env.lake).version("crates")
    champion = Registry(orchard_env).champion("ripeness")
    told = standing.drift_part(orchard_env, champion, standing.Newer("crates", "x", now)).text
    assert "sn.drift(read('ripeness@1').summary, read('crates'))" in told


@pytest.mark.slow
def test_a_service_that_runs_is_linked_and_one_that_has_ended_is_not(orchard_env):
    from scalai_nb.serving.process.service import running

    with running("ripeness", orchard_env, workers=1) as service:
        (model,) = dash.read(orchard_env).models
        html = standing.model_part(orchard_env, model).html
        assert f'href="{service.url}/docs"' in html and f'href="{service.url}/metrics"' in html
    (model,) = dash.read(orchard_env).models
    assert "scalai serve ripeness" in standing.model_part(orchard_env, model).text


def test_datasets_say_which_step_of_which_run_wrote_them(orchard_env):
    page = dash.read(orchard_env)
    run = page.runs[0].id
    assert {(d.name, d.run, d.step) for d in page.datasets} == {
        ("crates", run, "01_pick"),
        ("weeks", run, "03_release"),
    }
    assert re.search(r"crates +400 \w{8} .* 01_pick", dash.datasets(page).text)


def test_a_history_of_versions_and_one_of_a_dataset(orchard_env):
    page = dash.read(orchard_env)
    assert [h.name for h in page.histories] == ["weeks"]  # one version is no history
    (weeks,) = page.histories
    assert weeks.lines["roc_auc"] == {"in service": [0.9, 0.6, 0.8], "anew": [0.9, 0.85, 0.8]}
    assert weeks.facts["three"] == {"crates sent": 50}
    registry = Registry(orchard_env)
    registry.register(registry.load("ripeness"), "ripeness", {"precision": 0.95})
    judged(orchard_env, 2, Check("roc_auc", True, "on 9 rows", ">= 0.7", 0.75))
    versions = dash.read(orchard_env).histories[1]
    assert [p.partition(",")[0] for p in versions.points] == ["version 1", "version 2"]
    assert versions.lines["precision"] == {"measured": [0.8, 0.95]}
    assert versions.lines["roc_auc"]["measured"][1] == 0.75  # the gate, before what was recorded


def test_a_model_that_is_watched_is_shown_in_service(orchard_env):
    assert dash.read(orchard_env).services == []
    lake, rng = Lake(orchard_env.lake), np.random.default_rng(0)
    day, day_long = np.datetime64("2026-03-01", "us"), np.timedelta64(1, "D")
    for i in range(6):
        weight = rng.normal(14.0 if i >= 4 else 7.0, 2, 300)
        ids = np.array([f"{i}-{n}" for n in range(300)], object)
        said = {"id": ids, "time": np.full(300, day + i * day_long), "weight": weight}
        said |= {"version": np.full(300, "1", object), "score": rng.random(300)}
        told = {"id": ids, "received": said["time"], "truth": rng.integers(0, 2, 300) * 1.0}
        attrs = {"name": "ripeness", "output": "probability", "threshold": 0.5}
        for name, rows in (("ripeness-predictions", said), ("ripeness-feedback", told)):
            ds = xr.Dataset({n: ("row", v) for n, v in rows.items()}, attrs=attrs)
            (lake.append if name in lake.names() else lake.write)(name, ds)
    normal = summarize(xr.Dataset({"weight": ("row", rng.normal(7, 2, 3_000))}))
    Watch(lake, "ripeness-predictions", normal, "time").look()
    QualityWatch(lake, "ripeness").look()
    page = dash.read(orchard_env)
    (service,) = page.services
    shown = service_part(service, page.lights, normal)
    assert "✘ an alarm since 2026-03-05 00:00" in shown.text
    assert re.search(r"weight +100.%.*mean 7.* → 14", shown.text)
    assert "ROC AUC in service" in shown.text and "by labels" in shown.html
    whole = [section.children[0].value for section in dash._service_section(page)]
    assert len(whole) == 1


def test_reading_writes_nothing(orchard_env):
    before = tree(orchard_env.root)
    page = dash.read(orchard_env)
    dash.header(page), dash.goals(page), dash.datasets(page), dash.steps(page.runs[0], page.env)
    standing.model_part(page.env, page.models[0])
    assert tree(orchard_env.root) == before


def test_a_thousand_runs_are_read_in_a_moment(orchard_env):
    folder = record(orchard_env, PIPELINE, 1, "completed")
    for n in range(2, 1002):
        shutil.copytree(folder, folder.with_name(f"{PIPELINE}-20261124-{n:06}"))
    begun = time.perf_counter()
    page = dash.read(orchard_env)
    assert time.perf_counter() - begun < 2 and len(page.runs) == 12


# What is not there, and what is broken


def test_an_empty_project_says_what_to_do_and_stays_empty(empty):
    page = dash.read(empty)
    assert (
        "No pipeline yet" in dash.header(page).text and "scalai run NAME" in dash.header(page).text
    )
    assert dash.goals(page).html == dash.datasets(page).html == dash.steps(None).html == ""
    assert list(tree(empty.root)) == [empty.root / "settings.ini"]


def test_a_pipeline_without_goals_and_models_is_shown(empty):
    notebook(Path(empty.pipelines, "plain/01_in.ipynb"), "n: int = 1", title="Read")
    page = dash.read(empty)
    assert (page.pipeline, page.lights, page.models) == ("plain", [], [])
    assert "scalai run plain" in dash.header(page).text and page.troubles == []
    record(empty, "plain", 1, "completed")
    page = dash.read(empty)
    assert len(page.runs) == 1 and "Nothing has run yet" not in dash.header(page).text


def test_of_several_pipelines_the_one_that_ran_last_is_shown_first(empty):
    for name in ("apples", "pears", "pears-late"):
        notebook(Path(empty.pipelines, f"{name}/01_in.ipynb"), "n: int = 1")
    assert dash.read(empty).pipeline == "apples"
    record(empty, "pears", 1, "completed")
    record(empty, "pears-late", 2, "completed")
    page = dash.read(empty)
    assert (page.pipeline, page.pipelines) == ("pears-late", ["apples", "pears", "pears-late"])
    assert [r.pipeline for r in dash.read(empty, "pears").runs] == ["pears"]
    with pytest.raises(ParameterError, match="Did you mean 'pears'?"):
        dash.read(empty, "paers")


def test_text_of_anybody_is_not_markup(orchard_env):
    page = dash.read(orchard_env)
    assert "&lt;i&gt;ranked&lt;/i&gt;" in dash.goals(page).html
    (weeks,) = page.histories
    html = histories.point(weeks, page.lights, "roc_auc", "<b>two</b>").html
    assert "&lt;b&gt;two&lt;/b&gt;" in html and "<b>" not in html
    evil = "<img src=x onerror=alert(1)>"
    named = dash.Page(page.env, datasets=[dash.Written(evil, None, evil, evil)], troubles=[evil])
    named = dash.Page(page.env, [evil], evil, evil, datasets=named.datasets, troubles=[evil])
    assert "<img" not in (dash.header(named) + dash.datasets(named)).html
    assert "<img" not in standing.model_part(page.env, standing.Standing(evil)).html


@pytest.mark.parametrize(
    "cut",
    [b'{"event":"run_star', b'{"event":"run_started"}\n', b"\xff\xfe\n", b"[]\n", b""],
    ids=["half a line", "half an event", "no text", "no event", "nothing"],
)
def test_a_half_written_record_of_a_run_hides_no_other(orchard_env, cut):
    folder = Path(orchard_env.runs, f"{PIPELINE}-20991124-000001")
    folder.mkdir()
    (folder / "events.jsonl").write_bytes(cut)
    page = dash.read(orchard_env)
    assert "completed" in {r.status for r in page.runs}
    if cut.endswith(b"\n"):
        assert any(folder.name in said for said in page.troubles)
        assert f"run {folder.name} cannot be read" in dash.header(page).text


def test_a_damaged_tracking_database_hides_models_only(orchard_env):
    file = Path(orchard_env.tracking.removeprefix("sqlite:///"))
    file.write_bytes(b"no database" * 999)
    page = dash.read(orchard_env)
    assert page.runs and page.datasets and page.lights[1].value == 0.8
    assert page.lights[0].where.startswith("ripeness version 1: on 400 rows")
    told = standing.model_part(page.env, page.models[0]).text
    assert "The gate has last judged version 1: it passes every check" in told
    assert "model ripeness cannot be read: file is not a database" in dash.header(page).text
    assert "scalai doctor" in dash.header(page).text


def test_a_damaged_history_and_a_broken_notebook_are_sentences(orchard_env):
    history = Path(orchard_env.models) / "ripeness/history.jsonl"
    history.write_bytes(history.read_bytes() + b"{")
    (Path(orchard_env.pipelines) / "orchard/01_pick.ipynb").write_text("{")
    page = dash.read(orchard_env)
    assert len(page.troubles) == 2 and len(page.lights) == 4
    assert page.models[0].champion.version == 1
    assert "01_pick.ipynb cannot be read" in page.troubles[0]
    assert "restore the file from a backup" in page.troubles[1]


def test_without_settings_the_command_says_so_in_one_line(tmp_path):
    project = Project(tmp_path)
    (tmp_path / "settings.ini").unlink()
    done = project.scalai("dash", "--no-open", "--port", "0")
    assert done.returncode == 2 and done.stderr.startswith("error: No settings.ini in")
    assert done.stderr.count("\n") == 1


# What it says


def test_a_chart_asks_nobody_and_can_be_read_aloud(orchard_env):
    page = dash.read(orchard_env)
    drawn = histories.chart(page.histories[0], page.lights[0], "three")
    assert not re.findall(r"(?:href|src)=\"(?!#)|url\((?!#)|@import", drawn.html)
    spoken = re.search(r'role="img" aria-label="([^"]*)"', drawn.html)[1]
    assert re.search(r"three +0.8 +0.8", spoken)


def test_points_without_a_value_are_gaps_in_the_line():
    lines = {"rmse": {"measured": [0.4, float("nan"), 0.6, 0.7]}}
    history = histories.History("x", ["a", "b", "c", "d"], lines)
    drawn = histories.chart(history, Light("rmse", "<= 0.5"), "a")
    assert drawn.text.splitlines()[2].split() == ["b", "–"]
    wide = drawn.html.partition('class="scalai-chart narrow"')[0]
    assert wide.count("<circle") == 3
    assert re.search(r'class="stroke" d="M[\d.]+ [\d.]+L[\d.]+ [\d.]+"', wide)  # of c to d alone


def test_runs_tell_completed_from_failed_from_lost(empty):
    notebook(Path(empty.pipelines, "plain/01_in.ipynb"), "n: int = 1")
    record(empty, "plain", 1)
    record(empty, "plain", 2, "failed", cause="cell_error", error="KeyError: 'wind'")
    record(empty, "plain", 3, "completed")
    page = dash.read(empty)
    assert [label.splitlines()[1].split(" · ")[0] for label in dash.run_options(page)] == [
        "✔ completed",
        "✘ failed",
        "? lost",
    ]
    good, failed, lost = (dash.steps(r).text for r in page.runs)
    assert "336,776" in good and "scalai run" not in good
    assert "fit failed KeyError: 'wind' Cell 4: w = x['wind']" in failed
    assert "fit lost The runner ended without a word" in lost
    assert "scalai run plain" in failed and "scalai run plain" in lost


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


def test_a_project_s_own_dashboard_takes_the_place_of_the_page(empty):
    built_in = voila.dashboards(empty)
    assert list(built_in) == list(PAGES) and built_in["models"].parts[-4] == "jupyter"
    own = notebook(Path(empty.dashboards, "index.ipynb"), None, "1")
    notebook(Path(empty.dashboards, "sales.ipynb"), None, "2")
    assert voila.dashboards(empty) == built_in | {
        "index": own,
        "sales": own.with_name("sales.ipynb"),
    }


def test_the_kernels_of_a_dashboard_get_exactly_its_environment(empty, monkeypatch):
    settings = {"lake": "elsewhere", "jobs": 7}
    env = environment("laptop", settings=empty.root / "settings.ini", **settings)
    for key, value in env.variables.items():
        monkeypatch.setenv(key, value)
    assert environment() == env


def test_the_served_process_forgets_its_variables(monkeypatch):
    monkeypatch.setenv("SCALAI_ENV", "ci")
    monkeypatch.delenv("SCALAI_LAKE", raising=False)
    with voila._variables_set({"SCALAI_ENV": "laptop", "SCALAI_LAKE": "x"}):
        assert os.environ["SCALAI_LAKE"] == "x"
    assert os.environ["SCALAI_ENV"] == "ci" and "SCALAI_LAKE" not in os.environ


def test_a_kernel_nobody_looks_at_is_ended(empty):
    with serving(empty, idle=2) as (address, server), urlopen(address, timeout=60):
        assert wait_until(lambda: kernels(server))
        assert wait_until(lambda: not kernels(server), 60)


def test_ctrl_c_ends_the_kernel_of_a_page_that_is_open(empty):
    with serving(empty) as (address, server):
        page = urlopen(address, timeout=60).read().decode()
        assert "application/vnd.voila.cell-output+json" in page and not re.findall(
            r'(?:href|src)="(?:https?:)?//', page
        )
        assert len(kernels(server)) == 1


def test_each_visit_is_a_process_of_its_own_that_has_imported_what_pages_need(empty):
    def visit(address):
        return re.search(r"of \w+ [\d.]+", urlopen(address, timeout=60).read().decode())[0]

    said = (
        "import sys, numpy; print('of', 'matplotlib.figure' in sys.modules, numpy.random.random())"
    )
    notebook(Path(empty.dashboards, "own.ipynb"), None, said)
    with serving(empty, "own") as (address, server):
        first, second = visit(address), visit(address)
        assert first.startswith("of True") and first != second and len(kernels(server)) == 2
    with serving(empty, "own") as (address, server):
        (forks,) = server.children()
        forks.kill()
        forks.wait()
        assert visit(address).startswith("of False")  # slower, and it is there


def test_why_a_cell_of_a_page_has_failed_is_said_in_the_terminal_without_a_password(empty):
    fails = "raise KeyError('postgresql://reader:tulip@localhost/shop')"
    notebook(Path(empty.dashboards, "own.ipynb"), None, fails)
    words = [sys.executable, "-m", "scalai_nb", "dash", "own", "--no-open", "--port", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, cwd=empty.root, stdout=pipe, stderr=pipe, text=True)
    address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
    page = urlopen(address, timeout=60).read().decode()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "The terminal that serves this page says why" in page and "KeyError" in said
    assert "localhost/shop" in said and "tulip" not in page + said


def test_the_report_of_a_run_is_served_in_a_sandbox_and_nothing_else_is(orchard_env):
    (run,) = Path(orchard_env.runs).glob("orchard-*")
    (run / "secret.html").write_text("secret")
    under_way = record(orchard_env, PIPELINE, 5)

    def status(address, **headers):
        try:
            return urlopen(Request(address, headers=headers), timeout=30).status
        except HTTPError as e:
            return e.code

    with serving(orchard_env) as (address, _):
        with urlopen(f"{address}runs/{run.name}/report.html", timeout=30) as answer:
            assert b"Ripe crates" in answer.read()
            policy = answer.headers["Content-Security-Policy"]
        assert "sandbox" in policy and "default-src 'none'" in policy
        with urlopen(f"{address}runs/{under_way.name}/report.html", timeout=30) as answer:
            assert b"lost" in answer.read()
        assert not (under_way / "report.html").exists()
        assert status(f"{address}runs/orchard-1/report.html") == 404
        assert status(f"{address}runs/..%2f..%2fsettings.ini/report.html") != 200
        assert status(f"{address}runs/{run.name}/secret.html") == 403
        here = f"{address}runs/{run.name}/report.html"
        assert status(here, Host="rebound.example") == 403


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_of_a_stranger_s_project_in_a_browser(orchard_env):
    if not CHROMIUM:
        pytest.skip("no Chromium; run make test-services")
    axe = tool("axe")
    from playwright.sync_api import expect

    heavier = xr.Dataset({"weight": ("row", np.full(400, 14.0)), "ripe": ("row", np.ones(400))})
    Lake(orchard_env.lake).write("crates", heavier)
    record(orchard_env, PIPELINE, 1, "failed", error="KeyError: 'wind'")
    notebook(Path(orchard_env.pipelines, "pears/01_in.ipynb"), "n: int = 1", title="Pears come")
    expect.set_options(timeout=20_000)
    with serving(orchard_env) as (address, server), visiting("http://127.0.0.1:") as visit:
        page = visit.page
        page.goto(address)
        title = page.get_by_role("heading", name="Orchard", exact=True)
        expect(title).to_be_visible(timeout=60_000)
        expect(page.locator(".scalai-grid article")).to_have_count(4)
        expect(page.locator(".scalai-grid .warn", has_text="ROC AUC")).to_contain_text("partly met")
        assert faults(page, axe) == []
        page.emulate_media(color_scheme="dark")
        assert faults(page, axe) == []
        page.emulate_media(color_scheme="light")

        expect(page.locator(".scalai-chart:visible")).to_contain_text("goal ≥ 0.7")
        page.get_by_role("radio", name="<b>two</b>").focus()
        page.keyboard.press("Space")
        expect(page.locator(".scalai-split article").nth(1)).to_contain_text("misses ROC AUC")

        button = page.get_by_role("button", name="How far has crates moved?")
        button.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_text("has moved", exact=False).last).to_be_visible(timeout=60_000)

        runs = page.locator(".scalai-beside")
        page.get_by_role("radio", name="failed").check()
        expect(runs).to_contain_text("KeyError: 'wind'")
        page.get_by_role("radio", name="completed").check()
        with page.expect_popup() as popup:
            runs.get_by_role("link", name="its report").click()
        expect(popup.value.get_by_role("heading", name="Step by step")).to_be_visible()
        popup.value.close()

        page.set_viewport_size({"width": 390, "height": 800})
        expect(page.locator(".scalai-chart.narrow svg").last).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert faults(page, axe) == []

        page.get_by_role("radio", name="pears").check()
        expect(page.get_by_role("heading", name="Pears", exact=True)).to_be_visible()
        assert len(kernels(server)) == 1
        page.unroute_all()  # what a page sends when it is closed cannot be routed any more
        page.close(run_before_unload=True)
        assert wait_until(lambda: not kernels(server))
    assert (visit.errors, visit.outside) == ([], [])


def test_the_page_is_in_the_wheel():
    "What setuptools takes along"
    import tomllib

    root = Path(__file__).parents[1]
    told = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = told["tool"]["setuptools"]["package-data"]["*"]
    room = root / "scalai_nb/jupyter"
    taken = {p for pattern in patterns for p in room.glob(pattern)}
    assert {room / "lab/dashboards/index.ipynb", room / "lab/report.css"} <= taken
    cells = json.loads((room / "lab/dashboards/index.ipynb").read_text())["cells"]
    assert [c["cell_type"] for c in cells] == ["code", "code"]
