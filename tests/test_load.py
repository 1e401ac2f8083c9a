"The load generator and the bench of serving: what they say is what happened"

import asyncio
import json
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from conftest import tool

from scalai_nb.errors import ParameterError, WorkFailed
from scalai_nb.bench import peers
from scalai_nb.bench import services as serving
from scalai_nb.bench import soak
from scalai_nb.bench.load import LOST, UNANSWERED, Load, send
from scalai_nb.bench.peers import Peer, grpc_bodies
from scalai_nb.bench.served import subject


class Answering(asyncio.Protocol):
    "Answers each request with `say(its number)`: b'' breaks the connection, None leaves no answer"

    seen = 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        type(self).seen += 1
        answer = self.say(type(self).seen)
        if answer == b"":
            self.transport.abort()
        elif answer:
            self.transport.write(answer)


def http(status: int, body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


@contextmanager
def serving_by(protocol):
    "The url of a server on this machine, whose connections are `protocol`"
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(
        loop.create_server(protocol, "127.0.0.1", 0), loop
    ).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def answering(say):
    return serving_by(type("Saying", (Answering,), {"say": staticmethod(say)}))


def test_statuses_are_counted_and_only_good_answers_are_measured():
    refuse, rude = http(503, b"{}", b"retry-after: 1\r\n"), http(429, b"{}")
    with answering(
        lambda i: [http(200, b'{"p":[0.5]}'), refuse, rude, http(500, b"")][i % 4]
    ) as url:
        r = send(Load(url, (b"{}",), (0.5,), connections=4, seconds=0.5, warm=0, check=1))
    n = r["statuses"]
    assert set(n) == {"200", "429", "500", "503"} and max(n.values()) - min(n.values()) < 20
    assert (
        r["per_second"] == pytest.approx(n["200"] / 0.5, rel=0.05, abs=20)
        and 0 < r["refused"] < 1
        and abs(r["rude"] - n["429"]) < 20
        and r["checked"] > 0 == r["wrong"]
    )


def test_a_wrong_score_is_seen_by_version_and_by_order():
    head = b"x-model-version: 2\r\n"
    with answering(lambda i: http(200, b'{"p":[0.5]}', head)) as url:
        load = Load(
            url, (b"{}",), {"1": (0.25,), "2": (0.5,)}, connections=2, seconds=0.3, warm=0, check=1
        )
        right, other = send(load), send(replace(load, scores={"2": (0.25,)}))
        unknown = send(replace(load, scores={"1": (0.5,)}))
    assert (
        right["checked"] > 0 == right["wrong"]
        and other["wrong"] == other["checked"] > 0
        and unknown["wrong"] == unknown["checked"] > 0
    )


def test_latency_counts_from_the_time_at_which_a_request_was_due():
    "A server of twenty milliseconds a request gets a hundred a second on a connection: they queue"

    def slowly(i):
        time.sleep(0.02)
        return http(200, b"[0.5]")

    with answering(slowly) as url:
        closed = send(Load(url, (b"{}",), connections=1, seconds=1, warm=0))
        opened = send(Load(url, (b"{}",), connections=1, seconds=1, warm=0, rate=100))
    assert (
        closed["p99"] < 0.3 < opened["p99"]
        and opened["lag"] > 0.3
        and sum(opened["good"]) < sum(closed["good"])
    )


def test_requests_without_an_answer_and_broken_connections_are_told():
    with answering(
        lambda i: None if i % 10 == 5 else b"" if i % 10 == 9 else http(200, b"[0.5]")
    ) as url:
        r = send(Load(url, (b"{}",), connections=4, seconds=0.5, warm=0, rate=200))
    assert (
        r["statuses"][str(LOST)] >= 1 == min(1, r["statuses"][str(UNANSWERED)])
        and sum(r["lost"]) >= 1
    )


def test_answers_in_pieces_and_ids(tmp_path):
    class Pieces(Answering):
        def data_received(self, data):
            assert b"x-request-id: t-" in data
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-le")
            for i, rest in enumerate((b"ngth: 5\r\n\r\n[0.", b"5]"), 1):
                asyncio.get_running_loop().call_later(i / 1000, self.transport.write, rest)

    with serving_by(Pieces) as url:
        r = send(
            Load(
                url,
                (b"{}",),
                (0.5,),
                connections=2,
                seconds=0.3,
                warm=0,
                check=1,
                ids="t-",
                answered=str(tmp_path / "ids"),
            )
        )
    ids = (tmp_path / "ids").read_text().split()
    assert r["wrong"] == 0 < r["checked"]
    assert len(ids) == len(set(ids)) == r["all"]
    assert "t-1" in ids[:2]


def test_where_nobody_answers_nothing_is_good():
    r = send(Load("http://127.0.0.1:1/x", (b"{}",), connections=1, seconds=0.2, warm=0, rate=50))
    assert set(r["statuses"]) == {str(UNANSWERED)} and sum(r["good"]) == 0 and r["p99"] is None


def test_a_generator_that_fails_says_why():
    with pytest.raises(WorkFailed, match="(?s)load generator failed: .*No such file"):
        send(Load("http://127.0.0.1:1/x", (b"{}",), answered="/nowhere/ids"))


GRPC = """
import asyncio, struct, grpc
answer = b"\\x2a\\x03\\x0a\\x01s" + b"\\x32\\x04" + struct.pack("<f", 0.5)
seen = 0
async def infer(request, context):
    global seen
    seen += 1
    if seen % 5 == 0: await context.abort(grpc.StatusCode.UNAVAILABLE, "full")
    assert request.startswith(b"\\x0a\\x05bench")
    return answer
async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(infer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(\
"inference.GRPCInferenceService", {"ModelInfer": handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


def test_grpc_is_understood_by_grpcs_own_server():
    python = tool("clients") / "python"
    process = subprocess.Popen([python, "-c", GRPC], stdout=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        r = send(
            Load(
                url,
                grpc_bodies("bench", [np.ones((16, 50), np.float32)] * 3),
                (0.5,) * 3,
                grpc=True,
                connections=4,
                seconds=1,
                warm=0,
                check=1,
            )
        )
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert set(r["statuses"]) == {"200", "503"} and r["wrong"] == 0 < r["checked"]
    assert r["statuses"]["200"] == pytest.approx(4 * r["statuses"]["503"], rel=0.1)


def test_a_peer_that_is_not_there_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "None", Peer("none", "v1"))
    seen, out = serving.rounds_of(
        ["None"], type("S", (), {"graph": tmp_path / "graph.onnx"}), 0.1, 2
    )
    assert not seen and "it is not installed; run environments/peers none" in out["None"]


def test_cases_must_exist():
    with pytest.raises(ParameterError, match="'flod' is not in the cases"):
        serving.measure(["flod"])
    with pytest.raises(ParameterError, match="must be positive"):
        serving.measure(["rest"], scale=0)


def test_what_was_acknowledged_and_is_not_in_the_log_is_found(tmp_path):
    (tmp_path / "answered").write_text("s-1\ns-2\ns-30\n")
    assert soak.missing(tmp_path / "answered", "s-", np.array([1, 30])) == 1


@pytest.mark.campaign
def test_ours_at_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "subject", lambda folder: subject(folder, trees=0))
    figures = serving.measure(["rest"], scale=0.1, rounds=1, path=tmp_path / "figures.json")
    case = json.loads((tmp_path / "figures.json").read_text())["cases"]["rest"]
    assert (
        not figures["failed"]
        and [row[0] for row in case["rows"]] == ["1", "2"]
        and all(a["value"] is not None for a in case["aims"])
    )
    assert 20 < case["aims"][0]["value"] < 300
