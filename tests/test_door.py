"""The door: who may ask, on HTTP and gRPC, by certificate, token, page, name and number of requests

To real services of several workers, by openssl, curl, Triton's client and grpcio.
"""

import base64
import http.client
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
from conftest import free_port
from served import plain_model, worker

from scalai_nb.environment import environment
from scalai_nb.models.registry.registry import Registry
from scalai_nb.serving.door.tokens import new_token, revoke_token
from scalai_nb.serving.process.service import running
from scalai_nb.serving.protocols.messages import SERVICE, messages
from scalai_nb.serving.protocols.route import Prediction
from scalai_nb.serving.protocols.routes import ROUTES

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


def trusting(cert: str) -> ssl.SSLContext:
    "A client that believes one certificate"
    return ssl.create_default_context(cafile=cert)


# ---- asking


def connection(url: str, cert: str | None = None) -> http.client.HTTPConnection:
    at = urlsplit(url)
    if at.scheme == "https":
        context = trusting(cert)
        return http.client.HTTPSConnection(at.hostname, at.port, timeout=20, context=context)
    return http.client.HTTPConnection(at.hostname, at.port, timeout=20)


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
    c.close()


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
    c.close()


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
        for c in there:
            c.close()
