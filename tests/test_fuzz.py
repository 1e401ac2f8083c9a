"""Requests that were good and were broken, at random: none ends a worker, none is its mistake

`pytest -m campaign -s tests/test_fuzz.py` goes on for five minutes.
"""

import random
import socket
import time
from collections import Counter
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from attacking import listener, memory
from served import late_model, plain_model, worker

ROW = b'{"instances":[[1,2,3,4]]}'
INFER = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
LATE = b'{"temp":50,"hour":6,"time":"2013-01-31T06:00:00","night":true,"carrier":"AA"}'


def _request(method: bytes, path: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: x", *headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


GOOD = [
    _request(b"POST", b"/v1/models/plain:predict", ROW),
    _request(
        b"POST", b"/v2/models/plain/infer", INFER, b"X-Request-Id: a", b"Expect: 100-continue"
    ),
    _request(b"POST", b"/predict/late", LATE, b"Accept: text/csv"),
    _request(b"POST", b"/predict/plain", b"a,b,c,d\n1,2,3,4\n", b"Content-Type: text/csv"),
    _request(b"POST", b"/feedback", b'{"id":"a","truth":1}', b"X-Request-Timeout-Ms: 100"),
    _request(b"GET", b"/v2/models/late", b"", b"Traceparent: 00-1-2-01"),
    _request(b"GET", b"/v2/models/plain/stats"),
    _request(b"GET", b"/metrics", b"", b"Accept: application/openmetrics-text"),
    _request(b"OPTIONS", b"/predict", b"", b"Origin: http://x"),
    _request(b"HEAD", b"/docs"),
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\n\r\n",
]
PARTS = [
    b"\r\n",
    b"\0",
    b"\xff",
    b"Content-Length: 7\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"[",
    b'"',
    b"1e999",
    b"-0",
    b"NaN",
    b"\xed\xa0\x80",
    b"%00",
    b"/../",
    b"9" * 40,
    b"\t",
    b":",
    b" ",
]


def _broken(r: random.Random) -> bytes:
    "A good request, or some, after a few strokes"
    data = bytearray(b"".join(r.choices(GOOD, k=r.choice([1, 1, 1, 3]))))
    for _ in range(r.choice([1, 1, 2, 4, 8])):
        at, end = sorted((r.randrange(len(data) + 1), r.randrange(len(data) + 1)))
        stroke = r.randrange(6)
        if stroke == 0 and at < len(data):
            data[at] ^= 1 << r.randrange(8)
        elif stroke == 1:
            data[at:at] = r.choice(PARTS)
        elif stroke == 2:
            del data[at : min(end, at + 20)]
        elif stroke == 3:
            data[at:at] = data[at:end]
        elif stroke == 4:
            data[at:at] = r.choice(GOOD)
        else:
            data[at:end] = bytes(r.randrange(256) for _ in range(min(end - at, 9)))
        if not data:
            return b"\r\n"
    return bytes(data[:100_000])


def _said(at: tuple[str, int], data: bytes) -> list[int]:
    "The statuses of the answers to what is sent"
    found = b""
    with suppress(OSError), socket.create_connection(at, timeout=5) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        while part := s.recv(65536):
            found += part
    lines = [line for line in found.split(b"\r\n") if b"HTTP/1.1 " in line]
    return [int(line.partition(b"HTTP/1.1 ")[2][:3]) for line in lines]


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(300, marks=[pytest.mark.campaign, pytest.mark.timeout(600)])]
)
def test_broken_requests(tmp_path, seconds):
    seed, said = random.Random(2026), Counter()
    with worker(tmp_path, {"plain": plain_model(), "late": late_model()}) as url:
        at = urlsplit(url).hostname, urlsplit(url).port
        process = listener(at[1])
        before, end, n = memory(process), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            data, n = _broken(seed), n + 1
            for status in _said(at, data):
                said[status] += 1
                assert status < 500 or status in (501, 503, 504, 505), (status, data)
        assert listener(at[1]) == process, "it is another worker"
        more = (memory(process) - before) >> 20
        assert _said(at, GOOD[0]) == [200]
    print(f"{n} broken requests: {dict(sorted(said.items()))}, {more} MB")
    assert said[200] and said[400] and more < 64
