"""The clients that people have, unchanged, against a real worker

Triton's, KServe's, curl, and a fuzzer that reads the OpenAPI document.
"""

import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
from conftest import tool
from served import late_model, plain_model, worker

import scalai_nb as sn


@pytest.fixture(scope="module")
def plain():
    return plain_model()


@pytest.fixture(scope="module")
def url(plain, tmp_path_factory):
    with worker(tmp_path_factory.mktemp("service"), {"plain": plain, "late": late_model()}) as url:
        yield url


X = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)


def run(script: str, *arguments: str):
    "What a script says, as JSON, with the Python of the clients"
    done = subprocess.run(
        [tool("clients") / "python", "-c", script, *arguments],
        input=json.dumps(X.tolist()),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


TRITON = """
import json, sys
import numpy as np
from tritonclient import http
from tritonclient.utils import InferenceServerException
x = np.array(json.load(sys.stdin), np.float32)
client = http.InferenceServerClient(sys.argv[1].removeprefix("http://"))
said = {"live": client.is_server_live(), "ready": client.is_server_ready(), \
"model": client.is_model_ready("plain"), "version": client.is_model_ready("plain", "3"), \
"nobody": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(), "metadata": client.get_model_metadata("plain"), \
"index": client.get_model_repository_index(), "scores": [], "errors": []}
for bytes_in in (False, True):
    for bytes_out in (False, True):
        one = http.InferInput("input", [5, 4], "FP32")
        one.set_data_from_numpy(x, binary_data=bytes_in)
        columns = [http.InferInput(n, [5, 1], "FP32") for n in "abcd"]
        for j, c in enumerate(columns): \
c.set_data_from_numpy(np.ascontiguousarray(x[:, j:j+1]), binary_data=bytes_in)
        for inputs in ([one], columns):
            result = client.infer("plain", inputs, \
outputs=[http.InferRequestedOutput("score", binary_data=bytes_out)], \
request_id=f"r{len(said['scores'])}", model_version="3", timeout=10_000_000)
            assert result.get_response()["id"] == f"r{len(said['scores'])}" \
and result.as_numpy("score").dtype == np.float32
            said["scores"].append(result.as_numpy("score").tolist())
        said["scores"].append(client.infer("plain", [one]).as_numpy("score").tolist())
        said["scores"].append(client.infer("plain", [one], \
request_compression_algorithm="gzip").as_numpy("score").tolist())
names = http.InferInput("carrier", [1], "BYTES")
names.set_data_from_numpy(np.array(["AA"], object))
for call in (lambda: client.infer("nobody", [one]), lambda: client.infer("late", [names]), \
lambda: client.infer("plain", [one], outputs=[http.InferRequestedOutput("label")]),
             lambda: client.infer("plain", [one], \
outputs=[http.InferRequestedOutput("score", class_count=2)])):
    try: call()
    except InferenceServerException as e: said["errors"].append([e.status(), e.message()])
print(json.dumps(said))
"""


def test_triton_s_client(url, plain):
    said, expected = run(TRITON, url), plain.score({n: X[:, j] for j, n in enumerate("abcd")})
    assert [said[k] for k in ("live", "ready", "model", "version", "nobody")] == [True] * 4 + [
        False
    ]
    assert (
        said["metadata"]["platform"] == "onnx"
        and said["server"]["name"] == "scalai-nb"
        and {m["name"] for m in said["index"]} == {"plain", "late"}
    )
    assert len(said["scores"]) == 16 and all(
        np.array_equal(np.float32(s), expected) for s in said["scores"]
    )
    assert [status for status, _ in said["errors"]] == [
        "404",
        "400",
        "400",
        "400",
    ] and "'nobody' is not in" in said["errors"][0][1]


KSERVE = """
import asyncio, json, sys
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
import numpy as np
x = np.array(json.load(sys.stdin), np.float32)
url, said = sys.argv[1], {"scores": []}
async def main():
    v1, v2 = (InferenceRESTClient(RESTConfig(protocol=p, retries=0)) for p in ("v1", "v2"))
    said["live"], said["ready"], said["models"] = await v2.is_server_live(url), \
await v2.is_server_ready(url), [await v1.is_model_ready(url, "plain"), \
await v2.is_model_ready(url, "plain")]
    said["scores"].append((await v1.infer(url, {"instances": x.tolist()}, \
model_name="plain"))["predictions"])
    for binary in (False, True):
        tensor = InferInput("input", [5, 4], "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        response = await v2.infer(url, InferRequest("plain", [tensor], request_id=f"k{binary}"), \
model_name="plain")
        said["scores"].append(np.ravel(response.outputs[0].as_numpy()).tolist())
    try: await v1.infer(url, {"instances": [[1]]}, model_name="plain")
    except Exception as e: said["error"] = str(e)
asyncio.run(main())
print(json.dumps(said))
"""


def test_kserve_s_client(url, plain):
    said, expected = run(KSERVE, url), plain.score({n: X[:, j] for j, n in enumerate("abcd")})
    assert (
        said["live"] and said["ready"] and said["models"] == [True, True] and "400" in said["error"]
    )
    assert len(said["scores"]) == 3 and all(
        np.array_equal(np.float32(s), expected) for s in said["scores"]
    )


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_every_command_of_the_page_works(url):
    page = subprocess.run(
        ["curl", "-s", f"{url}/docs"], capture_output=True, text=True, check=True
    ).stdout
    commands = [unescape(c) for c in re.findall(r"<pre>(.*?)</pre>", page)]
    assert len(commands) == 15
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command + " -w '\n%{http_code}'"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.stdout.endswith("\n200"), (command, done.stdout)


def test_a_fuzzer_finds_only_what_is_documented(url, tmp_path):
    done = subprocess.run(
        [
            tool("clients") / "schemathesis",
            "run",
            f"{url}/openapi.json",
            "--checks",
            (
                "not_a_server_error,status_code_conformance,content_type_conformance,"
                "unsupported_method"
            ),
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            "8",
            "--seed",
            "1",
            "--no-color",
            "--generation-database",
            "none",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert (
        sn.__version__
        in subprocess.run(["curl", "-s", f"{url}/v2"], capture_output=True, text=True).stdout
    )
