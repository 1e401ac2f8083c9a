"""The door: who may ask, on HTTP and gRPC, by certificate, token, page, name and number of requests

To real services of several workers, by openssl, curl, Triton's client and grpcio.
"""

import ast
import base64
import http.client
import json
import os
import queue
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
from browser import CHROMIUM, visiting
from attacking import listener
from conftest import ROOT, free_port, tool
from hypothesis import given, settings, strategies as st
from served import plain_model, worker

from scalai_nb.client.client import Client
from scalai_nb.environment import environment
from scalai_nb.errors import ParameterError, WorkFailed
from scalai_nb.models.registry.registry import Registry
from scalai_nb.serving.door.tokens import TokenFile, new_token, revoke_token
from scalai_nb.serving.process.service import planned, running
from scalai_nb.serving.protocols.messages import SERVICE, messages
from scalai_nb.serving.protocols.route import Prediction
from scalai_nb.serving.protocols.routes import ROUTES
from scalai_nb.serving.refusal import Refusal
from scalai_nb.serving.scoring.admission import Admission
from scalai_nb.serving.wire.accepting import HANDSHAKES
from scalai_nb.serving.wire.parsing import Incoming

ROW = b'{"instances": [[1, 2, 3, 4]]}'
PREDICT = "/v1/models/plain:predict"
JSON = {"content-type": "application/json"}


# ---- certificates, by the command that people make them with


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def certificate(folder: Path, name: str, by: str | None = None, *more: str) -> dict[str, str]:
    "The options of a service with a certificate for this machine, signed by itself or by another"
    cert, key = str(folder / f"{name}.crt"), str(folder / f"{name}.key")
    signer = ["-CA", f"{folder}/{by}.crt", "-CAkey", f"{folder}/{by}.key"] if by else []
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-out", cert, "-keyout", key, "-subj", f"/CN={name}"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *signer),
        *(more or ("-days", "30")),
    )
    return {"tls_cert": cert, "tls_key": key}


AUTHORITY = """
[ca]
default_ca = a
[a]
database = {0}/index.txt
serial = {0}/serial
new_certs_dir = {0}
default_md = sha256
policy = p
[p]
commonName = supplied
"""


def expired(folder: Path, name: str) -> dict[str, str]:
    "A certificate that ended in 2021, made as every version of openssl can"
    found = certificate(folder, name)
    cert, key = found["tls_cert"], found["tls_key"]
    for file, text in (("ca.cnf", AUTHORITY.format(folder)), ("index.txt", ""), ("serial", "01")):
        (folder / file).write_text(text)
    openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", f"{cert}.csr")
    openssl(
        *("ca", "-batch", "-notext", "-config", f"{folder}/ca.cnf", "-selfsign"),
        *("-keyfile", key, "-in", f"{cert}.csr", "-out", cert),
        *("-startdate", "200101000000Z", "-enddate", "210101000000Z"),
    )
    return found


def trusting(cert: str) -> ssl.SSLContext:
    "A client that believes one certificate"
    return ssl.create_default_context(cafile=cert)


# ---- asking


OPEN = []


@pytest.fixture(autouse=True)
def close():
    yield
    while OPEN:
        OPEN.pop().close()


def connection(url: str, cert: str | None = None, **options) -> http.client.HTTPConnection:
    "A connection, closed when the test has ended"
    at = urlsplit(url)
    kind = http.client.HTTPConnection
    if at.scheme == "https":
        kind, options = http.client.HTTPSConnection, {"context": trusting(cert), **options}
    OPEN.append(kind(at.hostname, at.port, timeout=20, **options))
    return OPEN[-1]


def ask(c, method="POST", path=PREDICT, body=ROW, token=None, **headers):
    "The status, headers and body of an answer"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        named["authorization"] = f"Bearer {token}"
    c.request(method, path, body if method == "POST" else None, JSON | named)
    answer = c.getresponse()
    return answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read()


def status(c, **asked) -> int:
    return ask(c, **asked)[0]


def until(true, seconds=20):
    "Wait until it holds"
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)
    return found


# ---- services


@pytest.fixture(scope="module")
def plain():
    return plain_model()


@pytest.fixture(scope="module")
def home(database, plain, tmp_path_factory):
    "A project in which `plain` is registered"
    home = tmp_path_factory.mktemp("home")
    (home / "settings.ini").write_text("[laptop]\n")
    (home / ".scalai").mkdir()
    shutil.copy(database, home / ".scalai/tracking.db")
    Registry(environment("laptop", settings=home / "settings.ini")).register(
        plain, "plain", alias="champion"
    )
    return home


@pytest.fixture
def env(home, tmp_path):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    return environment("laptop", settings=tmp_path / "settings.ini")


# ---- tokens

SCOPES = ("read", "predict", "feedback", "operate")
# that a scope covers, said once more: the table of the program is what is tested
MAY = {
    "read": {"read"},
    "predict": {"predict", "read"},
    "feedback": {"feedback"},
    "operate": {"operate", "read"},
}
NEEDED = {
    "/predict": "predict",
    "/feedback": "feedback",
    "/metrics": "operate",
    "/docs": "read",
    "/": "read",
    "/openapi.json": "read",
    "/v2": "read",
    "/v2/models/{model}": "read",
    "/v2/models/{model}/infer": "predict",
    "/v2/repository/index": "read",
    "/v2/health/live": "",
    "/v2/health/ready": "",
}


@pytest.fixture(scope="module")
def guarded(plain, tmp_path_factory):
    "A worker with tokens: its url, its address of gRPC, and the tokens by what is special of them"
    folder = tmp_path_factory.mktemp("guarded")
    file, port = folder / "tokens.json", free_port()
    tokens = {scope: new_token(file, scope, [scope]) for scope in SCOPES}
    tokens["expired"] = new_token(file, "expired", SCOPES, 1e-3)
    tokens["revoked"] = new_token(file, "revoked", SCOPES)
    revoke_token(file, "revoked")
    tokens |= {"none": None, "wrong": "scalai_" + "A" * 43}
    with worker(folder, {"plain": plain}, grpc_port=port, tokens=str(file)) as url:
        yield url, f"127.0.0.1:{port}", tokens


def expected(scope: str, who: str) -> int:
    "The refusal that a token gets of what needs a scope; 0: it is let in"
    if not scope:
        return 0
    if who not in SCOPES:
        return 401
    return 0 if scope in MAY[who] else 403


def test_routes_need_what_they_should():
    scopes = {route.path: route.scope for route in ROUTES}
    assert NEEDED == {path: scopes[path] for path in NEEDED}
    assert all(r.scope == "predict" for r in ROUTES if isinstance(r, Prediction))
    others = {r.scope for r in ROUTES if not isinstance(r, Prediction) and r.path not in NEEDED}
    assert others == {"read"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_every_route_by_every_token(guarded, route):
    url, _, tokens = guarded
    path = route.path.format(model="plain", version="3", verb="explain")
    c = connection(url)
    for who, token in tokens.items():
        found, headers, body = ask(c, route.method, path, token=token)
        wanted = expected(route.scope, who)
        assert found == wanted if wanted else found not in (401, 403), (who, body)
        assert ("www-authenticate" in headers) == (found == 401)
        assert not token or token.encode() not in body


def test_a_token_reaches_by_basic_too_and_a_browser_is_asked_for_it(guarded):
    url, _, tokens = guarded
    c = connection(url)
    basic = base64.b64encode(f"anybody:{tokens['read']}".encode()).decode()
    assert status(c, method="GET", path="/docs", authorization=f"Basic {basic}") == 200
    for wrong in (
        "Basic !",
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Digest x",
        "Bearer",
    ):
        assert status(c, method="GET", path="/docs", authorization=wrong) == 401
    _, headers, _ = ask(c, "GET", "/docs", accept="text/html")
    assert headers["www-authenticate"].startswith("Basic")
    _, headers, _ = ask(c, "GET", "/docs", accept="*/*")
    assert headers["www-authenticate"].startswith("Bearer")


# ---- gRPC

CALLS = {
    "ServerLive": "",
    "ServerReady": "",
    "ServerMetadata": "read",
    "ModelReady": "read",
    "ModelMetadata": "read",
    "RepositoryIndex": "read",
    "ModelInfer": "predict",
}
REFUSED = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}


def called(channel, name, message=None, token=None):
    "The code of a call"
    metadata = [("authorization", f"Bearer {token}")] if token else []
    message = message or getattr(messages(), f"{name}Request")()
    call = channel.unary_unary(f"/{SERVICE}/{name}", lambda m: m.SerializeToString())
    try:
        call(message, metadata=metadata, timeout=20)
    except grpc.RpcError as e:
        return e.code()
    return grpc.StatusCode.OK


def row():
    "A request for the scores of a row"
    asked = messages().ModelInferRequest(model_name="plain")
    tensor = asked.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend([1, 2, 3, 4])
    return asked


@pytest.mark.parametrize("name", CALLS)
def test_every_call_by_every_token(guarded, name):
    _, address, tokens = guarded
    with grpc.insecure_channel(address) as channel:
        for who, token in tokens.items():
            code, wanted = called(channel, name, token=token), expected(CALLS[name], who)
            assert code == REFUSED[wanted] if wanted else code not in REFUSED.values(), who


def test_reflection_and_conversations_need_a_token_and_health_does_not(guarded):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    _, address, tokens = guarded
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest()).status == 1
        ask_what = reflection_pb2.ServerReflectionRequest(list_services="")
        known = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        talk = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            lambda m: m.SerializeToString(),
            messages().ModelStreamInferResponse.FromString,
        )
        for call, message, scope in ((known, ask_what, "read"), (talk, row(), "predict")):
            for who, token in tokens.items():
                metadata = [("authorization", f"Bearer {token}")] if token else []
                try:
                    said = [*call(iter([message]), metadata=metadata, timeout=20)]
                except grpc.RpcError as e:
                    assert e.code() == REFUSED[expected(scope, who)], (scope, who)
                else:
                    assert said and not expected(scope, who), (scope, who)


def test_a_stranger_s_message_is_not_received(guarded):
    "30 MB each of twelve, which the server would have to hold"
    url, address, tokens = guarded
    process = listener(urlsplit(url).port)
    large = messages().ModelInferRequest(model_name="plain", raw_input_contents=[bytes(30 << 20)])
    body = large.SerializeToString()
    before, peak, done = process.memory_info().rss, [0], threading.Event()

    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    def send():
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            try:
                call(body, timeout=30, metadata=[("authorization", "Bearer scalai_guessed")])
            except grpc.RpcError as e:
                codes.append(e.code())

    codes, threads = [], [threading.Thread(target=send) for _ in range(12)]
    watching = threading.Thread(target=watch)
    watching.start()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    done.set()
    watching.join()
    assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 12
    assert peak[0] - before < 60 << 20, f"{(peak[0] - before) >> 20} MB"


# ---- revoked, on all workers


def who_answers(service, there: list) -> set[int]:
    "The workers that some connections lead to"
    ports = {c.sock.getsockname()[1] for c in there}
    found = {
        pid: {c.raddr.port for c in psutil.Process(pid).net_connections("tcp") if c.raddr}
        for pid in service.state["workers"]
    }
    return {pid for pid, theirs in found.items() if theirs & ports}


def open_to_all(url: str, workers: int, cert: str | None = None) -> list:
    "Connections that are kept open, to each of the workers"
    return [connection(url, cert) for _ in range(4 * workers)]


def test_a_revoked_token_is_refused_within_a_second_by_all_workers(env, tmp_path):
    file = tmp_path / "tokens.json"
    keep, gone = (new_token(file, name, ["predict"]) for name in ("keep", "gone"))
    with running("plain", env, workers=3, tokens=str(file), latency=1.0) as service:
        there = open_to_all(service.url, 3)
        assert {status(c, token=t) for c in there for t in (keep, gone)} == {200}
        assert len(who_answers(service, there)) == 3
        revoke_token(file, "gone")
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            time.sleep(0.01)
        assert {status(c, token=gone) for c in there} == {401}
        assert {status(c, token=keep) for c in there} == {200}
        new = new_token(file, "new", ["predict"])
        time.sleep(1.0)
        assert {status(c, token=new) for c in there} == {200}
        assert gone not in service.log() and keep not in service.log()


def test_a_conversation_ends_with_its_token(tmp_path, plain):
    file, port = tmp_path / "tokens.json", free_port()
    token = new_token(file, "talker", ["predict"])
    with (
        worker(tmp_path, {"plain": plain}, grpc_port=port, tokens=str(file)),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        turns = queue.Queue()
        talk = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            lambda m: m.SerializeToString(),
            messages().ModelStreamInferResponse.FromString,
        )
        answers = talk(
            iter(turns.get, None), metadata=[("authorization", f"Bearer {token}")], timeout=30
        )
        turns.put(row())
        assert len(next(answers).infer_response.outputs) == 1
        revoke_token(file, "talker")
        time.sleep(1.0)
        turns.put(row())
        answer = next(answers)
        assert "revoked" in answer.error_message and not answer.infer_response.outputs
        turns.put(None)


# ---- TLS


@pytest.fixture(scope="module")
def secured(plain, tmp_path_factory):
    "A worker over TLS with tokens: its url and address of gRPC, its certificate and a token"
    folder = tmp_path_factory.mktemp("secured")
    files, file, port = certificate(folder, "server"), folder / "tokens.json", free_port()
    token = new_token(file, "tests", ["predict", "feedback", "operate"])
    with worker(folder, {"plain": plain}, grpc_port=port, tokens=str(file), **files) as url:
        yield url, f"127.0.0.1:{port}", files["tls_cert"], token


def s_client(port: int, *words: str) -> str:
    "What `openssl s_client` says of a connection"
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *words],
        input=b"",
        capture_output=True,
        timeout=20,
    )
    return (done.stdout + done.stderr).decode(errors="replace")


def test_openssl_finds_tls_1_3_and_1_2_and_nothing_older(secured):
    url, address, cert, _ = secured
    for port in (urlsplit(url).port, int(address.rpartition(":")[2])):
        said = s_client(port, "-CAfile", cert, "-verify_return_error", "-tls1_3")
        assert "Verify return code: 0 (ok)" in said and "TLSv1.3" in said
        assert "TLSv1.2" in s_client(port, "-CAfile", cert, "-tls1_2")
        old = s_client(port, "-CAfile", cert, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
        assert "Cipher is (NONE)" in old
    assert "ALPN protocol: http/1.1" in s_client(urlsplit(url).port, "-alpn", "h2,http/1.1")


def curl(url: str, *words: str) -> tuple[int, str]:
    "The exit code of curl, and the answer with its status behind it"
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "20", "-w", " %{http_code}", *words, url],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_curl_as_the_docs_show_it(secured):
    url, _, cert, token = secured
    bearer = "-H", f"authorization: Bearer {token}"
    code, said = curl(url + PREDICT, "--cacert", cert, *bearer, "-d", ROW.decode())
    assert code == 0 and said.endswith(" 200") and "predictions" in said
    assert curl(url + PREDICT, "--cacert", cert, "-d", ROW.decode())[1].endswith(" 401")
    assert curl(url + "/v2/health/ready", "--cacert", cert)[1].endswith(" 200")
    assert curl(url + PREDICT, *bearer)[0] == 60, "it is not believed without being named"
    plain = url.replace("https", "http")
    assert curl(plain + PREDICT, *bearer, "-d", ROW.decode())[0] != 0
    c = connection(url, cert)
    same, plain = url, url.replace("https", "http")
    assert status(c, token=token, origin=same) == 200
    assert status(c, token=token, origin=plain) == 403, "anybody can make that page"
    _, page = curl(url + "/docs", "--cacert", cert, *bearer)
    assert f"{url}{PREDICT}" in page and "Bearer $TOKEN" in page and token not in page


def test_a_refused_client_reads_why_over_tls(secured):
    url, _, cert, token = secured
    at = urlsplit(url)
    long = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000000\r\n\r\n"
    for sent, wanted in ((long, b"413"), (b"nonsense\r\n\r\n", b"400")):
        with trusting(cert).wrap_socket(
            socket.create_connection((at.hostname, at.port), timeout=20),
            server_hostname="localhost",
        ) as s:
            s.sendall(sent)
            assert s.recv(9999).split()[1] == wanted
            start = time.monotonic()
            with suppress(ConnectionError, ssl.SSLError):
                while s.recv(9999):
                    pass
            assert time.monotonic() - start < 5, "and it is hung up on"


TRITON = """
import sys, json
import numpy as np
url, address, cert, token = sys.argv[1:]
from tritonclient import http
import tritonclient.grpc as rpc
context = lambda: __import__("ssl").create_default_context(cafile=cert)
bearer = {"authorization": "Bearer " + token}
x = np.float32([[1, 2, 3, 4]])
def tensor(kind):
    t = kind.InferInput("input", [1, 4], "FP32"); t.set_data_from_numpy(x); return [t]
a = http.InferenceServerClient(url.removeprefix("https://"), ssl=True, ssl_context_factory=context)
b = rpc.InferenceServerClient(address, ssl=True, root_certificates=cert)
said = {"live": [a.is_server_live(), b.is_server_live()], "scores": [], "refused": []}
for client, kind in ((a, http), (b, rpc)):
    score = client.infer("plain", tensor(kind), headers=dict(bearer)).as_numpy("score")
    said["scores"].append(float(score.ravel()[0]))
    said["metadata"] = client.get_model_metadata("plain", headers=dict(bearer)) and True
    try: client.infer("plain", tensor(kind))
    except Exception as e: said["refused"].append(str(e))
print(json.dumps(said))
"""


def test_triton_s_clients_with_ssl(secured):
    done = subprocess.run(
        [tool("clients") / "python", "-c", TRITON, *secured],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["live"] == [True, True] and len({round(s, 5) for s in said["scores"]}) == 1
    assert all("needs a token" in text for text in said["refused"]) and len(said["refused"]) == 2


def test_clients_need_a_certificate_where_they_must_have_one(plain, tmp_path):
    ours = certificate(tmp_path, "ours", None, "-days", "30")
    certificate(tmp_path, "client", "ours")
    certificate(tmp_path, "other", None, "-days", "30")
    certificate(tmp_path, "stranger", "other")
    port = free_port()
    options = {**ours, "tls_client_ca": ours["tls_cert"], "grpc_port": port}
    with worker(tmp_path, {"plain": plain}, **options) as url:

        def asked(*words: str) -> int:
            return curl(url + PREDICT, "--cacert", ours["tls_cert"], "-d", ROW.decode(), *words)[0]

        def known(name: str) -> tuple[str, ...]:
            return "--cert", f"{tmp_path}/{name}.crt", "--key", f"{tmp_path}/{name}.key"

        assert asked(*known("client")) == 0
        assert asked() == 56 and asked(*known("stranger")) == 56
        for name, code in (("client", "OK"), ("stranger", "UNAVAILABLE"), (None, "UNAVAILABLE")):
            root, pair = Path(ours["tls_cert"]).read_bytes(), (None, None)
            if name:
                pair = [Path(f"{tmp_path}/{name}.{end}").read_bytes() for end in ("key", "crt")]
            credentials = grpc.ssl_channel_credentials(root, *pair)
            with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
                assert called(channel, "ModelInfer", row()).name == code, name


# ---- certificates that change


def serial(at: str, cert: str) -> str:
    "Whose certificate a server shows"
    host, _, port = at.rpartition(":")
    shown = ssl.get_server_certificate((host, int(port)))
    return "the same" if shown.strip() == Path(cert).read_text().strip() else "another"


class Asking(threading.Thread):
    "Asks again and again, on connections that are kept for a while; notes what is no 200"

    def __init__(self, url: str, certs: list[str], token: str):
        super().__init__()
        self.url, self.token, self.failed, self.answered = url, token, [], 0
        self.context = ssl.create_default_context()
        for cert in certs:
            self.context.load_verify_locations(cert)
        self.done = threading.Event()

    def run(self):
        at = urlsplit(self.url)
        while not self.done.is_set():
            c = http.client.HTTPSConnection(at.hostname, at.port, timeout=20, context=self.context)
            for _ in range(20):
                try:
                    found = status(c, token=self.token)
                except Exception as e:
                    self.failed.append(repr(e))
                    break
                self.answered += 1
                if found != 200:
                    self.failed.append(str(found))
            c.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def test_a_certificate_is_renewed_under_traffic_and_a_wrong_one_is_not_taken(env, tmp_path):
    files = certificate(tmp_path, "server")
    cert, key = Path(files["tls_cert"]), Path(files["tls_key"])
    new = certificate(tmp_path, "new", None, "-days", "60")
    past = expired(tmp_path, "past")
    file = tmp_path / "tokens.json"
    token = new_token(file, "tests", ["predict"])
    first = shutil.copy(cert, tmp_path / "first.crt")
    options = {**files, "tokens": str(file), "workers": 2, "latency": 1.0}
    with running("plain", env, **options) as service:
        assert service.url.startswith("https://") and service.state["url"] == service.url
        both = service.url.removeprefix("https://"), service.grpc
        with Asking(service.url, [str(first), new["tls_cert"]], token) as asking:
            kept = connection(service.url, str(first))
            assert status(kept, token=token) == 200
            shutil.copy(past["tls_cert"], cert)  # expired, and not of the key
            until(lambda: "former certificate stays" in service.log())
            assert [serial(at, first) for at in both] == ["the same", "the same"]
            shutil.copy(past["tls_key"], key)
            until(lambda: "certificate has expired" in service.log())
            assert [serial(at, first) for at in both] == ["the same", "the same"]
            shutil.copy(new["tls_cert"], cert)
            shutil.copy(new["tls_key"], key)
            until(
                lambda: all(
                    serial(at, new["tls_cert"]) == "the same" for at in both for _ in range(8)
                ),
                seconds=5,
            )
            assert status(kept, token=token) == 200, "what is open goes on"
            kept.close()
        assert asking.answered > 100 and not asking.failed, asking.failed[:3]
        assert "another certificate is there" in service.log()
        ends = ssl._ssl._test_decode_cert(new["tls_cert"])["notAfter"]
        until(
            lambda: (
                service.metrics().gauges.get(("scalai_certificate_expires",))
                == ssl.cert_time_to_seconds(ends)
            )
        )


def test_handshakes_that_do_not_end_keep_nobody_out(secured):
    url, _, cert, token = secured
    at = urlsplit(url)
    with ExitStack() as stack:
        for _ in range(700):
            s = stack.enter_context(socket.create_connection((at.hostname, at.port), timeout=20))
            s.sendall(b"\x16\x03\x01")
        times = []
        for _ in range(5):
            start = time.monotonic()
            c = connection(url, cert)
            assert status(c, token=token) == 200
            c.close()
            times.append(time.monotonic() - start)
        assert sorted(times)[2] < 1.0, times
        taken = [c for c in listener(at.port).net_connections("tcp") if c.laddr.port == at.port]
        assert HANDSHAKES / 2 < len(taken) < HANDSHAKES + 8, "the oldest are given up"


def test_order_and_end_are_kept_over_tls(env, tmp_path):
    "Many requests at once, answers that are not read, and a service that ends meanwhile"
    files = certificate(tmp_path, "server")
    with running("plain", env, workers=1, drain=20.0, latency=5.0, **files) as service:
        at = urlsplit(service.url)
        raw = lambda: socket.create_connection((at.hostname, at.port), timeout=20)
        head = b"POST /v1/models/plain:predict HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n"
        one = head + b"Content-Length: %d\r\n\r\n%s"
        context = trusting(files["tls_cert"])
        with ExitStack() as stack:
            wrap = lambda: stack.enter_context(
                context.wrap_socket(raw(), server_hostname="localhost")
            )
            s = wrap()
            for i in range(100):
                s.sendall(one % (i, len(ROW), ROW))
            answers = stack.enter_context(s.makefile("rb"))
            ids = []
            while len(ids) < 100:
                line = answers.readline()
                assert line, len(ids)
                if line.startswith(b"x-request-id"):
                    ids.append(int(line.split()[1]))
            assert ids == [*range(100)]
            idle, stalled = wrap(), stack.enter_context(raw())
            stalled.sendall(b"\x16\x03\x01")
            unread = wrap()
            unread.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            time.sleep(0.3)
            start = time.monotonic()
            service.process.terminate()
            assert idle.recv(99) == b"" and time.monotonic() - start < 5, "it was idle"
            while unread.recv(1 << 20):
                pass
            service.process.wait(30)
            assert time.monotonic() - start < 15, "nobody waits for the whole drain"
        assert service.process.returncode == 0, service.log()


# ---- what is refused at the start


def test_what_cannot_be_safe_is_refused_at_the_start(env, tmp_path):
    files = certificate(tmp_path, "server")
    other = certificate(tmp_path, "other")
    past = expired(tmp_path, "past")
    tokens = tmp_path / "tokens.json"
    new_token(tokens, "a", ["read"])
    garbage = tmp_path / "garbage.json"
    garbage.write_text("half a file {")
    fine = {**files, "tokens": str(tokens)}
    asked, _ = planned("plain", env, host="0.0.0.0", **fine)
    assert asked.url == "https://127.0.0.1:8080"
    for says, options in {
        "stay at 127.0.0.1, with a proxy": {"host": "0.0.0.0"},
        "give --tls-cert, --tls-key and --tokens": {"host": "::", **files},
        "takes a certificate and tokens": {"host": "192.0.2.1", "tokens": str(tokens)},
        "lets other machines in": {"host": ""},
        "tls_key=None is not valid": {"tls_cert": files["tls_cert"]},
        "the key is not that of the certificate": {**files, "tls_key": other["tls_key"]},
        "certificate has expired": past,
        "No such file": {**files, "tls_cert": str(tmp_path / "none.crt")},
        "no PEM": {**files, "tls_cert": str(garbage)},
        "holds no certificate": {**files, "tls_client_ca": str(garbage)},
        "garbage.json: The file of tokens is no JSON": {"tokens": str(garbage)},
        "none.json cannot be read": {"tokens": str(tmp_path / "none.json")},
        "no origin of a page": {"origins": ("*",)},
        "rate=-1 is not valid": {"rate": -1},
    }.items():
        with pytest.raises(ParameterError, match=says):
            planned("plain", env, **options)


# ---- a file of tokens that goes away


def test_without_its_file_nobody_is_let_in(env, tmp_path):
    file = tmp_path / "tokens.json"
    token = new_token(file, "a", ["predict"])
    text = file.read_text()
    with running("plain", env, workers=2, tokens=str(file), latency=1.0) as service:
        there = open_to_all(service.url, 2)
        assert {status(c, token=token) for c in there} == {200}
        for spoil in (file.unlink, lambda: file.write_text("half a file {")):
            spoil()
            time.sleep(0.6)
            assert {status(c, token=token) for c in there} == {503}
            assert {status(c, token=None) for c in there} == {503}
            assert {status(c, method="GET", path="/v2/health/ready") for c in there} == {200}
            until(lambda: service.metrics().gauges.get(("scalai_tokens_failing",)) == 2)
            file.write_text(text)
            time.sleep(0.6)
            assert {status(c, token=token) for c in there} == {200}
        log = service.log()
        assert log.count("nobody is let in but to health") == 2 and token not in log


# ---- who cannot be told by what a client writes


def test_what_a_client_writes_is_no_name():
    "2,000 invented names once left an honest client a 2,000th of the queue"
    admission = Admission(latency=1.0)
    for i in range(2000):
        x = Incoming(0.0)
        x.headers |= {
            "x-client-id": f"invented {i}",
            "x-forwarded-for": f"10.0.{i // 250}.{i % 250}",
        }
        admission.check(x.request("192.0.2.7").client)
    admission.work = 0.6 * admission.budget  # the queue is more than half full
    admission.held["192.0.2.1"] = 0.01 * admission.budget
    admission.check("192.0.2.1")
    admission.held["192.0.2.7"] = 0.55 * admission.budget
    with pytest.raises(Refusal, match="2 clients share the queue"):
        admission.check("192.0.2.7")


def test_spoofed_names_and_addresses_have_one_budget(env):
    with running("plain", env, workers=2, rate=20, latency=1.0) as service:
        found, start = [], time.monotonic()
        for i in range(400):
            if i % 50 == 0:
                c = connection(service.url)  # to another worker, perhaps
            names = {"x_client_id": f"invented {i}", "x_forwarded_for": f"10.0.0.{i}"}
            found.append(status(c, forwarded=f"for=10.0.0.{i}", x_real_ip=f"10.0.1.{i}", **names))
        seconds = time.monotonic() - start
        assert set(found) == {200, 429} and found.count(200) < 20 + 20 * seconds + 2
        _, headers, body = ask(c)
        assert "retry-after" in headers and b"20 requests a second" in body
        honest = connection(service.url, source_address=("127.0.0.2", 0))
        assert [status(honest) for _ in range(10)] == [200] * 10
        assert status(c, method="GET", path="/v2/health/live") == 200, "health is never refused"


def test_a_token_has_a_budget_of_its_own_and_strangers_do_not_use_it_up(plain, tmp_path):
    file = tmp_path / "tokens.json"
    honest = new_token(file, "honest", ["predict"])
    greedy = new_token(file, "greedy", ["predict"], rate=5)
    with worker(tmp_path, {"plain": plain}, tokens=str(file), rate=50.0) as url:
        c = connection(url)
        tries = [status(c, token=f"scalai_{i}") for i in range(200)]
        assert set(tries) == {401, 429}, "guessing is bounded by address"
        assert [status(c, token=honest) for _ in range(20)] == [200] * 20
        taken = [status(c, token=greedy) for _ in range(30)]
        assert taken.count(429) >= 20 and taken[0] == 200
        assert status(c, token=honest) == 200


# ---- browsers


def test_pages_may_ask_if_they_are_listed_and_host_names_cannot_mislead(plain, tmp_path):
    with worker(tmp_path, {"plain": plain}, origins=["https://shop.example"]) as url:
        c, host = connection(url), url.removeprefix("http://")
        shop = "https://shop.example"
        code, headers, _ = ask(c, origin=shop)
        assert code == 200 and headers["access-control-allow-origin"] == shop
        assert (
            headers["vary"] == "origin"
            and "retry-after" in headers["access-control-expose-headers"]
        )
        code, headers, _ = ask(c, "OPTIONS", origin=shop, access_control_request_method="POST")
        assert code == 200 and headers["access-control-allow-methods"] == "POST, OPTIONS"
        assert "authorization" in headers["access-control-allow-headers"]
        assert status(c, origin=f"http://{host}") == 200, "its own page"
        for stranger in (
            "https://evil.example",
            "null",
            "http://127.0.0.1:1",
            "http://shop.example",
        ):
            code, headers, _ = ask(c, origin=stranger)
            assert code == 403 and "access-control-allow-origin" not in headers, stranger
            assert status(c, method="OPTIONS", origin=stranger) == 403
            assert status(c, path="/feedback", origin=stranger) == 403
        for form in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; a=b",
            "",
        ):
            assert status(c, origin=shop, content_type=form) == 415, form
        assert ask(c, "OPTIONS")[1]["allow"] == "POST, OPTIONS"
        assert ask(c, "OPTIONS", "/v2")[1]["allow"] == "GET, HEAD, OPTIONS"
        assert ask(c, "OPTIONS", "*")[1]["allow"] == "GET, HEAD, POST, OPTIONS"
        assert status(c, method="OPTIONS", path="/nowhere") == 404
        # a name that leads here: DNS rebinding
        assert status(c, method="GET", path="/metrics", host="evil.example") == 421
        for fine in ("localhost", "127.0.0.1:8080", "[::1]:8080", "models", "a.localhost:1"):
            assert status(c, method="GET", path="/v2", host=fine) == 200, fine


def test_hosts_are_listed(plain, tmp_path):
    with worker(tmp_path, {"plain": plain}, hosts=["models.example"]) as url:
        c = connection(url)
        assert status(c, method="GET", path="/v2", host="Models.example:443") == 200
        assert status(c, method="GET", path="/v2", host="localhost") == 421
        assert status(c, method="GET", path="/v2/health/live", host="10.1.2.3:8080") == 200, (
            "a probe"
        )


def test_pages_carry_headers_that_guard_them(plain, tmp_path):
    with worker(tmp_path, {"plain": plain}) as url:
        c = connection(url)
        for path in ("/", "/docs"):
            _, headers, body = ask(c, "GET", path)
            policy = dict(p.split(" ", 1) for p in headers["content-security-policy"].split("; "))
            assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
            assert headers["x-frame-options"] == "DENY" and headers["cache-control"] == "no-store"
            assert headers["referrer-policy"] == "no-referrer"
            assert b" onclick" not in body and b"unsafe" not in policy["script-src"].encode()
        for path in ("/v2", "/metrics", "/nowhere"):
            assert ask(c, "GET", path)[1]["x-content-type-options"] == "nosniff"


# ---- a body of a stranger


def test_a_stranger_s_body_is_not_waited_for(guarded):
    url, _, tokens = guarded
    at = urlsplit(url)
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n{}\r\n"
    for who, wanted in (("none", b"401"), ("wrong", b"401"), ("read", b"403")):
        more = f"Authorization: Bearer {tokens[who]}\r\n" if tokens[who] else ""
        with socket.create_connection((at.hostname, at.port), timeout=20) as s:
            s.sendall(head.format(more).encode() + b"{")
            assert s.recv(9999).split()[1] == wanted
    with socket.create_connection((at.hostname, at.port), timeout=20) as s:
        more = f"Authorization: Bearer {tokens['predict']}\r\nExpect: 100-continue\r\n"
        s.sendall(head.format(more).encode())
        assert s.recv(9999) == b"HTTP/1.1 100 Continue\r\n\r\n"


# ---- the access log


def test_the_access_log_says_who_and_what_and_no_values(env, tmp_path):
    file = tmp_path / "tokens.json"
    token = new_token(file, "nightly", ["predict"])
    options = {"workers": 2, "tokens": str(file), "access_log": True, "latency": 1.0}
    with running("plain", env, **options) as service:
        c = connection(service.url)
        assert status(c, path=f"{PREDICT}?name=Lovelace", token=token) == 200
        assert status(c, path="/predict/Lovelace@3", token=token) == 404
        assert status(c, method="GET", path="/names/Lovelace") == 404
        assert status(c, body=b'{"instances": "Lovelace"}', token=token) == 400
        assert status(c, token="scalai_Lovelace") == 401
        c.close()
        with grpc.insecure_channel(service.grpc) as channel:
            assert called(channel, "ModelInfer", row(), token).name == "OK"
        raw = socket.create_connection(("127.0.0.1", urlsplit(service.url).port), timeout=20)
        raw.sendall(b"Lovelace\r\n\r\n")
        assert raw.recv(999)
        raw.close()
        log = lambda: "".join(p.read_text() for p in service.folder.glob("access-*.log*"))
        until(lambda: log().count("\n") == 7)
        lines = [json.loads(line) for line in log().splitlines()]
        assert "Lovelace" not in log() and token not in log()
        found = {(x["client"], x["method"], x["route"], x["status"]) for x in lines}
        predict = "/v1/models/{model}:predict"
        assert found == {
            ("nightly", "POST", predict, 200),
            ("nightly", "POST", "/predict/{model}@{version}", 404),
            ("127.0.0.1", "GET", "", 404),
            ("nightly", "POST", predict, 400),
            ("127.0.0.1", "POST", predict, 401),
            ("nightly", "gRPC", "ModelInfer", 200),
            ("127.0.0.1", "", "", 400),
        }
        assert all(x["ms"] >= 0 and x["time"].endswith("+00:00") for x in lines)


# ---- this library's own client


def test_the_client_carries_them(secured, guarded, tmp_path):
    url, _, cert, token = secured
    rows = {n: [1.0, 2.0] for n in "abcd"}
    with Client(url, token=token, ca=cert, timeout=20) as client:
        assert client.ready() and len(client.predict(rows)) == 2
        assert client.feedback(client.last.ids, [1.0, 2.0]) == 2
        shown = [repr(client), repr(vars(client)), repr(vars(client.replicas))]
        shown += [repr(r.credentials) for r in client.replicas.replicas]
        assert not any(token in text for text in shown)
    for says, options in {
        "needs a token.*Client.url, token=TOKEN": {"ca": cert},
        "answers 401: The token is not known": {"ca": cert, "token": "scalai_guessed"},
        "not believed.*pass ca=FILE": {"token": token},
    }.items():
        with Client(url, timeout=20, **options) as client, pytest.raises(WorkFailed) as e:
            client.predict(rows)
        told = "".join(traceback.format_exception(e.value))
        assert re.search(says, str(e.value)) and token not in told and "guessed" not in told
    plain, _, tokens = guarded
    with Client(plain, token=tokens["feedback"], timeout=20) as client:
        with pytest.raises(WorkFailed, match="answers 403: The token feedback has feedback"):
            client.predict(rows)
    for says, at, options in (
        ("in the clear", "http://models.example", {"token": token}),
        ("none.crt", url, {"ca": "none.crt"}),
        ("no use", plain, {"ca": cert}),
    ):
        with pytest.raises(ParameterError, match=says):
            Client(at, **options)


def test_a_kept_connection_says_nothing_before_it_is_asked(secured):
    "A session ticket would, which a client that hedges takes for its answer"
    url, _, cert, token = secured
    c = connection(url, cert)
    c.connect()
    assert not select.select([c.sock], [], [], 0.3)[0]
    assert status(c, token=token) == 200


# ---- the commands


def test_the_commands(env, tmp_path):
    def scalai(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "scalai_nb", *words],
            cwd=tmp_path,
            env=os.environ | env.variables | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    files = certificate(tmp_path, "server")
    code, said, told = scalai("token", "new", "nightly", "--scope", "predict", "--expires", "30d")
    assert code == 0 and said.startswith("scalai_") and said.count("\n") == 1
    file = Path(told.strip().rpartition("--tokens ")[2])
    assert file == Path(env.serving) / "tokens.json" and said.strip() not in file.read_text()
    code, said, _ = scalai("token", "ls", "--json")
    (about,) = json.loads(said)
    assert about["name"] == "nightly" and about["scopes"] == ["predict"]
    assert abs(about["expires"] - time.time() - 30 * 86_400) < 60
    for words, says in (
        (("new", "nightly", "--scope", "read"), "scalai token revoke nightly"),
        (("new", "x", "--scope", "admin"), "known: feedback, operate, predict, read"),
        (("new", "x", "--scope", "read", "--expires", "soon"), "accepted: 30d"),
        (("revoke", "nobody"), "nobody"),
    ):
        code, said, told = scalai("token", *words)
        assert code in (1, 2) and says in told and not said, told
    door = "--tls-cert", files["tls_cert"], "--tls-key", files["tls_key"], "--tokens", str(file)
    code, said, told = scalai("serve", "plain", "--dry-run", "--host", "0.0.0.0")
    assert code == 2 and "--tls-cert" in told and "stay at 127.0.0.1" in told
    code, said, told = scalai("serve", "plain", "--dry-run", "--host", "0.0.0.0", *door)
    assert code == 0 and "https://127.0.0.1:8080/docs" in said, told
    assert f'curl --cacert {files["tls_cert"]} -H "authorization: Bearer $TOKEN" https' in said
    assert scalai("token", "revoke", "nightly")[0] == 0
    assert "nobody may ask" in scalai("token", "ls")[1]


# ---- what the documents say

RISKS = re.compile(r"^\| (API\d+) [^|]+\|[^|]+\| (.+) \|$", re.MULTILINE)
ASKING = {"urllib", "http", "requests", "httpx", "urllib3", "aiohttp", "socketserver", "ftplib"}


def test_each_risk_of_owasp_names_tests_that_are_there():
    found = RISKS.findall((ROOT / "docs/serving.md").read_text(encoding="utf-8"))
    assert [risk for risk, _ in found] == [f"API{i}" for i in range(1, 11)]
    for risk, held in found:
        named = re.findall(r"`(tests/\w+\.py)::(\w+)`", held)
        assert named, risk
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), (risk, name)


def test_the_service_has_nothing_to_ask_others_with():
    "No room of it imports a client of a network protocol; traces go where the environment says"
    for path in (ROOT / "scalai_nb/serving").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {a.name for x in ast.walk(tree) if isinstance(x, ast.Import) for a in x.names}
        imported |= {x.module or "" for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)}
        # `http.HTTPStatus` and the parts of an url are words, no clients
        wrong = {m for m in imported if m.partition(".")[0] in ASKING}
        assert wrong <= {"http", "urllib.parse"}, path


def test_the_commands_of_the_docs(env, tmp_path):
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    block = text[text.index("```bash\nopenssl") + 8 :].partition("```")[0].replace("\\\n", "")
    make, token, serve, curl = block.strip().splitlines()
    port, grpc_port = free_port(), free_port()
    assert serve.startswith("scalai serve late-flight --host 0.0.0.0 --tls-cert tls.crt")
    scalai = f"{sys.executable} -m scalai_nb"
    script = "\n".join([make, token.replace("scalai", scalai), "echo $TOKEN"])
    made = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr
    files = {"tls_cert": "tls.crt", "tls_key": "tls.key", "tokens": "tokens.json"}
    options = {name: str(tmp_path / file) for name, file in files.items()}
    with running("plain", env, port=port, host="0.0.0.0", grpc_port=grpc_port, **options):
        asked = curl.replace("late-flight", "plain").replace(":8080", f":{port}")
        asked = asked.replace("curl ", f"curl -sS --resolve models.example:{port}:127.0.0.1 ")
        done = subprocess.run(
            ["bash", "-c", asked],
            cwd=tmp_path,
            env=os.environ | {"TOKEN": made.stdout.strip()},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert json.loads(done.stdout)["name"] == "plain", done.stderr


# ---- clocks that jump


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 600), st.integers(-90_000, 90_000)), max_size=12))
def test_no_clock_revives_a_token(moves):
    "It is refused after its time, however the wall clock jumps, and good before, if that is right"
    start, wall, steady = 1_800_000_000.0, [1_800_000_000.0], [50.0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.json"
        token = new_token(file, "hour", ["predict"])
        about = json.loads(file.read_text())
        about["hour"]["expires"] = datetime.fromtimestamp(start + 3600, UTC).isoformat()
        file.write_text(json.dumps(about))
        tokens = TokenFile(file, wall=lambda: wall[0], steady=lambda: steady[0])
        for passed, jump in moves:
            steady[0] += passed
            wall[0] += passed + jump
            try:
                tokens.token(f"Bearer {token}")
                good = True
            except Refusal:
                good = False
            lived = steady[0] - 50.0
            assert good == (lived < 3600 and wall[0] < start + 3600)


# ---- a real browser


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium; run make test-services")
def test_a_reader_tries_it_with_a_token_and_another_page_may_not(guarded):
    from playwright.sync_api import expect

    url, _, tokens = guarded
    other = url.replace("127.0.0.1", "localhost")  # another origin
    with visiting(url, other) as visit:
        page = visit.page
        page.set_extra_http_headers({"authorization": f"Bearer {tokens['read']}"})
        page.goto(f"{url}/docs")
        page.set_extra_http_headers({})
        expect(page.locator("body")).to_have_css("max-width", "960px")  # its style may be used
        form = page.locator(f'form[action="{PREDICT}"]')
        form.get_by_role("button").click()
        expect(form.locator("output")).to_contain_text("401")
        page.get_by_label("Token").fill(tokens["predict"])
        form.get_by_role("button").click()
        expect(form.locator("output")).to_contain_text("200")
        run = page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
            " document.body.append(s); return window.ran === 1 }"
        )
        assert not run and not visit.outside
        assert [e for e in visit.errors if "Content Security Policy" in e], "another script"
        page.goto(f"{other}/v2/health/live")
        send = (
            "([url, token]) => fetch(url + '/feedback', {method: 'POST', mode: 'no-cors', "
            "headers: {'content-type': 'text/plain'}, body: '{\"id\": \"a\", \"truth\": 1}'})"
            ".then(r => r.type)"
        )
        before = counted(url, tokens["operate"], 403)
        assert page.evaluate(send, [url, tokens["feedback"]]) == "opaque"
        until(lambda: counted(url, tokens["operate"], 403) == before + 1)


def counted(url: str, token: str, code: int) -> float:
    "How many requests were refused at the door with a status"
    text = ask(connection(url), "GET", "/metrics", token=token)[2].decode()
    line = f'scalai_requests_total{{model="",protocol="http",status="{code}",version=""}} '
    return sum(float(x.removeprefix(line)) for x in text.splitlines() if x.startswith(line))
