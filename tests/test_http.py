"""What serving.http promises: every whole request is answered once and in order

No client can take more than its share of memory, connections or time.
"""

import asyncio
import gc
import gzip
import json
import logging
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import Future
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from types import SimpleNamespace

import httpx
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings, strategies as st

from scalai_nb.serving.decoding.unpacking import decompressed
from scalai_nb.serving.exchange import HttpResponse
from scalai_nb.serving.wire.accepting import Accepting
from scalai_nb.serving.wire.host import Limits
from scalai_nb.serving.wire.http import Connection, Server
from scalai_nb.serving.wire.parsing import Incoming
from scalai_nb.metrics import Metrics

GET = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
PREDICT = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class App:
    "Says what it was asked; holds what is asked of /slow until it is let go"

    def __init__(self):
        self.admission, self.metrics, self.held, self.asked = (
            SimpleNamespace(full=False, retry=0.5),
            Metrics(),
            [],
            0,
        )

    async def __call__(self, x):
        self.asked += 1
        x.body = decompressed(x.body, x.headers.get("content-encoding", ""), 1 << 20)
        if x.path == "/bug":
            raise ZeroDivisionError("secret")
        if match := re.fullmatch(r"/big/(\d{1,9})", x.path):
            return HttpResponse(200, bytes(min(int(match[1]), 30_000_000)))
        if x.path.startswith("/slow"):
            call = SimpleNamespace(gone=False, free=asyncio.Event())
            self.held.append((x, call))
            try:
                await call.free.wait()
            except asyncio.CancelledError:
                call.gone = True
                raise
        about = {
            "method": x.method,
            "path": x.path,
            "body": x.body[:99].decode("latin-1"),
            "size": len(x.body),
            "client": x.client,
            "headers": x.headers,
        }
        return HttpResponse(200, json.dumps(about).encode())


class Served:
    "A server in a thread"

    def __init__(self, **limits):
        self.app, started = App(), Future()
        self.thread = threading.Thread(
            target=lambda: uvloop.run(self.main(Limits(**{"sweep": 0.02} | limits), started))
        )
        self.thread.start()
        started.result(10)

    async def main(self, limits, started):
        self.loop, self.server, self.done = (
            asyncio.get_running_loop(),
            Server(self.app, limits),
            asyncio.Event(),
        )
        listening = await self.loop.create_server(
            self.server.connection, "127.0.0.1", 0, backlog=1000
        )
        self.port = listening.sockets[0].getsockname()[1]
        started.set_result(None)
        await self.done.wait()
        listening.close()
        await self.server.drain(1)

    def run(self, function, *args):
        "In the server's thread"

        async def call():
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def let_go(self):
        self.run(lambda: [self.app.held.pop(0)[1].free.set() for _ in tuple(self.app.held)])

    def stop(self):
        self.run(self.done.set)
        self.thread.join(10)
        assert not self.thread.is_alive()

    @contextmanager
    def client(self, *data: bytes):
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as s:
            for piece in data:
                s.sendall(piece)
            yield s

    def ask(self, *data: bytes, count=1) -> list:
        "The answers to what is sent"
        with self.client(*data) as s:
            return answers(s, count)


@contextmanager
def serving(**limits):
    served = Served(**limits)
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def served():
    with serving() as s:
        yield s


def until(true, seconds=10):
    "Wait for a condition"
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def answers(s: socket.socket, count: int | None = 1, head=False) -> list:
    "(status, headers, body) of so many answers, or of all until the server closes"
    data, found = b"", []
    while count is None or len(found) < count:
        if match := re.match(rb"HTTP/1\.1 (\d+) [^\r]*((?:\r\n[^\r]+)*)\r\n\r\n", data):
            headers = dict(line.split(b": ", 1) for line in match[2].split(b"\r\n")[1:])
            end = match.end() + (0 if head else int(headers.get(b"content-length", 0)))
            if len(data) >= end:
                found.append((int(match[1]), headers, data[match.end() : end]))
                data = data[end:]
                continue
        if not (more := s.recv(65536)):
            break
        data += more
    assert data == b""
    return found


def closed(s: socket.socket) -> bool:
    "Whether the server closes now"
    try:
        return s.recv(1) == b""
    except ConnectionResetError:
        return True


def refused(served, *data, status: int, says: str = ""):
    "Is refused with `status` in JSON, and the connection ends"
    with served.client(*data) as s:
        got, headers, body = answers(s)[0]
        assert (
            got == status
            and headers[b"connection"] == b"close"
            and says in json.loads(body)["error"]
        ), (got, body)
        assert closed(s)


# ---- requests


def test_what_the_app_sees(served):
    [(status, headers, body)] = served.ask(
        b"POST /v2/models/late%20flight/infer?a=%20 HTTP/1.1\r\n"
        b"Host: x\r\n"
        b"X-A: 1\r\n"
        b"x-a:  2 \r\n"
        b"X-Client-Id: ada\r\n"
        b"Content-Length: 3\r\n"
        b"\r\n"
        b"abc"
    )
    about = json.loads(body)
    assert status == 200 and about["headers"]["x-a"] == "1, 2" and about["client"] == "127.0.0.1"
    assert (about["method"], about["path"], about["body"]) == (
        "POST",
        "/v2/models/late flight/infer",
        "abc",
    )
    assert (
        abs(parsedate_to_datetime(headers[b"date"].decode()).timestamp() - time.time()) < 60
        and headers[b"content-type"] == b"application/json"
    )
    assert json.loads(served.ask(GET)[0][2])["client"] == "127.0.0.1"


CHUNKED = (
    b"POST /c HTTP/1.1\r\n"
    b"Host: x\r\n"
    b"Transfer-Encoding: chunked\r\n"
    b"\r\n"
    b"3;x=y\r\n"
    b"abc\r\n"
    b"1\r\n"
    b"d\r\n"
    b"0\r\n"
    b"X-Client-Id: eve\r\n"
    b"\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_any_pieces(served, size):
    sent = b"\r\n" + PREDICT + CHUNKED + GET
    got = served.ask(*(sent[i : i + size] for i in range(0, len(sent), size)), count=3)
    abouts = [json.loads(body) for _, _, body in got]
    assert [(a["path"], a["body"], a["client"]) for a in abouts] == [
        ("/v1/models/m:predict", "{}", "127.0.0.1"),
        ("/c", "abcd", "127.0.0.1"),
        ("/echo", "", "127.0.0.1"),
    ]


def test_head_has_the_length_and_no_body(served):
    with served.client(GET.replace(b"GET", b"HEAD")) as s:
        [(status, headers, _)] = answers(s, head=True)
        assert status == 200 and int(headers[b"content-length"]) > 20
        s.sendall(GET)
        assert answers(s)[0][0] == 200  # nothing lies between


@pytest.mark.parametrize(
    "head, keeps, says",
    [
        (b"HTTP/1.1\r\nHost: x\r\n", True, None),
        (b"HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", False, b"close"),
        (b"HTTP/1.0\r\n", False, b"close"),
        (b"HTTP/1.0\r\nConnection: keep-alive\r\n", True, b"keep-alive"),
        (b"HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n", False, b"close"),
    ],
)
def test_keep_alive(served, head, keeps, says):
    with served.client(b"POST / %b\r\n" % head + b"0\r\n\r\n" * (b"chunked" in head)) as s:
        assert answers(s)[0][1].get(b"connection") == says
        if keeps:
            s.sendall(GET)
            assert answers(s)[0][0] == 200
        else:
            assert closed(s)


def test_pipelined_requests_are_answered_in_order(served):
    slow = [b"GET /slow/%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(4)]
    with served.client(
        b"".join(slow[:2]) + b"GET /fast HTTP/1.1\r\nHost: x\r\n\r\n" + slow[2]
    ) as s:
        for i in range(4):
            until(lambda: len(served.app.held) == 1)
            assert served.app.held[0][0].path == f"/slow/{i}"
            if i == 0:
                s.sendall(slow[3] + GET)  # what comes while an exchange is open waits too
            served.let_go()
        paths = [json.loads(body)["path"] for _, _, body in answers(s, 6)]
    assert paths == ["/slow/0", "/slow/1", "/fast", "/slow/2", "/slow/3", "/echo"]


def test_a_client_that_sends_on_without_waiting_is_not_read_from(served):
    with served.client(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") as s:
        until(lambda: served.app.held)
        s.settimeout(0.5)
        with pytest.raises(TimeoutError):
            s.sendall(PREDICT * 1_000_000)  # 70 MB
        [connection] = [c for c in served.server.connections if c.exchange]
        assert len(connection.ahead) <= 1 << 18
        served.let_go()
        s.settimeout(10)
        assert s.recv(12) == b"HTTP/1.1 200"


def test_requests_ahead_are_bounded():
    with serving(ahead=5) as served:
        assert [a[0] for a in served.ask(GET * 5, count=5)] == [200] * 5
        assert [a[0] for a in served.ask(GET * 9, count=None)] == [200] * 5 + [429]


def test_half_closed_connections_get_their_answers(served):
    with served.client(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + GET) as s:
        s.shutdown(socket.SHUT_WR)
        until(lambda: served.app.held)
        served.let_go()
        assert [a[0] for a in answers(s, None)] == [200, 200]


def test_who_has_gone_is_marked_and_answered_no_more(served):
    with served.client(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") as s:
        until(lambda: served.app.held)
        _, call = served.app.held[0]
        s.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # close by RST, as a process that is killed with data unread
    until(lambda: call.gone)
    served.let_go()
    until(lambda: not served.server.connections)


def test_expect_continue(served):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: "
    with served.client(head + b"3\r\n\r\n") as s:
        assert answers(s)[0][0] == 100
        s.sendall(b"abc")
        assert json.loads(answers(s)[0][2])["body"] == "abc"
    refused(served, head + b"999999999\r\n\r\n", status=413)


def test_an_offer_of_another_protocol_is_declined(served):
    offer = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    for body in (
        b"Content-Length: 3\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ):
        assert [
            json.loads(b)["body"] for _, _, b in served.ask((offer + body) * 3 + GET, count=4)
        ] == ["abc"] * 3 + [""]
    refused(served, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", status=405)


def test_a_bug_is_500_without_a_trace_and_the_connection_survives(served, caplog):
    with caplog.at_level(logging.ERROR):
        [bug, fine] = served.ask(GET.replace(b"/echo", b"/bug") + GET, count=2)
    assert (
        bug[0] == 500 and b"secret" not in bug[2] and b"Traceback" not in bug[2] and fine[0] == 200
    )
    assert [r.exc_info[0] for r in caplog.records] == [ZeroDivisionError]


def test_one_segment_for_an_answer(served):
    with served.client(GET) as s:
        answers(s)
        [connection] = [
            c
            for c in served.server.connections
            if c.transport.get_extra_info("peername") == s.getsockname()
        ]
        assert connection.transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY
        )


# ---- what is refused


@pytest.mark.parametrize(
    "sent, status",
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET /echo\r\n\r\n", 505),
        (b"GET /echo HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: \x00\r\n\r\n", 400),
        (
            (
                b"POST / HTTP/1.1\r\n"
                b"Host: x\r\n"
                b"Content-Length: 3\r\n"
                b"Transfer-Encoding: chunked\r\n"
                b"\r\n"
            ),
            400,
        ),  # each of these two readers may understand in two ways
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (
            (
                b"POST / HTTP/1.1\r\n"
                b"Host: x\r\n"
                b"Transfer-Encoding: chunked\r\n"
                b"\r\n"
                b"fffffffffffffffff\r\n"
            ),
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 9_000), 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n%b\r\n" % (b"a: b\r\n" * 101), 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\na: %b\r\n\r\n" % (b"b" * 17_000), 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n", 413),
    ],
)
def test_bad_requests(served, sent, status):
    asked = served.app.asked
    refused(served, sent, status=status)
    assert served.app.asked == asked


def test_a_refusal_comes_after_the_answers_before_it(served):
    assert [a[0] for a in served.ask(GET * 2 + b"nonsense\r\n\r\n", count=None)] == [200, 200, 400]


@pytest.mark.parametrize(
    "head", [b"Content-Length: 104857600\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"]
)
def test_a_body_of_100_mb_is_refused_while_it_comes(head):
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n" if b"chunked" in head else bytes(0x10000)
    with (
        serving(body=1 << 20, linger=10) as served,
        served.client(b"POST / HTTP/1.1\r\nHost: x\r\n" + head) as s,
    ):
        for _ in range(1600):
            s.sendall(piece)  # a client that sends all before it reads can still read why
        assert answers(s)[0][0] == 413


@pytest.mark.parametrize("more", [b"\0garbage\r\n\r\n", GET, GET + b"\0garbage\r\n\r\n"])
@pytest.mark.parametrize("last", [b"HTTP/1.1\r\nHost: x\r\nConnection: close", b"HTTP/1.0"])
def test_nothing_is_said_after_the_last_answer(served, caplog, more, last):
    "Found by the fuzz: what came with the last request was refused on a closed stream"
    with served.client(GET + b"GET /last " + last + b"\r\n\r\n" + more) as s:
        assert [status for status, *_ in answers(s, None)] == [200, 200]
    until(lambda: not served.server.connections)
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("endless", [b"a", b"a: b\r\n", b"0\r\n"])
def test_endless_heads_chunks_and_trailers_are_refused(served, endless):
    start = (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: "
        if endless == b"0\r\n"
        else b"GET / HTTP/1.1\r\nx: "
    )
    with served.client(start) as s:
        try:
            for _ in range(1000):
                s.sendall(endless.strip() * 1000 if endless != b"a: b\r\n" else endless * 1000)
        except OSError:
            pass
        assert answers(s)[0][0] in (400, 431)


def test_unfinished_bodies_are_bounded_together():
    with serving(kept=1 << 20) as served:
        clients = [
            socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(4)
        ]
        for s in clients:
            s.sendall(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + bytes(400_000)
            )
        until(
            lambda: (
                served.server.metrics.counters["scalai_requests_total", "", "", "http", "503"] >= 1
            )
        )
        for s in clients:
            s.close()
        until(lambda: not served.server.connections)
        assert served.server.kept == 0
        assert (
            json.loads(
                served.ask(
                    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n", bytes(900_000)
                )[0][2]
            )["size"]
            == 900_000
        )


# ---- content-encoding


def test_encoded_bodies(served):
    def post(body, encoding):
        return (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
            % (encoding, len(body))
            + body
        )

    sent = [
        post(gzip.compress(b"abc"), b"gzip"),
        post(zlib.compress(b"abc"), b"Deflate"),
        post(b"abc", b"identity"),
        post(b"abc", b"gzip"),
        post(gzip.compress(b"abc")[:-3], b"gzip"),
        post(gzip.compress(b"abc") + b"x", b"gzip"),
        post(b"abc", b"zstd"),
        GET,
    ]
    got = served.ask(*sent, count=8)
    assert [a[0] for a in got] == [200, 200, 200, 400, 400, 400, 415, 200] and {
        json.loads(a[2])["body"] for a in got[:3]
    } == {"abc"}
    assert "gzip, deflate" in json.loads(got[6][2])["error"]


def test_a_bomb_is_refused_before_it_goes_off():
    bomb = gzip.compress(bytes(200_000_000), 9)
    with serving(body=1 << 20) as served:
        tracemalloc.start()
        [(status, *_)] = served.ask(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
            % len(bomb)
            + bomb
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert status == 413 and peak < 8 << 20


# ---- time


@pytest.mark.parametrize(
    "start",
    [b"P", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\n", PREDICT[:-1], CHUNKED[:-9], GET + b"GET"],
)
def test_who_does_not_finish_is_told_and_closed(start):
    with serving(head_time=0.1, body_time=0.1, linger=0.1) as served, served.client(start) as s:
        got = answers(s, None)
        assert got[-1][0] == 408 and len(got) == 1 + start.count(GET)
        until(lambda: not served.server.connections)


def test_a_slow_client_that_goes_on_is_waited_for():
    with (
        serving(body_time=0.1, rate=20) as served,
        served.client(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n" + bytes(10)) as s,
    ):
        for _ in range(3):
            time.sleep(0.2)  # twice the time of a body: 10 bytes buy 0.5 s
            s.sendall(bytes(10))
        assert answers(s)[0][0] == 200


def test_idle_connections_are_closed_silently():
    with serving(idle=0.1) as served:
        with served.client() as s:
            assert closed(s)
        with served.client(GET) as s:
            assert answers(s)[0][0] == 200 and closed(s)
        until(
            lambda: not served.server.connections and not served.server.timer
        )  # nothing is left to do, not even by a clock


def test_who_does_not_read_is_cut_off_and_holds_little():
    big = b"GET /big/4000000 HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(stuck=0.3, idle=0.2) as served, served.client(big * 100) as s:
        until(lambda: served.app.asked)
        until(lambda: not served.server.connections)
        assert served.app.asked < 5
        s.settimeout(0.5)
    with (
        serving(stuck=0.3) as served,
        served.client(b"GET /big/30000000 HTTP/1.1\r\nHost: x\r\n\r\n") as s,
    ):  # who reads slowly is not
        got = 0
        while got < 30_000_000:
            time.sleep(0.02)
            got += len(more := s.recv(1_000_000))
            assert more


# ---- many


def test_most_connections():
    with serving(connections=3) as served:
        clients = [
            socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(3)
        ]
        until(lambda: len(served.server.connections) == 3)
        with served.client() as s:
            status, headers, _ = answers(s)[0]
            assert status == 503 and headers[b"retry-after"] == b"1" and closed(s)
        until(lambda: len(served.server.connections) == 3)
        for s in clients:
            s.close()
        until(lambda: not served.server.connections)
        assert served.ask(GET)[0][0] == 200


def test_full_refuses_predictions_unread_and_nothing_else():
    with serving() as served:
        served.app.admission.full = True
        with served.client(PREDICT) as s:
            for _ in range(3):
                status, headers, body = answers(s)[0]
                assert (
                    status == 503
                    and headers[b"retry-after"] == b"1"
                    and "come again" in json.loads(body)["error"]
                )
                s.sendall(PREDICT)
            answers(s)
        assert (
            served.app.asked == 0 and served.app.metrics.counters["scalai_shed_total", "full"] == 4
        )
        others = [
            GET,
            PREDICT.replace(b"POST", b"PUT"),
            PREDICT.replace(b"v1/models/m:predict", b"feedback"),
            PREDICT.replace(b"v1/models/m:predict", b"v2/repository/index"),
            PREDICT.replace(b"x\r\n", b"x\r\nConnection: close\r\n"),
            PREDICT.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ]
        for sent in others:
            assert served.ask(sent)[0][0] == 200  # the app decides
        assert [a[0] for a in served.ask(PREDICT + GET, count=2)] == [200, 200]
        with served.client(PREDICT[:-1]) as s:
            until(lambda: any(c.requests.next for c in served.server.connections))
            s.sendall(PREDICT[-1:])
            assert answers(s)[0][0] == 200
        served.app.admission.full = False
        assert served.ask(PREDICT)[0][0] == 200


def test_clients_reuse_their_connections(served):
    client = HTTPConnection("127.0.0.1", served.port, timeout=10)
    for i in range(3):
        client.request("POST", f"/{i}", b"abc")
        if i == 0:
            used = client.sock
        assert json.loads(client.getresponse().read())["path"] == f"/{i}" and client.sock is used
    client.close()
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}") as client:
        for _ in range(3):
            assert client.post("/x", content=iter([b"a", b"bc"])).json()["body"] == "abc"
        ports = {c.transport.get_extra_info("peername")[1] for c in served.server.connections}
        assert client.get("/y").json()["path"] == "/y" and ports == {
            c.transport.get_extra_info("peername")[1] for c in served.server.connections
        }


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--http1.0"],
        ["--http2"],
        ["-H", "Expect: 100-continue"],
        ["-H", "Transfer-Encoding: chunked"],
    ],
)
def test_curl(served, options):
    url = f"http://127.0.0.1:{served.port}"
    run = subprocess.run(
        ["curl", "-sS", *options, "--data-binary", "@-", url + "/a", url + "/b"],
        input=b"x" * 2_000_000,
        capture_output=True,
        timeout=20,
    )
    assert (
        run.stderr == b""
        and run.stdout.count(b'"size": 2000000') == 2
        and b'"path": "/b"' in run.stdout
    )


# ---- the end


def test_drain_answers_what_is_open():
    with (
        serving() as served,
        served.client(GET) as idle,
        served.client(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + GET) as open_,
        served.client(PREDICT[:-1]) as partial,
    ):
        assert answers(idle)[0][0] == 200
        until(
            lambda: (
                served.app.held
                and len(served.server.connections) == 3
                and any(c.requests.next for c in served.server.connections)
            )
        )
        drained = asyncio.run_coroutine_threadsafe(served.server.drain(10), served.loop)
        assert closed(idle)
        partial.sendall(b"}")
        status, headers, _ = answers(partial)[0]
        assert status == 200 and headers[b"connection"] == b"close" and not drained.done()
        served.let_go()
        status, headers, _ = answers(open_)[0]
        assert status == 200 and headers[b"connection"] == b"close"
        assert drained.result(10) == 0


def test_drain_cuts_off_what_takes_too_long():
    with serving() as served, served.client(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") as s:
        until(lambda: served.app.held)
        assert (
            asyncio.run_coroutine_threadsafe(served.server.drain(0.1), served.loop).result(10) == 1
        )
        assert closed(s)
        until(lambda: served.app.held[0][1].gone)


# ---- anything

SEEDS = [
    GET,
    PREDICT,
    CHUNKED,
    GET.replace(b"GET", b"HEAD"),
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 23\r\n\r\n"
    + gzip.compress(b"abc"),
    b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /big/1000000 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n",
    CHUNKED.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost"),
]


@st.composite
def mutated(draw):
    "Requests with bytes changed, left out, put in and repeated"
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 5))):
        i = draw(st.integers(0, len(data)))
        j = min(len(data), i + draw(st.integers(0, 8)))
        data[i:j] = draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(bytes(data[i:j]) * 2),
                st.sampled_from([b"\r\n", b": ", b"chunked", b"0\r\n\r\n", b"99"]),
            )
        )
    return bytes(data)


@pytest.fixture(scope="module")
def fuzzed():
    with serving(head_time=0.05, body_time=0.05, idle=0.05, linger=0.05, stuck=0.05) as s:
        yield s


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(mutated(), mutated(), st.binary(max_size=200)),
    st.integers(1, 50),
    st.sampled_from(["read", "half-close", "reset"]),
)
def test_whatever_comes_there_is_an_end(fuzzed, data, size, then):
    with fuzzed.client() as s:
        try:
            for i in range(0, len(data), size):
                s.sendall(data[i : i + size])
            if then == "half-close":
                s.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has been refused
        if then == "reset":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            assert statuses(fuzzed, s) <= {
                100,
                200,
                400,
                405,
                408,
                413,
                414,
                415,
                429,
                431,
                501,
                505,
            }
    until(lambda: fuzzed.let_go() or not fuzzed.server.connections)
    assert fuzzed.server.kept == 0


def statuses(served, s: socket.socket) -> set:
    "Of all answers until the server closes, which it must"
    s.settimeout(0.02)
    got, end = b"", time.monotonic() + 10
    while time.monotonic() < end:
        served.let_go()
        try:
            more = s.recv(1 << 20)
        except TimeoutError:
            continue
        except ConnectionResetError:
            more = b""
        if not more:
            return {int(m) for m in re.findall(rb"HTTP/1\.1 (\d+) ", got)}
        got += more
    raise AssertionError("the server did not close")


def test_nothing_is_left_of_a_connection(served):
    "Not even for the garbage collector"
    until(lambda: not served.server.connections)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            served.ask(GET + PREDICT + CHUNKED, count=3)
            served.ask(b"nonsense\r\n\r\n", count=None)
            served.ask(CHUNKED[:60], count=0)
        until(lambda: not served.server.connections)
        served.run(lambda: None)
        assert [o for o in gc.get_objects() if issubclass(type(o), Connection | Incoming)] == []
    finally:
        gc.enable()


def test_a_connection_that_waits_when_a_worker_ends_is_taken():
    async def work():
        taken = []

        class Taken(asyncio.Protocol):
            def connection_made(self, transport):
                taken.append(transport)

        board = SimpleNamespace(connections=[0], yields=lambda slot: False)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            accepting = Accepting(loop, sock, Taken, board, 0, lambda: len(taken))
            accepting.start()
            with socket.create_connection(sock.getsockname()):
                accepting.stop()
                await asyncio.gather(*accepting.opening)
                assert len(taken) == 1 and not accepting.started
                taken[0].close()
                await asyncio.sleep(0)

    asyncio.run(work())
