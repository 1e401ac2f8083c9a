"""HTTP/2 over raw sockets: what RFC 9113 asks for, and what a client cannot do to the server"""

import json
import os
import socket
import subprocess
from shutil import which
from struct import pack

import pytest
from hpack import Decoder, Encoder
from hypothesis import HealthCheck, given, settings, strategies as st
from test_http import Served, serving, until

from scalai_nb.serving.wire.headers import literal
from scalai_nb.serving.wire.http2 import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    frame,
)


def block(path=b"/echo", method=b"POST", *more) -> bytes:
    return literal(
        (b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"), *more
    )


def asked(id=1, path=b"/echo", body=b"", *more) -> bytes:
    "A request as it is sent"
    return frame(HEADERS, END_HEADERS, id, block(path, b"POST", *more)) + frame(
        DATA, END_STREAM, id, body
    )


class Client:
    "A connection, and the frames that come over it"

    def __init__(self, served: Served, *data: bytes, settings=b"", greet=True):
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        self.buffer, self.decoder = b"", Decoder()
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings) if greet else b"", *data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *data: bytes):
        for d in data:
            self.socket.sendall(d)

    def frame(self):
        "The next frame: type, flags, stream, payload; None at the end"
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3]):
            try:
                data = self.socket.recv(65_536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.buffer += data
        n = int.from_bytes(self.buffer[:3])
        head, payload, self.buffer = self.buffer[3:9], self.buffer[9 : 9 + n], self.buffer[9 + n :]
        return head[0], head[1], int.from_bytes(head[2:]), payload

    def until(self, kind: int, flags=0):
        "The next frame of a type with some flags"
        while (f := self.frame()) and not (f[0] == kind and f[1] & flags == flags):
            pass
        assert f, "the connection was closed"
        return f

    def answer(self, id=1):
        "The headers and the body of a stream"
        headers, body = {}, b""
        while f := self.frame():
            if f[0] == HEADERS:
                fields = dict(self.decoder.decode(f[3]))
                if f[2] == id:
                    headers |= fields
            if f[2] == id and f[0] == DATA:
                body += f[3]
            if f[2] == id and f[0] == RST_STREAM:
                return "reset", int.from_bytes(f[3])
            if f[2] == id and f[1] & END_STREAM and f[0] in (DATA, HEADERS):
                return headers, body
        raise AssertionError("the connection was closed")

    def ended(self) -> int:
        "The code with which the server closes the connection"
        code = int.from_bytes(self.until(GOAWAY)[3][4:8])
        while self.frame():
            pass
        return code


@pytest.fixture(scope="module")
def served():
    with serving() as s:
        yield s


def test_a_request(served):
    with Client(served, asked(1, b"/e%20cho?a=1", b"hello", (b"x-tag", b"a"))) as c:
        headers, body = c.answer()
    said = json.loads(body)
    assert headers[":status"] == "200" and headers["content-length"] == str(len(body))
    assert (said["method"], said["path"], said["query"], said["body"], said["headers"]) == (
        "POST",
        "/e cho",
        "a=1",
        "hello",
        {"x-tag": "a", "host": "x"},
    )


@pytest.mark.skipif(not which("curl"), reason="no curl")
def test_curl(served):
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "--http2-prior-knowledge",
            "-d",
            "x=1",
            f"http://127.0.0.1:{served.port}/echo",
        ],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert json.loads(done.stdout)["body"] == "x=1"


@pytest.mark.parametrize("size", [1, 7])
def test_any_pieces(served, size):
    data = PREFACE + frame(SETTINGS, 0, 0) + asked(1, b"/echo", b"abc")
    with Client(served, *(data[i : i + size] for i in range(0, len(data), size)), greet=False) as c:
        assert json.loads(c.answer()[1])["body"] == "abc"


def test_padding_priority_continuation_and_trailers(served):
    b = block()
    parts = (
        frame(HEADERS, PADDED | PRIORITIZED, 1, b"\x03" + bytes(5) + b[:9] + bytes(3)),
        frame(CONTINUATION, 0, 1, b[9:20]),
        frame(CONTINUATION, END_HEADERS, 1, b[20:]),
        frame(DATA, PADDED, 1, b"\x02abc\0\0"),
        frame(PRIORITY, 0, 3, bytes(5)),
        frame(99, 7, 1, b"unknown"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, literal((b"x-end", b"1"))),
    )
    with Client(served, *parts) as c:
        assert json.loads(c.answer()[1])["body"] == "abc"


def test_the_table_of_headers(served):
    encode = Encoder().encode
    fields = lambda n: [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        ("x-n", n),
    ]  # of each new `n` the second block is that of the `n` before it
    with Client(served) as c:
        for i, n in enumerate("aaabbbaaabc"):
            c.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, encode(fields(n))))
            assert json.loads(c.answer(2 * i + 1)[1])["headers"] == {"x-n": n}


def test_streams_are_answered_as_they_are_ready(served):
    with Client(served, asked(1, b"/slow", b"abc"), asked(3, b"/slow"), asked(5)) as c:
        assert c.answer(5)[0][":status"] == "200"
        until(lambda: len(served.app.held) == 2)
        assert served.server.unfinished == 0
        served.let_go()
        assert c.answer(1) and c.answer(3)


def test_small_windows(served):
    "An answer of 100,000 bytes through windows of 1,000 and 65,535"
    with Client(
        served, asked(1, b"/big?100000"), settings=pack(">HI", INITIAL_WINDOW_SIZE, 1000)
    ) as c:
        got = len(c.until(DATA)[3])
        assert got == 1000
        c.send(frame(PING, 0, 0, b"12345678"))
        assert c.until(PING, ACK)  # no byte more comes by itself
        c.send(
            frame(SETTINGS, 0, 0, pack(">HI", INITIAL_WINDOW_SIZE, 200_000))
        )  # the stream's window grows by the difference
        while got < 65_535:
            got += len(c.until(DATA)[3])
        assert got == 65_535
        c.send(frame(WINDOW_UPDATE, 0, 0, pack(">I", 50_000)))
        while not (f := c.until(DATA))[1] & END_STREAM:
            got += len(f[3])
        assert got == 100_000


def test_a_long_body_is_told_to_go_on(served):
    with Client(served, frame(HEADERS, END_HEADERS, 1, block())) as c:
        credit = {0: 65_535, 1: 1 << 20}
        sent = 0
        while sent < 5 << 20:
            while min(credit.values()) < 16_384:
                f = c.until(WINDOW_UPDATE)
                credit[f[2]] += int.from_bytes(f[3])
            c.send(frame(DATA, 0, 1, bytes(16_384)))
            sent += 16_384
            for k in credit:
                credit[k] -= 16_384
        c.send(frame(DATA, END_STREAM, 1))
        assert json.loads(c.answer()[1])["size"] == sent
    assert served.server.unfinished == 0


def test_a_body_that_is_too_large_is_refused_while_it_comes():
    with (
        serving(body=100_000) as served,
        Client(
            served,
            frame(HEADERS, END_HEADERS, 1, block()),
            *[frame(DATA, 0, 1, bytes(10_000))] * 11,
        ) as c,
    ):
        assert c.answer()[0][":status"] == "413" and c.until(RST_STREAM)[3] == pack(">I", NO_ERROR)
        c.send(frame(DATA, 0, 1, bytes(10)), asked(3))  # what was under way is passed over
        assert c.answer(3)[0][":status"] == "200" and served.server.unfinished == 0


def test_unfinished_bodies_are_bounded_together():
    with serving(unfinished=50_000) as served, Client(served) as c:
        for id in (1, 3, 5):
            c.send(frame(HEADERS, END_HEADERS, id, block()), frame(DATA, 0, id, bytes(16_000)))
        for id in (7, 9):
            c.send(frame(HEADERS, END_HEADERS, id, block()), frame(DATA, 0, id, bytes(16_000)))
        assert c.answer(9)[0][":status"] == "503"
        c.socket.close()
        until(lambda: served.server.unfinished == 0 and not served.server.connections)


def test_who_does_not_finish_is_refused():
    with (
        serving(body_time=0.1) as served,
        Client(served, frame(HEADERS, END_HEADERS, 1, block())) as c,
    ):
        assert c.answer()[0][":status"] == "408"


def test_who_does_not_finish_a_frame_is_cut_off():
    with serving(head_time=0.1) as served, Client(served, asked(1)[:20]) as c:
        while c.frame():
            pass


def test_idle_connections_are_let_go():
    with serving(idle=0.1) as served, Client(served) as c:
        assert c.ended() == NO_ERROR


def test_who_leaves_its_answers_is_cut_off():
    with (
        serving(stuck=0.1) as served,
        Client(served, asked(1, b"/big?100000"), settings=pack(">HI", INITIAL_WINDOW_SIZE, 0)) as c,
    ):
        while c.frame():
            pass
        until(lambda: not served.server.connections and served.server.unfinished == 0)


def test_a_reset_marks_the_call(served):
    with Client(served, asked(1, b"/slow")) as c:
        until(lambda: served.app.held)
        c.send(frame(RST_STREAM, 0, 1, pack(">I", 8)), frame(PING, 0, 0, bytes(8)))
        c.until(PING, ACK)
        assert served.app.held[0][1].gone
        served.let_go()  # is written nowhere
        c.send(asked(3))
        assert c.answer(3)


def test_a_reset_lets_go_of_what_waited(served):
    with Client(
        served, asked(1, b"/big?100000"), settings=pack(">HI", INITIAL_WINDOW_SIZE, 0)
    ) as c:
        until(lambda: served.server.unfinished)
        c.send(frame(RST_STREAM, 0, 1, pack(">I", 8)))
        until(
            lambda: (
                served.server.unfinished == 0 and not next(iter(served.server.connections)).waiting
            )
        )


def test_who_has_gone_is_marked(served):
    with Client(served, asked(1, b"/slow")):
        until(lambda: served.app.held)
    until(lambda: served.app.held[0][1].gone)
    served.let_go()


def test_half_closed_connections_get_their_answers(served):
    with Client(served, asked(1, b"/slow")) as c:
        until(lambda: served.app.held)
        c.socket.shutdown(socket.SHUT_WR)
        served.run(lambda: None)
        served.let_go()
        assert c.answer()[0][":status"] == "200" and c.frame() is None


def test_drain():
    with serving() as served, Client(served, asked(1, b"/slow")) as c, Client(served) as idle:
        until(lambda: served.app.held and len(served.server.connections) == 2)
        served.run(lambda: [x.finish() for x in tuple(served.server.connections)])
        assert int.from_bytes(c.until(GOAWAY)[3][:4]) == 1 and idle.ended() == NO_ERROR
        c.send(asked(3))  # is not answered: the client was told to ask elsewhere
        served.let_go()
        assert c.answer(1)[0][":status"] == "200" and c.frame() is None and served.app.asked == 1


def test_a_client_that_goes_away_is_let_go(served):
    "What it has asked is answered; then the connection is closed"
    with Client(served, asked(1, b"/slow")) as c:
        until(lambda: served.app.held)
        c.send(frame(GOAWAY, 0, 0, pack(">II", 1, NO_ERROR)))
        assert int.from_bytes(c.until(GOAWAY)[3][:4]) == 1
        served.let_go()
        assert c.answer(1)[0][":status"] == "200" and c.frame() is None


def test_most_streams(served):
    with Client(served, *(asked(i, b"/slow") for i in range(1, 2001, 2)), asked(2001)) as c:
        assert c.answer(2001) == ("reset", REFUSED_STREAM)
        c.send(frame(WINDOW_UPDATE, 0, 0, pack(">I", 1 << 20)))
        served.let_go()
        assert c.answer(1999)
        c.send(asked(2003))
        assert c.answer(2003)[0][":status"] == "200"


def test_a_bug_is_500_and_the_connection_survives(served, caplog):
    with Client(served, asked(1, b"/bug"), asked(3)) as c:
        headers, body = c.answer(1)
        assert headers[":status"] == "500" and b"secret" not in body and c.answer(3)
    assert "/bug failed" in caplog.text


MALFORMED = {
    "upper case": block(b"/", b"GET", (b"X-Tag", b"a")),
    "connection": block(b"/", b"GET", (b"connection", b"close")),
    "line": block(b"/", b"GET", (b"x", b"a\r\nb: c")),
    "no path": literal((b":method", b"GET"), (b":scheme", b"http")),
    "twice": block(b"/", b"GET", (b":path", b"/")),
    "te": block(b"/", b"GET", (b"te", b"gzip")),
}


@pytest.mark.parametrize("wrong", MALFORMED)
def test_malformed_requests_are_reset(served, wrong):
    with Client(
        served, frame(HEADERS, END_HEADERS | END_STREAM, 1, MALFORMED[wrong]), asked(3)
    ) as c:
        assert c.answer(1) == ("reset", PROTOCOL_ERROR) and c.answer(3)[0][":status"] == "200"


RESET = {
    "DATA after the end": (asked(1, b"/slow") + frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
    "HEADERS after the end": (
        asked(1, b"/slow") + frame(HEADERS, END_HEADERS | END_STREAM, 1, block()),
        STREAM_CLOSED,
    ),
    "trailers without an end": (
        frame(HEADERS, END_HEADERS, 1, block())
        + frame(HEADERS, END_HEADERS, 1, literal((b"x", b"1"))),
        PROTOCOL_ERROR,
    ),
    "window of nothing": (
        asked(1, b"/slow") + frame(WINDOW_UPDATE, 0, 1, bytes(4)),
        PROTOCOL_ERROR,
    ),
    "window too large": (
        asked(1, b"/slow") + frame(WINDOW_UPDATE, 0, 1, pack(">I", 2**31 - 1)),
        FLOW_CONTROL_ERROR,
    ),
}


@pytest.mark.parametrize("wrong", RESET)
def test_errors_of_a_stream(served, wrong):
    data, code = RESET[wrong]
    with Client(served, data, asked(3)) as c:
        assert c.answer(1) == ("reset", code) and c.answer(3)[0][":status"] == "200"
    served.let_go()


CLOSED = {
    "no settings": (PREFACE + frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
    "even stream": (asked(2), PROTOCOL_ERROR),
    "stream 0": (asked(0), PROTOCOL_ERROR),
    "older stream": (asked(5) + asked(3), STREAM_CLOSED),
    "DATA for a stream that never was": (frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "reset of a stream that never was": (frame(RST_STREAM, 0, 1, bytes(4)), PROTOCOL_ERROR),
    "reset of the connection": (frame(RST_STREAM, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "window of a stream that never was": (
        frame(WINDOW_UPDATE, 0, 1, pack(">I", 1)),
        PROTOCOL_ERROR,
    ),
    "long frame": (frame(DATA, 0, 1, bytes(16_385)), FRAME_SIZE_ERROR),
    "short PING": (frame(PING, 0, 0, b"1"), FRAME_SIZE_ERROR),
    "PING of a stream": (frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "SETTINGS of a stream": (frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    "SETTINGS cut off": (frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "ACK with something": (frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
    "huge initial window": (
        frame(SETTINGS, 0, 0, pack(">HI", INITIAL_WINDOW_SIZE, 2**31)),
        FLOW_CONTROL_ERROR,
    ),
    "small frames": (frame(SETTINGS, 0, 0, pack(">HI", 5, 100)), PROTOCOL_ERROR),
    "window of nothing": (frame(WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "window too large": (frame(WINDOW_UPDATE, 0, 0, pack(">I", 2**31 - 1)), FLOW_CONTROL_ERROR),
    "push": (frame(PUSH_PROMISE, 0, 1, bytes(4)), PROTOCOL_ERROR),
    "CONTINUATION of nothing": (frame(CONTINUATION, 0, 1), PROTOCOL_ERROR),
    "PING between": (frame(HEADERS, 0, 1, block()) + frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
    "CONTINUATION of another": (
        frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, 0, 3),
        PROTOCOL_ERROR,
    ),
    "padding": (frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09" + bytes(5)), PROTOCOL_ERROR),
    "index that is not there": (frame(HEADERS, END_HEADERS, 1, b"\xff\x50"), COMPRESSION_ERROR),
    "flood of PING": (frame(PING, 0, 0, bytes(8)) * 1100, ENHANCE_YOUR_CALM),
    "flood of SETTINGS": (frame(SETTINGS, 0, 0) * 1100, ENHANCE_YOUR_CALM),
    "flood of PRIORITY": (frame(PRIORITY, 0, 1, bytes(5)) * 1100, ENHANCE_YOUR_CALM),
    "flood of CONTINUATION": (
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 1100,
        ENHANCE_YOUR_CALM,
    ),
    "flood of empty DATA": (
        frame(HEADERS, END_HEADERS, 1, block()) + frame(DATA, 0, 1) * 1100,
        ENHANCE_YOUR_CALM,
    ),
    "rapid reset": (
        b"".join(asked(i, b"/slow") + frame(RST_STREAM, 0, i, bytes(4)) for i in range(1, 2300, 2)),
        ENHANCE_YOUR_CALM,
    ),
    "endless header block": (
        frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 2,
        ENHANCE_YOUR_CALM,
    ),
    "bomb of headers": (
        frame(HEADERS, END_HEADERS, 1, b"\x40\x01x\x7f\x81\x1b" + b"y" * 3584 + b"\xbe" * 9000),
        COMPRESSION_ERROR,
    ),
}


@pytest.mark.parametrize("wrong", CLOSED)
def test_errors_of_the_connection(served, wrong):
    data, code = CLOSED[wrong]
    with Client(served, data, greet=wrong != "no settings") as c:
        assert c.ended() == code
    until(lambda: not served.server.connections)
    served.let_go()


@pytest.fixture(scope="module")
def fuzzed():
    with serving() as s:
        yield s


frames = st.builds(
    lambda kind, flags, id, payload: frame(kind, flags, id, payload),
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
    st.binary(max_size=40)
    | st.just(block())
    | st.sampled_from([bytes(4), bytes(5), bytes(8), pack(">HI", 4, 0)]),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.lists(
        frames | st.binary(max_size=60) | st.just(asked(1, b"/echo", b"x")), max_size=12
    ).map(b"".join)
)
def test_whatever_comes_there_is_an_end(fuzzed, data):
    with Client(fuzzed) as c:
        try:
            c.send(data)
            c.socket.shutdown(socket.SHUT_WR)
            while f := c.frame():
                if f[0] == HEADERS:
                    assert b":status\x03500" not in f[3]
        except OSError:
            pass  # the server was first to close
    until(lambda: not fuzzed.server.connections)
    assert fuzzed.server.unfinished == 0


def test_nothing_is_left_of_a_connection(served):
    for _ in range(5):
        with Client(served, *(asked(i, b"/echo", os.urandom(9)) for i in range(1, 100, 2))) as c:
            c.answer(99)
    until(lambda: not served.server.connections)
    assert served.server.unfinished == 0
