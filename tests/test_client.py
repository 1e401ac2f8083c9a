"""The client: what is sent, what is tried again, who is asked, what errors say; a real worker"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from hashlib import sha256
from socketserver import BaseRequestHandler, ThreadingTCPServer

import numpy as np
import pytest
import xarray as xr
from conftest import free_port

import scalai_nb as sn
from scalai_nb.errors import ContractViolation, ModelNotFound, ParameterError, WorkFailed
from scalai_nb.client.client import Client
from scalai_nb.client.flight import FAILURES, Request
from scalai_nb.client.replicas import Replicas

ASK = Request("GET", "/")


# ---- stand-ins: servers that do as they are told


class StandIn(ThreadingTCPServer):
    "A server on 127.0.0.1 that waits `seconds` and then answers `status`, or does worse"

    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, seconds=0.0, status=200, headers="", body=b"", worse=None):
        self.seconds, self.status, self.headers, self.body, self.worse = (
            seconds,
            status,
            headers,
            body,
            worse,
        )
        self.heads, self.connections, self.left = [], 0, threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def asked(self):
        return len(self.heads)


class Handler(BaseRequestHandler):
    def handle(self):
        s = self.server
        s.connections += 1
        while head := self.read_head():
            s.heads.append(head)
            if s.worse == "reset":
                self.request.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                return
            if s.worse == "garbage":
                self.request.sendall(b"\x00\x01 what?\r\n\r\n")
                return
            self.request.settimeout(s.seconds or 0.001)
            try:
                if self.request.recv(1, socket.MSG_PEEK) == b"":
                    s.left.set()
                    return  # whoever asked has gone
            except TimeoutError:
                pass
            self.request.settimeout(None)
            half = s.worse == "half"
            self.request.sendall(
                (
                    f"HTTP/1.1 {s.status} x\r\n"
                    f"{s.headers}content-length: {len(s.body) + 9 * half}\r\n\r\n"
                ).encode()
                + s.body
            )
            if half:
                return

    def read_head(self):
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                if not (more := self.request.recv(65536)):
                    return ""
                data += more
            head, body = data.split(b"\r\n\r\n", 1)
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                ),
                0,
            )
            while len(body) < length:
                body += self.request.recv(65536)
        except ConnectionError:
            return ""
        return head.decode()


@contextmanager
def serving(*stand_ins):
    "The servers while the block lasts; with their addresses where there are several"
    for s in stand_ins:
        threading.Thread(target=s.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield stand_ins
    finally:
        for s in stand_ins:
            s.shutdown()
            s.server_close()


@contextmanager
def replicas(*servers, **options):
    rs = Replicas([s if isinstance(s, str) else s.url for s in servers], **options)
    try:
        yield rs
    finally:
        rs.close()


def dead() -> str:
    "An address where nobody listens"
    return f"http://127.0.0.1:{free_port()}"


# ---- again


def test_a_connection_is_used_again_unless_the_server_has_closed_it():
    with serving(server := StandIn()), replicas(server, retries=0) as rs:
        for _ in range(20):
            rs.ask(ASK, 1)
        assert server.asked == 20 and server.connections == 1
        rs.replicas[0].idle[0].sock.shutdown(
            socket.SHUT_RD
        )  # as the end that a server sends looks from here
        rs.ask(ASK, 1)
        assert server.connections == 2
    with (
        serving(server := StandIn(headers="connection: close\r\n")),
        replicas(server, retries=0) as rs,
    ):
        for _ in range(5):
            rs.ask(ASK, 1)
        assert server.connections == 5 and not rs.replicas[0].idle


@pytest.mark.parametrize("worse", ["reset", "garbage", "half"])
def test_what_was_not_answered_is_asked_of_another(worse):
    with serving(bad := StandIn(worse=worse), good := StandIn()), replicas(bad, good) as rs:
        assert {rs.ask(ASK, 1).url for _ in range(20)} == {good.url}
    assert 1 <= bad.asked <= FAILURES


def test_one_that_is_dead_costs_some_tries_and_then_nothing():
    with serving(good := StandIn()), replicas(dead(), good) as rs:
        assert {rs.ask(ASK, 1).url for _ in range(50)} == {good.url}
        assert rs.replicas[0].failures == FAILURES


def test_retries_are_few_where_all_fail():
    "The load that retries add is at most a tenth, and ten"
    with serving(bad := StandIn(worse="reset")), replicas(bad) as rs:
        for _ in range(100):
            rs.replicas[0].failures, rs.replicas[0].resting = 0, 0  # or it would be left alone
            with pytest.raises(WorkFailed):
                rs.ask(ASK, 5)
    assert 100 < bad.asked <= 100 + 10 + 10


def test_a_refusal_is_asked_again_after_as_long_as_the_server_says():
    with serving(full := StandIn(status=503, headers="retry-after: 1\r\n")), replicas(full) as rs:
        threading.Timer(0.3, lambda: setattr(full, "status", 200)).start()
        begun = time.monotonic()
        assert rs.ask(ASK, 5).status == 200
        assert full.asked == 2 and time.monotonic() - begun >= 1


def test_another_try_has_a_request_id_of_its_own():
    "A server takes an id once, and the first try may have been logged"
    asked = Request("POST", "/predict", b"{}", (("x-request-id", "mine"),))
    with serving(full := StandIn(status=503)), replicas(full) as rs:
        assert rs.ask(asked, 5).status == 503
    ids = [next(x for x in h.split("\r\n") if "x-request-id" in x) for h in full.heads]
    assert ids == [f"x-request-id: mine{again}" for again in ("", "~2", "~3")]


def test_what_cannot_be_in_time_is_not_waited_for():
    with serving(full := StandIn(status=429, headers="retry-after: 3\r\n")), replicas(full) as rs:
        begun = time.monotonic()
        assert rs.ask(ASK, 2).status == 429
        assert full.asked == 1 and time.monotonic() - begun < 1


@pytest.mark.parametrize("status", [200, 400, 404, 413, 500, 504])
def test_an_answer_is_an_answer(status):
    with serving(server := StandIn(status=status)), replicas(server) as rs:
        assert rs.ask(ASK, 1).status == status
    assert server.asked == 1


def test_a_late_answer_is_not_waited_for_nor_asked_again():
    with serving(slow := StandIn(seconds=5)), replicas(slow) as rs:
        begun = time.monotonic()
        with pytest.raises(
            WorkFailed, match="no answer within the timeout, 1 time; pass a longer timeout"
        ):
            rs.ask(ASK, 0.2)
        assert time.monotonic() - begun < 2 and slow.asked == 1
        assert slow.left.wait(5)  # and the server is told


def test_the_server_is_told_how_long_an_answer_is_of_use():
    with serving(server := StandIn()), replicas(server) as rs:
        rs.ask(ASK, 0.75)
    (told,) = (
        int(line.split(":")[1])
        for line in server.heads[0].split("\r\n")
        if line.startswith("x-request-timeout-ms")
    )
    assert 500 < told <= 750


# ---- who is asked


def test_a_slow_replica_gets_few_requests():
    with serving(slow := StandIn(seconds=0.05), quick := StandIn()), replicas(slow, quick) as rs:
        for _ in range(200):
            rs.ask(ASK, 5)
    assert slow.asked < 60  # by lot it would be 100


def test_threads_are_spread_by_what_is_on_its_way():
    with serving(*(servers := [StandIn(seconds=0.01) for _ in range(3)])), replicas(*servers) as rs:
        threads = [
            threading.Thread(target=lambda: [rs.ask(ASK, 5) for _ in range(20)]) for _ in range(6)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert all(r.busy == 0 for r in rs.replicas) and sum(s.asked for s in servers) == 120
    assert min(s.asked for s in servers) >= 10


def test_what_failed_is_left_alone_then_tried_by_one_and_taken_back():
    with serving(ill := StandIn(worse="reset"), good := StandIn()), replicas(ill, good) as rs:
        rs.replicas[1].latency, rs.replicas[1].seen = (
            1e9,
            time.monotonic(),
        )  # so that the ill one is asked first
        while rs.replicas[0].failures < FAILURES:
            rs.ask(ASK, 1)
        before = ill.asked
        for _ in range(20):
            rs.ask(ASK, 1)
        assert ill.asked == before  # left alone
        ill.worse, ill.seconds = None, 0.2
        rs.replicas[0].resting = 0  # its rest ends
        rs.replicas[0].latency = 0  # and it would be liked
        threads = [threading.Thread(target=rs.ask, args=(ASK, 1)) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert ill.asked == before + 1  # one tries it
        assert rs.replicas[0].failures == 0 and rs.replicas[0].resting == 0


def test_where_all_rest_one_is_asked_all_the_same():
    with serving(server := StandIn(worse="reset")), replicas(server) as rs:
        while rs.replicas[0].failures < FAILURES:
            with pytest.raises(WorkFailed):
                rs.ask(ASK, 0.2)
        server.worse = None
        assert rs.ask(ASK, 1).status == 200


# ---- hedging


def test_the_first_answer_wins_and_the_other_is_not_waited_for():
    with (
        serving(slow := StandIn(seconds=3), quick := StandIn()),
        replicas(slow, quick, hedge=0.05) as rs,
    ):
        rs.replicas[1].latency, rs.replicas[1].seen = (
            100,
            time.monotonic(),
        )  # so that the slow one is asked first
        answer = rs.ask(ASK, 5)
        assert answer.url == quick.url and answer.seconds < 2 and slow.asked == quick.asked == 1
        assert slow.left.wait(5)
        assert rs.replicas[0].latency >= 0.05 and rs.replicas[0].failures == 0  # slow, but not ill


def test_hedges_are_few():
    "One in twenty, and the first"
    with (
        serving(*(servers := [StandIn(seconds=0.02) for _ in range(2)])),
        replicas(*servers, hedge=0.001) as rs,
    ):
        for _ in range(60):
            rs.ask(ASK, 5)
    assert 60 < sum(s.asked for s in servers) <= 60 + 3 + 1


def test_auto_hedges_what_is_slower_than_most():
    with serving(a := StandIn(), b := StandIn()), replicas(a, b, hedge="auto") as rs:
        for _ in range(30):
            rs.ask(ASK, 5)
        assert a.asked + b.asked <= 33
        a.seconds = 3
        rs.hedging.left = 1  # a pause of this machine may have spent it
        rs.replicas[1].latency, rs.replicas[1].seen = 100, time.monotonic()
        assert rs.ask(ASK, 5).url == b.url


def test_a_hedge_saves_a_request_whose_replica_refuses():
    with (
        serving(bad := StandIn(seconds=0.2, status=503), good := StandIn(seconds=0.4)),
        replicas(bad, good, retries=0, hedge=0.01) as rs,
    ):
        rs.replicas[1].latency, rs.replicas[1].seen = 100, time.monotonic()
        assert rs.ask(ASK, 5).url == good.url


# ---- what goes over the wire, and what the errors say


def test_errors_of_the_server_are_those_of_the_library():
    cases = [
        (
            400,
            b'{"error": "Row 1, column \'a\': no.", "row": 1, "column": "a"}',
            ContractViolation,
            "^Row 1, column 'a': no.$",
        ),
        (404, b'{"error": "\'x\' is not served."}', ModelNotFound, "is not served"),
        (500, b"<html>oh</html>", WorkFailed, "answers 500: <html>"),
        (400, b"[1]", ContractViolation, r"\[1\]"),
        (503, b"", WorkFailed, "answers 503: status 503"),
    ]
    for status, body, kind, text in cases:
        with (
            serving(server := StandIn(status=status, body=body)),
            Client(server.url, model="m", protocol="v1", retries=0) as client,
        ):
            with pytest.raises(kind, match=text) as caught:
                client.predict({"a": 1})
            if b'"row"' in body:
                assert (caught.value.row, caught.value.column) == (1, "a")


def test_words_that_are_wrong():
    for url in ("127.0.0.1:80", "ftp://x", "http://", []):
        with pytest.raises(ParameterError, match="accepted: http://HOST:PORT"):
            Client(url)
    with pytest.raises(ParameterError, match="known: v1, v2"):
        Client("http://x", protocol="grpc")
    with pytest.raises(ParameterError, match="pass model=NAME"):
        Client("http://x", protocol="v1")
    with pytest.raises(
        WorkFailed, match="refused, 3 times; see that the service runs: scalai serve"
    ):
        Client(dead()).predict({"a": 1})
    assert Client(dead()).ready() is False


@pytest.mark.parametrize(
    "rows, text",
    [
        ([], "accepted: .row, column."),
        ([[1, 2], [3]], "no rows of equal length"),
        (np.zeros(3), "shape .3,."),
        ([{"a": 1}, {"b": 2}], "Row 1 has the columns b"),
        ({"a": [1, 2], "b": [1]}, "2 .a., 1 .b. rows"),
        ({"a": [[1, 2]]}, "'a' has 2 dimensions"),
        ({"a": [[1, 2], [3]]}, "Column 'a' has values of different length"),
        ({"a": [object()]}, "'a' holds values"),
        ({}, "have no rows"),
    ],
)
def test_rows_that_cannot_be_sent(rows, text):
    with serving(server := StandIn()), Client(server.url, model="m", protocol="v1") as client:
        with pytest.raises(ParameterError, match=text):
            client.predict(rows)
    assert server.asked == 0


# ---- what it needs

BARE = """
import sys

BLOCKED = {
    *("uvloop", "httptools", "hpack", "h2", "granian", "grpc", "google", "orjson"),
    *("prometheus_client", "xarray", "pandas", "pyarrow", "dask", "distributed", "numba", "zarr"),
    *("icechunk", "onnx", "onnxruntime", "mlflow", "sqlalchemy", "sklearn", "scipy", "papermill"),
    *("nbclient", "rich", "typer", "torch", "xgboost", "optuna", "cupy", "httpx", "requests"),
}


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked())
from scalai_nb.client.client import Client

with Client(sys.argv[1], model="m", protocol="v1") as client:
    print(client.predict({"a": [1, 2], "b": ["x", None]}).tolist())
ours = {n.split(".")[1] for n in sys.modules if n.startswith("scalai_nb.")}
print(sorted(ours - {"client", "environment", "errors", "files", "goals", "types"}))
"""


def test_a_client_needs_no_server_and_no_heavy_library():
    body = b'{"predictions": [0.25, 0.5]}'
    with serving(server := StandIn(body=body)):
        done = subprocess.run(
            [sys.executable, "-c", BARE, server.url], capture_output=True, text=True, timeout=60
        )
    assert done.stdout.splitlines() == ["[0.25, 0.5]", "[]"], done.stderr


# ---- a real worker

WORK = """
import socket, sys
from pathlib import Path
from scalai_nb.serving.process.options import Options
from scalai_nb.serving.process.worker import work
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(False)
work(sock, Path(sys.argv[2]), Options(("late",)))
"""


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "temp": ("row", np.where(rng.random(500) < 0.1, np.nan, rng.normal(50, 20, 500))),
            "hour": ("row", rng.integers(5, 23, 500)),
            "at": ("row", np.datetime64("2013-01-01", "us") + rng.integers(0, 10**13, 500)),
            "carrier": ("row", rng.integers(-1, 2, 500).astype("i1"), {"categories": ["AA", "UA"]}),
            "gate": ("row", rng.integers(1, 9, 500)),
            "late": ("row", rng.random(500) < 0.3),
        }
    )


@pytest.fixture(scope="module")
def model(data):
    t = sn.Transform(["temp", "hour", "at"], ["carrier", "gate"]).fit(data)
    return sn.package(
        t,
        sn.LogisticRegression().fit(t.transform(data), data.late.values),
        sn.Contract.infer(data, label="late"),
        name="late",
    )


@contextmanager
def worker(model, folder):
    "A worker that serves `model` as late@1, the champion: its address and process"
    model.save(folder / "package")
    version = {
        "path": str(folder / "package"),
        "digest": sha256((folder / "package/manifest.json").read_bytes()).hexdigest(),
        "aliases": ["champion"],
    }
    for name in ("metrics", "log"):
        (folder / name).mkdir()
    (folder / "routes.json").write_text(
        json.dumps(
            {
                "models": {
                    "late": {
                        "primary": "1",
                        "canary": None,
                        "shadow": None,
                        "versions": {"1": version},
                    }
                }
            }
        )
    )
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, str(sock.fileno()), str(folder)], pass_fds=[sock.fileno()]
        )
    try:
        with Client(url, timeout=30) as client:
            deadline = time.monotonic() + 30
            while not client.ready():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield url, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with worker(model, tmp_path_factory.mktemp("service")) as (url, _):
        yield url


def test_every_form_of_rows_scores_as_predict(url, model, data):
    inputs = ["temp", "hour", "at", "carrier", "gate"]
    expected, frame = model.predict(data).values, sn.to_frame(data)
    seconds = (data["at"].values - np.datetime64(0, "s")) / np.timedelta64(1, "s")
    text = frame[inputs].astype({"carrier": object, "gate": str})
    text["carrier"] = [c if isinstance(c, str) else None for c in text.carrier]
    records = [
        {n: None if n != "carrier" and v != v else v for n, v in r.items()}
        for r in text.to_dict("records")
    ]
    with Client(url, timeout=30) as client:
        for rows in (
            data,
            frame,
            frame.drop(columns="late"),
            records,
            {n: list(text[n]) for n in inputs},
            data.chunk(row=100),
        ):
            assert np.array_equal(client.predict(rows), expected), type(rows)
        assert np.array_equal(client.predict(records[0]), expected[:1])
        matrix = np.array(
            [
                [r[n] if n != "at" else s for n in (i["name"] for i in client.metadata()["inputs"])]
                for r, s in zip(records, seconds, strict=True)
            ],
            object,
        )
        assert np.array_equal(client.predict(matrix), expected)


def test_without_the_binary_extension_json_is_spoken(url, model, data):
    with Client(url, timeout=30) as client:
        assert "binary_tensor_data" in client.metadata()["extensions"]
        client._about["extensions"] = []
        assert np.array_equal(client.predict(data), model.predict(data))


def test_version_1_gives_the_same(url, model, data):
    some = data.drop_vars(["late", "at"]).assign(
        at=("row", data["at"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f").values),
        gate=data.gate.astype(str).astype(object),
    )
    with Client(url, timeout=30, protocol="v1", model="late") as client:
        assert np.array_equal(
            client.predict(some), model.predict(data.assign(at=data["at"].astype("M8[us]")))
        )


def test_many_rows_are_several_requests(url, model, data, monkeypatch):
    monkeypatch.setattr("scalai_nb.client.client.ROWS", 150)
    with Client(url, timeout=30) as client:
        assert np.array_equal(client.predict(data, id="mine"), model.predict(data))
        made, rows = zip(*(id.split(":") for id in client.last.ids), strict=True)
        assert [*map(int, rows)] == [*range(150)] * 3 + [*range(50)] and len({*made}) == 4
        with pytest.raises(WorkFailed, match="409: .* the request id 'mine.0' before"):
            client.predict(data, id="mine")
        wrong = data.assign(hour=("row", np.where(np.arange(500) == 321, 99, data.hour)))
        with pytest.raises(
            ContractViolation, match="In the rows from 300 on: Row 21, column 'hour'"
        ) as caught:
            client.predict(wrong)
        assert (caught.value.row, caught.value.column) == (321, "hour")


def test_what_is_known_of_the_last_prediction(url, model, data):
    with Client(url, timeout=30, model="late@champion", headers={"x-a": "b"}) as client:
        assert client.last is None
        scores = client.predict(data.isel(row=[0]))
        (id,) = client.last.ids
        assert (
            client.last.version == "1"
            and client.last.replica == url
            and 0 < client.last.seconds < 30
            and scores.shape == (1,)
        )
        other = []
        thread = threading.Thread(target=lambda: other.append(client.last))
        thread.start()
        thread.join()
        assert other == [None]
        assert (
            client.feedback(id, True) == 1
            and client.feedback(["a:0", "a:1"], np.array([0, 1])) == 2
        )
        many = [f"{i:0>150}" for i in range(1_100)]  # more than one request may hold
        assert client.feedback(many, np.zeros(1_100)) == 1_100
        with pytest.raises(ParameterError, match="2 ids and 1 truths"):
            client.feedback(["a", "b"], [1])


def test_the_server_says_what_is_wrong(url, data):
    with Client(url, timeout=30) as client:
        with pytest.raises(ContractViolation, match="'temp'"):
            client.predict(data.drop_vars("temp"))
        with pytest.raises(ContractViolation, match="Did you mean 'temp'"):
            client.predict(
                {"tmep": 1.0, "hour": 6, "at": "2013-01-01", "carrier": "AA", "gate": "1"}
            )
    with (
        Client(url, timeout=30, model="lte") as client,
        pytest.raises(ModelNotFound, match="Did you mean 'late'"),
    ):
        client.predict(data)
    with Client(url, timeout=30, model="late@9") as client, pytest.raises(ModelNotFound):
        client.predict(data)


def test_threads_share_a_client(url, model, data):
    expected, wrong = model.predict(data).values, []
    with Client(url, timeout=30) as client:

        def work(start):
            for i in range(start, 500, 8):
                if client.predict(data.isel(row=[i]))[0] != expected[i]:
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong and len(client.replicas.replicas[0].idle) <= 8


def test_a_forked_process_has_connections_of_its_own(url, data):
    "Two processes on one connection would get each other's answers"
    with Client(url, timeout=30) as client:
        client.predict(data)
        (kept,) = client.replicas.replicas[0].idle
        client.replicas.replicas[0].owner = os.getpid() + 1  # as a child sees it
        client.predict(data)
        assert kept not in client.replicas.replicas[0].idle
        kept.close()


def test_a_replica_that_is_killed_costs_no_request(model, data, tmp_path):
    expected = model.predict(data).values
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        worker(model, tmp_path / "a") as (a, process),
        worker(model, tmp_path / "b") as (b, _),
        Client([a, b], timeout=30) as client,
    ):
        asked = set()
        for i in range(200):
            if i == 100:
                os.kill(process.pid, signal.SIGKILL)
            assert client.predict(data.isel(row=[i]))[0] == expected[i]
            if i > 150:
                asked.add(client.last.replica)
    assert asked == {b}
