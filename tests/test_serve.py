"""The processes of a service: they start, follow the registry, survive a kill, share connections

They end when all is answered.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from served import plain_model, worker

from scalai_nb.environment import environment
from scalai_nb.errors import (
    Conflict,
    ModelMismatch,
    ModelNotFound,
    ParameterError,
    VersionNotFound,
    WorkFailed,
)
from scalai_nb.learn.linear.regression import LogisticRegression
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.package.package import package
from scalai_nb.models.registry.registry import Registry
from scalai_nb.metrics import Metrics
from scalai_nb.serving.process import following
from scalai_nb.serving.process.service import planned, running

HOURS = xr.Dataset({"hour": ("row", np.arange(24.0))})


def late_after(hour):
    t = Transform(["hour"]).fit(HOURS)
    return package(
        t, LogisticRegression().fit(t.transform(HOURS), HOURS.hour.values > hour), name="late"
    )


@pytest.fixture(scope="module")
def home(database, tmp_path_factory):
    "A project with two versions of `late`, the first of which is the champion"
    home = tmp_path_factory.mktemp("home")
    (home / "settings.ini").write_text("[laptop]\n")
    (home / ".scalai").mkdir()
    shutil.copy(database, home / ".scalai/tracking.db")
    r = Registry(environment("laptop", settings=home / "settings.ini"))
    r.register(late_after(15), "late", alias="champion")
    r.register(late_after(8), "late")
    return home


@pytest.fixture
def env(home, tmp_path):
    "The project, in a copy"
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    return environment("laptop", settings=tmp_path / "settings.ini")


OPEN = []


@pytest.fixture(autouse=True)
def close():
    yield
    while OPEN:
        OPEN.pop().close()


def connect(s) -> HTTPConnection:
    "A connection, closed when the test has ended"
    OPEN.append(HTTPConnection(s.url.removeprefix("http://"), timeout=20))
    return OPEN[-1]


def ask(c: HTTPConnection, path: str, body=None) -> tuple[int, dict]:
    "The status and the JSON of an answer"
    c.request(
        "POST" if body else "GET",
        path,
        json.dumps(body) if body else None,
        {"content-type": "application/json"} if body else {},
    )
    answer = c.getresponse()
    return answer.status, json.loads(answer.read() or "{}")


def predict(c: HTTPConnection, hour=12.0) -> float:
    status, answer = ask(c, "/v1/models/late:predict", {"instances": [{"hour": hour}]})
    assert status == 200, answer
    return answer["predictions"][0]


def until(true, seconds=30):
    "Wait until it holds"
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)
    return found


def is_score(value, version, env) -> bool:
    expected = Registry(env).load("late", version).predict(xr.Dataset({"hour": ("row", [12.0])}))[0]
    return abs(value - expected) < 1e-6


class Client(Thread):
    "Asks again and again on one connection, and on a new one when that fails"

    def __init__(self, s):
        super().__init__(daemon=True)
        self.s, self.scores, self.failed, self.enough = s, [], [], Event()

    def run(self):
        c = HTTPConnection(self.s.url.removeprefix("http://"), timeout=20)
        while not self.enough.is_set():
            try:
                self.scores.append(predict(c))
            except (OSError, HTTPException, AssertionError) as e:
                self.failed.append(repr(e))
                c.close()
        c.close()


@contextmanager
def clients(s, n):
    found = [Client(s) for _ in range(n)]
    for c in found:
        c.start()
    try:
        yield found
    finally:
        for c in found:
            c.enough.set()
        for c in found:
            c.join()


def alive(pids) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# ---- starting and ending


def test_starts_answers_and_leaves_nothing_behind(env):
    with running("late", env, workers=2) as s:
        c = connect(s)
        assert ask(c, "/v2/health/ready")[0] == 200 and is_score(predict(c), 1, env)
        pids = s.pids
        assert len(set(pids)) == 4 and len(alive(pids)) == 4
        until(lambda: s.metrics().gauges.get(("scalai_workers",)) == 2)
    assert s.process.returncode == 0 and not alive(pids), s.log()
    assert (Path(env.serving) / "late/secret").stat().st_mode & 0o777 == 0o600


def test_several_models_and_versions(env):
    Registry(env).register(late_after(3), "early")
    with running(["late", "late@2", "early@1"], env, workers=1) as s:
        c = connect(s)
        assert is_score(predict(c), 1, env)
        assert (
            ask(c, "/v1/models/late/versions/2:predict", {"instances": [{"hour": 12.0}]})[0] == 200
        )
        assert ask(c, "/v1/models/early:predict", {"instances": [{"hour": 12.0}]})[0] == 200


def test_wrong_words_start_nothing(env):
    for names, error, says in (
        (["lte"], ModelNotFound, "Did you mean 'late'?"),
        (["late@9"], VersionNotFound, "known: 1, 2"),
        ([], ParameterError, "at least one"),
    ):
        with pytest.raises(error, match=says.replace("?", r"\?")):
            planned(names, env)
    with (
        pytest.raises(ParameterError, match="Cannot listen on ::1%nowhere"),
        running("late", env, host="::1%nowhere"),
    ):
        pass
    Registry(env).register(late_after(3), "early")
    with pytest.raises(
        VersionNotFound, match="scalai models promote early 1, or name a version, early@1"
    ):
        planned("early", env)


def test_the_goal_of_the_card_is_the_latency(env):
    model = late_after(3)
    model.card["goals"] = {"latency_ms": "<= 40"}
    Registry(env).register(model, "early", alias="champion")
    assert [planned(names, env)[0].latency for names in ("late", "early", ["late", "early"])] == [
        0.1,
        0.04,
        0.04,
    ]
    assert planned("early", env, latency=0.2)[0].latency == 0.2


def test_a_service_runs_once_and_a_port_is_taken_once(env):
    with running("late", env, workers=1) as s:
        port = int(s.url.rpartition(":")[2])
        with (
            pytest.raises(Conflict, match=rf"late is served by process {s.process.pid} at {s.url}"),
            running("late", env),
        ):
            pass
        with (
            pytest.raises(Conflict, match=rf"Port {port} is taken by process \d+, python"),
            running("late", env, service="other", port=port),
        ):
            pass
        with running("late", env, service="other", workers=1) as other:
            assert predict(connect(other)) == predict(connect(s))
    with running("late", env, workers=1):
        pass  # the lock is free again


def command(env, *words, **options) -> subprocess.Popen:
    code = (
        "import sys, typer; from scalai_nb.commands.serve import serve; "
        "from scalai_nb.errors import ScalaiError\n"
        "app = typer.Typer(pretty_exceptions_enable=False); app.command()(serve)\n"
        "try: app()\n"
        "except ScalaiError as e: sys.exit(f'error: {e}') if e.exit_code == 1 else sys.exit(2)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=env.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_command(env):
    process = command(env, "late", "--port", "0", "--workers", "1", start_new_session=True)
    try:
        said = [process.stdout.readline() for _ in range(4)]
        assert (
            "champion" in said[1]
            and "Ctrl-C ends it" in said[2]
            and "ready" in process.stderr.readline()
        )
        answer = subprocess.run(said[3], shell=True, capture_output=True, text=True)
        assert "predictions" in answer.stdout, (said, answer)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends Ctrl-C: to all of them
        assert process.wait(30) == 0 and "ending" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    done = command(env, "late", "--dry-run", "--shadow", "challenger")
    assert "answers" in done.communicate()[0] and done.returncode == 0


def test_a_model_that_is_not_what_it_says(env):
    (Path(env.models) / "late/1/model.onnx").write_bytes(b"nothing")
    with (
        pytest.raises(ModelMismatch, match="is not the file that was packaged"),
        running("late", env),
    ):
        pass
    process = command(env, "late", "--port", "0")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and said.startswith("error: ") and said.count("\n") == 1


def test_a_worker_that_cannot_start_ends_the_service(env):
    folder = Path(env.serving) / "late"
    folder.mkdir(parents=True)
    (folder / "secret").mkdir()  # cannot be read
    with (
        pytest.raises(WorkFailed, match="worker 0 ended with exit code 1"),
        running("late", env, workers=1),
    ):
        pass


SLOW = """
import socket, sys, time
from pathlib import Path
from scalai_nb.serving.process.options import Options
from scalai_nb.serving.process.worker import work
from scalai_nb.serving.scoring.scorer import Scorer
_, sock, folder, seconds = sys.argv
load = Scorer.load.__func__
Scorer.load = classmethod(lambda *words: (time.sleep(float(seconds)), load(*words))[1])
work(socket.socket(fileno=int(sock)), Path(folder), Options(("plain",)))
"""


@pytest.mark.parametrize("seconds, first", [(0.5, 200), (4, 503)])
def test_who_comes_while_it_starts_waits_a_little_and_then_is_told(tmp_path, seconds, first):
    with worker(tmp_path, {"plain": plain_model()}):
        pass  # its folder is what is needed
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        words = str(sock.fileno()), str(tmp_path), str(seconds)
        command = [sys.executable, "-c", SLOW, *words]
        process = subprocess.Popen(command, pass_fds=[sock.fileno()])
        try:
            port, statuses, row = sock.getsockname()[1], [], [dict.fromkeys("abcd", 1.0)]
            while 200 not in statuses:
                c = HTTPConnection("127.0.0.1", port, timeout=20)
                statuses.append(ask(c, "/predict", row)[0])
                c.close()
        finally:
            process.terminate()
            process.wait()
    assert statuses[0] == first and {*statuses} <= {200, 503}


# ---- following the registry


def test_an_alias_moves_without_a_failed_request(env):
    with running("late", env, workers=2, latency=10.0) as s, clients(s, 3) as found:
        for version in (2, 1, 2):
            Registry(env).promote("late", version)
            until(
                lambda version=version: all(
                    is_score(c.scores[-1], version, env) for c in found if c.scores
                )
            )
    for c in found:
        assert not c.failed and all(
            is_score(score, 1, env) or is_score(score, 2, env) for score in set(c.scores)
        )


def test_goes_on_while_the_registry_is_away(env):
    file = Path(env.tracking.removeprefix("sqlite:///"))
    with running("late", env, workers=1, latency=10.0) as s, clients(s, 1) as (c,):
        file.rename(file.with_suffix(".away"))
        until(lambda: s.metrics().gauges.get(("scalai_registry_up",)) == 0)
        n = len(c.scores)
        until(lambda: len(c.scores) > n + 10)
        file.with_suffix(".away").rename(file)
        Registry(env).promote("late", 2)
        until(lambda: is_score(c.scores[-1], 2, env))
        until(lambda: s.metrics().gauges[("scalai_registry_up",)] == 1)
    assert not c.failed and s.log().count("does not say what to serve") == 1


def test_a_broken_champion_is_not_passed_on(env):
    with running("late", env, workers=1) as s:
        c, graph = connect(s), Path(env.models) / "late/2/model.onnx"
        until(lambda: s.metrics().gauges.get(("scalai_registry_up",)) == 1)
        os.kill(s.state["keeper"], signal.SIGSTOP)
        Registry(env).promote("late", 2)
        whole = graph.read_bytes()
        graph.write_bytes(b"nothing")
        os.kill(s.state["keeper"], signal.SIGCONT)
        until(lambda: "is not the file that was packaged" in s.log())
        assert is_score(predict(c), 1, env)
        graph.write_bytes(whole)
        s.process.send_signal(signal.SIGHUP)  # it is tried again
        until(lambda: is_score(predict(c), 2, env))
    assert s.process.returncode == 0 and s.log().count("is not the file that was packaged") == 1


# ---- dying


def test_a_killed_worker_costs_what_it_was_answering(env):
    with running("late", env, workers=2, latency=10.0) as s, clients(s, 6) as found:
        until(lambda: all(len(c.scores) > 20 for c in found))
        first = s.state["workers"][0]
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in s.state["workers"] and 0 not in s.state["workers"])
        counts = [len(c.scores) for c in found]
        until(lambda: all(len(c.scores) > n + 20 for c, n in zip(found, counts, strict=True)))
        assert s.state["ready"] and "worker 0 was killed by SIGKILL; it is started again" in s.log()
        assert s.metrics().counters[("scalai_restarts_total",)] == 1
    assert all(len(c.failed) <= 1 for c in found) and 1 <= sum(len(c.failed) for c in found) <= 5, [
        c.failed for c in found
    ]


def test_a_process_that_has_just_begun_is_not_ended_by_being_called(env):
    "The routes may change at any moment, and SIGHUP says so"
    with running("late", env, workers=1) as s:
        os.kill(s.state["workers"][0], signal.SIGKILL)
        for _ in range(1000):  # a second and more, in which the worker and the keeper begin
            os.kill(s.state["pid"], signal.SIGHUP)
            time.sleep(0.001)
        predict(connect(s))
        until(lambda: s.metrics().gauges.get(("scalai_registry_up",)) == 1)
        assert s.log().count("was killed") == 1 and "worker 0 was killed by SIGKILL" in s.log()


def test_a_killed_keeper_is_started_again(env):
    with running("late", env, workers=1, latency=10.0) as s, clients(s, 1) as (c,):
        keeper = s.state["keeper"]
        os.kill(keeper, signal.SIGKILL)
        until(lambda: s.state["keeper"] not in (0, keeper))
        Registry(env).promote("late", 2)
        until(lambda: is_score(c.scores[-1], 2, env))
    assert not c.failed and s.process.returncode == 0


def test_nothing_outlives_a_killed_supervisor(env):
    with running("late", env, workers=2) as s:
        pids = s.pids
        s.process.kill()
        s.process.wait()
        until(lambda: not alive(pids))
    with running("late", env, workers=1) as s:
        assert predict(connect(s))


def test_ends_with_whoever_started_it(env):
    code = (
        "import scalai_nb as sn, time; from scalai_nb.serving.process.service import running\n"
        "with running('late', "
        f"sn.environment('laptop', settings={str(env.root / 'settings.ini')!r}), workers=1) as s: "
        "print(*s.pids, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    assert len(pids) == 3
    until(lambda: not alive(pids))


# ---- ending


def test_what_is_open_is_answered(env):
    "A request whose second half comes after the service was told to end"
    with (
        running("late", env, workers=1) as s,
        socket.create_connection(
            (s.url.split("/")[2].split(":")[0], int(s.url.rpartition(":")[2])), 20
        ) as sock,
    ):
        body = json.dumps({"instances": [{"hour": 12.0}]}).encode()
        sock.sendall(
            (
                b"POST /v1/models/late:predict HTTP/1.1\r\n"
                b"host: x\r\n"
                b"content-type: application/json\r\n"
                b"content-length: %d\r\n\r\n"
            )
            % len(body)
            + body[:10]
        )
        until(lambda: s.metrics().gauges.get(("scalai_connections",)) == 1)
        s.process.terminate()
        until(lambda: "ending" in s.log())
        sock.sendall(body[10:])
        answer = b""
        while data := sock.recv(65536):
            answer += data
        assert answer.startswith(b"HTTP/1.1 200") and b"predictions" in answer
        assert s.process.wait(30) == 0
    with (
        pytest.raises(OSError),
        socket.create_connection(("127.0.0.1", int(s.url.rpartition(":")[2])), 5),
    ):
        pass


def test_a_second_signal_ends_it_at_once(env):
    with (
        running("late", env, workers=1, drain=600) as s,
        socket.create_connection(("127.0.0.1", int(s.url.rpartition(":")[2])), 20) as sock,
    ):
        sock.sendall(
            b"POST /v1/models/late:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n"
        )
        until(lambda: s.metrics().gauges.get(("scalai_connections",)) == 1)
        s.process.terminate()
        until(lambda: "ending" in s.log())
        s.process.terminate()
        assert s.process.wait(20) == 1


# ---- what it takes


def connections(pids) -> list[int]:
    import psutil

    return [
        sum(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process(pid).net_connections("tcp"))
        for pid in pids
    ]


@pytest.mark.parametrize("n", [16, 64])
def test_workers_share_the_connections(env, n):
    with running("late", env, workers=2) as s:
        for c in [connect(s) for _ in range(n)]:
            c.connect()
        until(lambda: sum(connections(s.state["workers"])) == n)
        assert abs(connections(s.state["workers"])[0] - n / 2) <= n / 8, connections(
            s.state["workers"]
        )


def seconds(pids) -> float:
    "Of processor time"
    import psutil

    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def test_an_idle_service_takes_no_processor_time(env):
    with running("late", env, workers=2) as s:
        until(
            lambda: s.metrics().gauges.get(("scalai_registry_up",)) == 1
        )  # the keeper has imported what it needs
        time.sleep(1)
        before = seconds(s.pids)
        time.sleep(3)  # what is measured
        assert seconds(s.pids) - before < 0.1


def test_workers_share_memory(env):
    import psutil

    with running("late", env, workers=2) as s:
        predict(connect(s))
        memory = [psutil.Process(pid).memory_full_info() for pid in s.state["workers"]]
        print([(m.rss >> 20, m.pss >> 20, m.uss >> 20) for m in memory])
        assert all(m.rss < 100 * 2**20 and m.uss < 50 * 2**20 for m in memory)


# ---- a canary that a worker took out


def test_a_fallen_canary_is_out_for_all_workers(tmp_path):
    wanted = {
        "models": {
            "late": {"canary": {"version": "4", "share": 0.5, "key": None}},
            "early": {"canary": {"version": "4", "share": 0.5, "key": None}},
        }
    }
    (tmp_path / "fallback").mkdir()
    (tmp_path / "fallback" / "late-4.json").write_text("{}")
    found = following.without_fallen(wanted, tmp_path)["models"]
    assert found["late"]["canary"] is None and found["early"]["canary"]["version"] == "4"


def test_a_version_that_cannot_be_loaded_is_not_brought_to_the_workers(tmp_path, monkeypatch):
    (tmp_path / "routes.json").write_text('{"models": {}}')
    lost = {"path": str(tmp_path / "gone"), "digest": "d"}
    wanted = {"models": {"late": {"primary": "1", "canary": None, "versions": {"1": lost}}}}
    monkeypatch.setattr(following, "routes", lambda *_: wanted)
    registry = SimpleNamespace(stamp=lambda: None)
    follower = following.RegistryFollower(registry, None, tmp_path, Metrics())
    follower.look()
    assert json.loads((tmp_path / "routes.json").read_text()) == {"models": {}}
    assert "gone" in follower.trouble and follower.refused == wanted


def test_graphs_of_versions_that_nobody_serves_are_removed(tmp_path):
    wanted = lambda *digests: {
        "models": {"late": {"versions": {str(i): {"digest": d} for i, d in enumerate(digests)}}}
    }
    (tmp_path / "graphs").mkdir()
    for digest in "abc":
        (tmp_path / "graphs" / f"{digest}.onnx").touch()
    following.publish(wanted("b", "c"), tmp_path)
    assert sorted(p.stem for p in (tmp_path / "graphs").iterdir()) == ["b", "c"] and json.loads(
        (tmp_path / "routes.json").read_text()
    ) == wanted("b", "c")
    following.publish(wanted("c", "d"), tmp_path)  # of d there is none yet
    assert [p.stem for p in (tmp_path / "graphs").iterdir()] == ["c"]
