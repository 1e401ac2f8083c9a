"""A real Prometheus scrapes what runs; an alert reaches a webhook through a real Alertmanager"""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
import typer
import xarray as xr
import yaml
from conftest import ROOT
from databases import free_port
from sklearn.linear_model import LogisticRegression
from toy import Project
from typer.testing import CliRunner

from scalai_nb.commands.export import export as command
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.streams.embedded import Log
from scalai_nb.environment import environment
from scalai_nb.errors import Conflict, MissingExtra, ParameterError
from scalai_nb.export.alert_rules import Pace, alerting_rules, recording_rules, rule_tests
from scalai_nb.export.promises import Promised, goal_alerts
from scalai_nb.export.service_alerts import ALERTS
from scalai_nb.export.targets import export
from scalai_nb.goals import Goal
from scalai_nb.learn.features.transform import Transform
from scalai_nb.metrics import METRICS, RUN, STREAM, WATCH
from scalai_nb.models.package.package import package
from scalai_nb.models.registry.registry import Registry

GOALS = """from scalai_nb.pipeline import Goal, Model, Out
late: Out[Model] = "late"
recall: Goal = ">= 0.60"  # share that is found
latency_ms: Goal = "<= 50"  # milliseconds
auc: Goal = ">= 0.7"  # nothing in service measures it"""
RUN_GOALS = 'from scalai_nb.pipeline import Goal\nn: int = 1\nfreshness_days: Goal = "<= 7"'


def tool(*names: str) -> str:
    "Where a program is; without it the test is skipped"
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip(f"no {names[0]}; make test-services installs it")
    return found


def checked(*words: object, fails: bool = False) -> str:
    "What a checker says, which is content or, where it must be, not"
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def until(true, seconds: float = 120):
    "What it returns when that is true"
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory, database) -> Project:
    "One with goals, a model, a dataset that is watched, and a stream"
    root = tmp_path_factory.mktemp("watched")
    settings = "cluster = none\ntrackers = none\nlake = lake\nruns = runs\n"
    project = Project(root, settings, database)
    project.step("01_promise", GOALS, pipeline="sales")
    project.step("01_count", RUN_GOALS, "n + 1", pipeline="counting")
    hours = xr.Dataset({"hour": ("row", np.arange(24.0))})
    transform = Transform(["hour"]).fit(hours)
    model = LogisticRegression().fit(transform.transform(hours), hours.hour.values > 12)
    registry = Registry(environment("laptop", settings=root / "settings.ini"))
    registry.register(package(transform, model, name="late"), "late", alias="champion")
    return project


@pytest.fixture
def env(project):
    return environment("laptop", settings=project.root / "settings.ini")


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"interval": "1s", "hold": "0s", "file_sd": True}])
def test_promtool_takes_what_is_written_and_proves_each_alert(env, tmp_path, options):
    promtool = tool("promtool")
    for secret in ("ca.crt", "token"):
        (tmp_path / secret).write_text("x")
    told = {"stream": "127.0.0.1:9313, 127.0.0.1:9314", "ca": "ca.crt", "token": "token"}
    export("prometheus", env, tmp_path, **told, **options)
    checked(promtool, "check", "config", tmp_path / "prometheus.yml")
    checked(promtool, "test", "rules", tmp_path / "tests/alerts.yml")
    rules = yaml.safe_load((tmp_path / "rules/alerts.yml").read_bytes())
    goals = [
        r for group in rules["groups"] if group["name"] == "scalai-goals" for r in group["rules"]
    ]
    assert [r["alert"] for r in goals] == [
        "ScalaiGoalCountingFreshnessDays",
        "ScalaiGoalSalesRecall",
        "ScalaiGoalSalesLatencyMs",
    ]
    assert "measures these goals: auc of sales" in (tmp_path / "rules/alerts.yml").read_text()
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["for"] and rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"]["summary"] and rule["annotations"]["runbook"]


def test_the_tests_of_the_rules_see_a_rule_that_was_spoilt(env, tmp_path):
    "Each alert, with its comparison turned round, fails its own tests"
    promtool = tool("promtool")
    export("prometheus", env, tmp_path, interval="1s", hold="0s")
    path, turned = tmp_path / "rules/alerts.yml", {">": "<", "<": ">", "==": "!="}
    rules = yaml.safe_load(path.read_bytes())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(
                " (>|<|==) ", lambda m: f" {turned[m[1]]} ", rule["expr"], count=1
            )
    path.write_text(yaml.safe_dump(rules))
    said = checked(promtool, "test", "rules", tmp_path / "tests/alerts.yml", fails=True)
    named = set(re.findall(r"alertname: (\w+)", said))
    assert named == {r["alert"] for g in rules["groups"] for r in g["rules"]}


def test_goals_of_any_comparison_are_proved(tmp_path):
    promtool, models = tool("promtool"), ("a.b-c", "late")
    why, pipeline = 'said "so"', "day-by-day"
    values = {"ece": 1e-7, "cost": 3, "freshness_hours": 1.5, "latency_s": 0.2}
    told = [Promised(name, Goal(f"<= {x}"), why, pipeline, models) for name, x in values.items()]
    ops = ">=", "<=", ">", "<", "=="
    told += [Promised("mae", Goal(f"{op} -0.25"), why, pipeline, models) for op in ops]
    told.append(Promised("freshness_days", Goal(">= 2"), why, pipeline))  # grows: never missed
    told.append(Promised("recall", Goal(">= 0.6"), models=("late",)))
    alerts = goal_alerts(told)
    assert len({a.name for a in alerts}) == len(alerts) == len(told) - 1
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recording_rules(Pace())))
    (tmp_path / "a.yml").write_text(yaml.safe_dump(alerting_rules({"goals": alerts}, Pace())))
    proof = rule_tests(alerts, Pace(), ["r.yml", "a.yml"], ["scalai-recorded", "goals"])
    (tmp_path / "t.yml").write_text(yaml.safe_dump(proof))
    checked(promtool, "test", "rules", tmp_path / "t.yml")


def test_amtool_takes_what_is_written_and_no_secret_is_in_it(env, tmp_path):
    amtool = tool("amtool")
    mail = {"email": "ops@example.org", "smtp": "localhost:25", "sender": "scalai@example.org"}
    for options in ({}, {"webhook_file": "hook"}, {"slack_file": "slack", "user": "me", **mail}):
        (path,) = export("alertmanager", env, tmp_path, **options)
        checked(amtool, "check-config", path)
        if options:
            assert not re.search("password:|api_url:| url:", path.read_text())
    with pytest.raises(ParameterError, match="belongs into a file"):
        export("alertmanager", env, tmp_path, webhook="https://hooks.example/x?token=1")


def test_grafana_s_builders_are_an_extra(env, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grafana_foundation_sdk", None)
    with pytest.raises(MissingExtra, match=r"scalai-nb\[monitoring\]"):
        export("grafana", env, tmp_path)


def test_a_stranger_s_empty_project_and_what_was_changed_by_hand(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[laptop]\n")
    env = environment("laptop", settings=tmp_path / "settings.ini")
    made = [p for t in ("prometheus", "alertmanager", "grafana") for p in export(t, env, tmp_path)]
    assert all(p.stat().st_size for p in made)
    (tmp_path / "rules/alerts.yml").write_text("groups: []")
    with pytest.raises(Conflict, match=r"rules/alerts.yml in .* changed since"):
        export("prometheus", env, tmp_path)
    export("prometheus", env, tmp_path, force=True)


def test_the_words_of_the_command(project, monkeypatch):
    monkeypatch.chdir(project.root)
    app = typer.Typer()
    app.command()(command)

    def said(*words):
        return CliRunner().invoke(app, [*words])

    tried = said("prometheus", "--dry-run", "--set", "watcher=").output
    assert "would write: monitoring/prometheus/rules" in tried and "alert: ScalaiDown" in tried
    assert "job_name: scalai-runs" in tried and "job_name: scalai-watcher" not in tried
    assert not (project.root / "monitoring").exists()
    for words, told in (
        (("prometheus", "late"), "leave 'late' out"),
        (("triton",), "scalai export triton NAME --to DIR"),
        (("prometheus", "--set", "runs=here"), "accepted: HOST:PORT"),
        (("prometheus", "--set", "intervall=1s"), "Did you mean 'interval'?"),
    ):
        wrong = said(*words).exception
        assert isinstance(wrong, ParameterError) and told in str(wrong)


# --- what is told ---------------------------------------------------------------------------------


@dataclass
class Webhook:
    "A receiver of alerts"

    told: list[dict] = field(default_factory=list)
    port: int = 0

    def alert(self, status: str, name: str, job: str) -> dict | None:
        "The last one that came of it"
        wanted = {"alertname": name, "job": job}
        same = (a for a in self.told[::-1] if a["status"] == status)
        return next((a for a in same if wanted.items() <= a["labels"].items()), None)


@contextmanager
def webhook():
    found = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            found.told += json.loads(body)["alerts"]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found.port = server.server_port
        yield found
        server.shutdown()


def got(url: str, **query: str) -> dict:
    "The JSON of a page"
    with urlopen(f"{url}?{urlencode(query)}" if query else url, timeout=30) as answer:
        return json.load(answer)


def post(url: str, data: object) -> None:
    head = {"content-type": "application/json"}
    urlopen(Request(url, json.dumps(data).encode(), head), timeout=30).read()


class World:
    "What runs, and what watches over it"

    def __init__(self, project: Project, stack: ExitStack, hook: Webhook) -> None:
        self.project, self.stack, self.hook = project, stack, hook
        jobs = "service", "watcher", "runs", "stream", "prometheus", "alertmanager"
        self.ports = SimpleNamespace(**{job: free_port() for job in jobs})
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self, job: str, *words: object, program: bool = False) -> None:
        "Start a command of ours or another program; it ends with the test"
        log = (self.project.root / f"{job}.log").open("ab")
        command = [*map(str, words)]
        if not program:
            command = [sys.executable, "-m", "scalai_nb", *command]
        self.processes[job] = process = subprocess.Popen(
            command, cwd=self.project.root, env=self.project.env, stdout=log, stderr=log
        )
        log.close()
        self.stack.callback(self.stop, process)

    def stop(self, process: subprocess.Popen) -> None:
        process.terminate()
        try:
            process.wait(120)
        finally:
            process.kill()

    def stream(self) -> None:
        words = f"log://{self.project.root / 'log'}", "orders", "--json"
        self.start("stream", "stream", *words, "--metrics", self.ports.stream)

    def query(self, expr: str) -> list[dict]:
        "What Prometheus answers"
        found = got(f"http://127.0.0.1:{self.ports.prometheus}/api/v1/query", query=expr)
        assert found["status"] == "success", found
        return found["data"]["result"]

    def value(self, expr: str) -> float | None:
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def ask(self) -> bool:
        "Ask the service for a prediction; whether it answers"
        with suppress(OSError):
            url = f"http://127.0.0.1:{self.ports.service}/v1/models/late:predict"
            post(url, {"instances": [{"hour": 7.0}]})
            return True
        return False


def readings(hour: int, hours: int, at: float = 20.0) -> xr.Dataset:
    minutes = np.arange(hour * 60, (hour + hours) * 60) * np.timedelta64(1, "m")
    temp = np.random.default_rng(hour).normal(at, 2, len(minutes))
    return xr.Dataset(
        {"at": ("row", np.datetime64("2026-01-01", "us") + minutes), "temp": ("row", temp)}
    )


@pytest.fixture(scope="module")
def world(project):
    "A service, a watcher, a stream and what tells of runs, under Prometheus and Alertmanager"
    prometheus, alertmanager = tool("prometheus"), tool("prometheus-alertmanager", "alertmanager")
    lake, root = Lake(project.root / "lake", author="ada"), project.root
    lake.write("readings", readings(0, 48))
    lake.tag("readings", "normal")
    lake.append("readings", readings(48, 6, at=40.0))
    with Log(root / "log") as log:
        log.append([json.dumps({"id": i}).encode() for i in range(100)] + [b"{"])
    with ExitStack() as stack:
        hook = stack.enter_context(webhook())
        world = World(project, stack, hook)
        ports = world.ports
        world.start("service", "serve", "late", "--port", ports.service, "--workers", 1)
        against = "--against", "@normal", "--every", "1h", "--metrics", ports.watcher
        world.start("watcher", "watch", "readings", *against)
        world.stream()
        done = project.scalai("run", "counting", "--plain", "--metrics", "counting.prom")
        assert done.returncode == 0, done.stderr
        world.start("runs", "runs", "--metrics", ports.runs)
        env = environment("laptop", settings=root / "settings.ini")
        at = {job: f"127.0.0.1:{port}" for job, port in vars(ports).items()}
        del at["prometheus"]
        export("prometheus", env, root / "p", interval="1s", hold="0s", **at)
        address = f"http://127.0.0.1:{hook.port}/"
        export("alertmanager", env, root / "a", webhook=address, wait="0.2")
        told = f"--web.listen-address=127.0.0.1:{ports.alertmanager}", "--cluster.listen-address="
        config = f"--config.file={root}/a/alertmanager.yml", f"--storage.path={root}/a/data"
        world.start("alertmanager", alertmanager, *config, *told, program=True)
        told = (f"--web.listen-address=127.0.0.1:{ports.prometheus}",)
        config = f"--config.file={root}/p/prometheus.yml", f"--storage.tsdb.path={root}/p/data"
        world.start("prometheus", prometheus, *config, *told, program=True)
        until(lambda: _answers(world))
        until(lambda: world.value('count(up{job=~"scalai-.*"} == 1)') == 4)
        until(world.ask)
        yield world
        for process in world.processes.values():
            process.terminate()  # all of them, before the first is waited for


def _answers(world: World) -> bool:
    with suppress(OSError):
        return bool(world.query("vector(1)"))
    return False


def test_all_of_it_is_scraped(world):
    for expr, value in {
        'scalai_model_info{model="late", aliases="champion"}': 1,
        'scalai_stream_rows_total{dataset="orders"}': 100,
        'scalai_stream_dead_total{dataset="orders"}': 1,
        'sum(scalai_stream_lag_records{dataset="orders"})': 0,
        'scalai_watch_alarm{dataset="readings"}': 1,
        'scalai_watch_lag_rows{dataset="readings"}': 60,
        'scalai_run_state{pipeline="counting", state="completed"}': 1,
        'scalai_run_steps{pipeline="counting", status="completed"}': 1,
        "sum(scalai_run_state)": 1,
    }.items():
        until(lambda e=expr, v=value: world.value(e) == v)
    assert world.value("scalai_watch_rows_total") == 53 * 60
    names = {s["metric"]["__name__"] for s in world.query('{__name__=~"scalai_.+"}')}
    bare = {re.sub("_(bucket|sum|count)$", "", n) if n not in METRICS else n for n in names}
    assert bare <= METRICS.keys()
    unset = {"scalai_run_cost"}  # no worker_price
    assert (RUN | WATCH | STREAM).keys() - unset <= names


def test_what_a_run_leaves_in_a_file_is_what_is_told_of_it(world):
    text = (world.project.root / "counting.prom").read_text()
    assert 'scalai_run_state{pipeline="counting",state="completed"} 1.0' in text
    ended = 'scalai_run_success_timestamp_seconds{pipeline="counting"}'
    (told,) = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(ended)]
    assert float(told) == pytest.approx(world.value(ended), abs=0.01)
    said = world.project.scalai("runs", "--metrics", "runs.prom")  # as cron would
    assert said.returncode == 0 and not said.stdout, said.stderr
    assert f"{ended} {told}" in (world.project.root / "runs.prom").read_text()
    assert not (world.project.root / "runs.prom").stat().st_mode & 0o044 ^ 0o044  # by others


FILLED = (
    """Up Requests Latency Queue Versions Evidence Alarm Rows Age State Duration
Steps Cached""".split()
    + ["Streams: rows", "Streams: lag", "Since the last success"]
)


def test_prometheus_answers_every_query_of_the_dashboards(world):
    from scalai_nb.export.grafana import files

    env = environment("laptop", settings=world.project.root / "settings.ini")
    boards = {n: json.loads(d) for n, d in files(env).items() if n.endswith(".json")}
    assert len(boards) == 5
    until(lambda: world.ask() and world.value("sum(rate(scalai_requests_total[20s])) > 0"))
    empty: set[str] = set()
    for board in boards.values():
        chosen = board["templating"]["list"][1]
        assert world.query(re.search(r"\((\w+),", json.dumps(chosen["query"]))[1]), chosen
        for panel in board["panels"]:
            assert panel["options"]["legend"]["showLegend"]
            for target in panel["targets"]:
                expr = target["expr"].replace("$__rate_interval", "20s")
                found = world.query(re.sub(r"\$[a-z]+", ".*", expr))
                if not found and not expr.startswith("vector"):
                    empty.add(panel["title"])
    assert not empty & set(FILLED), empty
    quality = json.dumps(boards["dashboards/quality.json"])
    assert "goal of sales: recall >= 0.60" in quality and "vector(0.6)" in quality


def test_an_alert_reaches_the_webhook_and_is_resolved(world):
    hook = world.hook
    until(lambda: hook.alert("firing", "ScalaiMoved", "scalai-watcher"))
    assert not hook.alert("firing", "ScalaiRunFailed", "scalai-runs")
    stopped = datetime.now(UTC).isoformat()
    world.stop(world.processes["stream"])
    down = "ScalaiDown", "scalai-stream"

    def fired():
        alert = hook.alert("firing", *down)
        return alert and alert["startsAt"] > stopped and alert

    alert = until(fired)
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"].endswith(f":{world.ports.stream} does not answer.")
    world.stream()

    def resolved():
        told = hook.alert("resolved", *down)
        return told and told["startsAt"] == alert["startsAt"]

    until(resolved)


def test_what_is_down_inhibits_the_rest_of_its_job(world):
    alerts = f"http://127.0.0.1:{world.ports.alertmanager}/api/v2/alerts"
    told = [("ScalaiDown", "a"), ("ScalaiShed", "a"), ("ScalaiShed", "b")]
    post(alerts, [{"labels": {"alertname": name, "job": job}} for name, job in told])

    def inhibited():
        found = {(a["labels"]["alertname"], a["labels"].get("job")): a for a in got(alerts)}
        silent = {key for key in told if key in found and found[key]["status"]["inhibitedBy"]}
        return len(found.keys() & set(told)) == 3 and silent == {("ScalaiShed", "a")}

    until(inhibited)


# --- the documents --------------------------------------------------------------------------------


def test_the_documents_name_every_metric_and_alert():
    text = (ROOT / "docs/monitoring.md").read_text()
    lacking = [n for n in RUN | WATCH | STREAM if f"`{n.removeprefix('scalai_')}`" not in text]
    assert not lacking
    assert not [a.name for a in ALERTS if f"`{a.name}`" not in text]
