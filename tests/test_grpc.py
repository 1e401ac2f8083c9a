"""gRPC as people's clients speak it: tritonclient, grpcio's stubs and KServe's, to a real worker"""

import json
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import free_port, tool
from hypothesis import given, settings, strategies as st
from served import flights, late_model, plain_model, worker

from scalai_nb.serving.protocols.messages import SCHEMA, messages
from scalai_nb.serving.protocols.protobuf import parsed, tensors
from scalai_nb.serving.refusal import Refusal


@pytest.fixture(scope="module")
def late():
    return late_model()


@pytest.fixture(scope="module")
def plain():
    return plain_model()


@pytest.fixture(scope="module")
def service(late, plain, tmp_path_factory):
    "Where HTTP and where gRPC is spoken"
    port, models = free_port(), {"late": late, "plain": plain}
    with worker(tmp_path_factory.mktemp("service"), models, grpc_port=port) as url:
        yield url, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def served(service):
    return service[1]


def client(served: str, script: str, **given):
    "What a script says, in JSON, that runs among the clients with `url` and what is given"
    head = (
        "import faulthandler, json, sys\n"
        "faulthandler.dump_traceback_later(45, exit=True)  # says where it hangs\n"
        "import numpy as np\n"
        "url, given = sys.argv[1], json.loads(sys.argv[2])\n"
        "def say(x): print(json.dumps(x))\n"
        f"{script}"
    )
    done = subprocess.run(
        [tool("clients") / "python", "-c", head, served, json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


TRITON = """
import tritonclient.grpc as triton
def matrix(x, name="input"):
    x = np.asarray(x, np.float32)
    t = triton.InferInput(name, list(x.shape), "FP32"); t.set_data_from_numpy(x)
    return t
"""


def test_tritonclient(served, plain):
    x = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    ready, names, raw, packed, said = client(
        served,
        TRITON
        + """
c = triton.InferenceServerClient(url)
say([c.is_server_live(), c.is_server_ready(), c.is_model_ready("plain"), \
c.is_model_ready("plain", "champion"), c.is_model_ready("late", "3")])
m = c.get_model_metadata("late")
say([c.get_server_metadata().name, [(i.name, i.datatype) for i in m.inputs], list(m.versions), \
m.outputs[0].name, sorted(i.name for i in c.get_model_repository_index().models)])
r = c.infer("plain", [matrix(given["x"])], request_id="mine", \
outputs=[triton.InferRequestedOutput("score")])
say(r.as_numpy("score").tolist())
say(c.infer("plain", [matrix(given["x"])], compression_algorithm="gzip").as_numpy("score").tolist())
say([r.get_response().id, r.get_response().model_version, \
r.get_response().parameters["prediction_id"].string_param])
""",
        x=x.tolist(),
    )
    assert ready == [True] * 5
    assert names == [
        "scalai-nb",
        [
            ["temp", "FP32"],
            ["hour", "FP32"],
            ["time", "FP64"],
            ["night", "FP32"],
            ["carrier", "BYTES"],
        ],
        ["3"],
        "score",
        ["late", "plain"],
    ]
    expected = plain.score({n: x[:, i] for i, n in enumerate("abcd")})
    assert (
        np.array_equal(np.float32(raw), expected)
        and raw == packed
        and said[:2] == ["mine", "3"]
        and said[2] not in ("", "mine")
    )


def test_columns_of_each_kind(served, late):
    "As raw bytes and as typed contents"
    ds = flights(20)
    seconds = ds.time.values.astype("M8[s]").astype(float).tolist()
    raw, typed = client(
        served,
        TRITON
        + """
def column(name, datatype, values):
    t = triton.InferInput(name, [len(values)], datatype); t.set_data_from_numpy(values)
    return t
c, g = triton.InferenceServerClient(url), given
columns = [column("temp", "FP32", np.array(g["temp"], np.float32)), \
column("hour", "INT64", np.array(g["hour"])), column("time", "FP64", np.array(g["time"])),
           column("night", "BOOL", np.array(g["night"])), \
column("carrier", "BYTES", np.array([v.encode() for v in g["carrier"]], object))]
say(c.infer("late", columns).as_numpy("score").tolist())

import grpc
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc
q, T = pb.ModelInferRequest(model_name="late"), pb.ModelInferRequest.InferInputTensor
for name, datatype, contents in (("temp", "FP32", {"fp32_contents": g["temp"]}), \
("hour", "INT64", {"int64_contents": g["hour"]}), ("time", "FP64", {"fp64_contents": g["time"]}),
                                 ("night", "BOOL", {"bool_contents": g["night"]}), \
("carrier", "BYTES", {"bytes_contents": [v.encode() for v in g["carrier"]]})):
    q.inputs.append(T(name=name, datatype=datatype, shape=[len(g["temp"]), 1], contents=contents))
a = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(url)).ModelInfer(q)
say(np.frombuffer(a.raw_output_contents[0], "<f4").tolist())
""",
        temp=ds.temp.values.tolist(),
        hour=ds.hour.values.tolist(),
        time=seconds,
        night=ds.night.values.tolist(),
        carrier=[v if isinstance(v, str) else "" for v in ds.carrier.values],
    )
    assert np.array_equal(np.float32(raw), late.predict(ds)) and raw == typed


def test_errors_have_codes(served):
    said = client(
        served,
        TRITON
        + """
import grpc
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc
channel = grpc.insecure_channel(url)
stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
def code(call, *args, **options):
    try: call(*args, **options)
    except grpc.RpcError as e: return [e.code().name, e.details()]
def infer(name="plain", version="", x=[[1, 2, 3, 4]], shape=None, datatype="FP32", outputs=()):
    x = np.asarray(x, np.float32)
    q = pb.ModelInferRequest(model_name=name, model_version=version, \
raw_input_contents=[x.tobytes()], outputs=[{"name": n} for n in outputs])
    q.inputs.add(name="x", datatype=datatype, shape=shape or x.shape)
    return q
for q in (infer("plian"), infer(version="9"), infer(x=[[1, 2]]), infer(shape=[7, 4]), \
infer(x=[[1, 2, 3, np.inf]]), infer(datatype="FP33"), infer(outputs=["label"])): \
say(code(stub.ModelInfer, q))
say(code(stub.TraceSetting, pb.TraceSettingRequest(model_name="plain")))
say(code(stub.ModelMetadata, pb.ModelMetadataRequest(name="zzz")))
say(code(channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"), b"\\xff no message"))
say(code(channel.unary_unary("/other.Service/Call"), b""))
say(code(stub.ModelInfer, infer(x=np.zeros((2_200_000, 4)))))
say(code(stub.ModelInfer, infer(x=[[1, 2]]), compression=grpc.Compression.Deflate))
""",
    )
    codes = [
        "NOT_FOUND",
        "NOT_FOUND",
        *["INVALID_ARGUMENT"] * 5,
        "UNIMPLEMENTED",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "UNIMPLEMENTED",
        "RESOURCE_EXHAUSTED",
        "INVALID_ARGUMENT",
    ]
    assert [code for code, _ in said] == codes
    assert (
        "'plian' is not in the models" in said[0][1]
        and "plain" in said[0][1]
        and "accepted: score" in said[6][1]
    )


def test_a_stream(served):
    "Answers come in the order of the requests, what is wrong with one is said in its place"
    *answers, aio = client(
        served,
        TRITON
        + """
import asyncio, queue, tritonclient.grpc.aio
c, q = triton.InferenceServerClient(url), queue.Queue()
c.start_stream(lambda result, error: q.put((result, error)))
for i in range(30): c.async_stream_infer("zzz" if i == 7 else "plain", [matrix([[i, 0, 0, 0]])], \
request_id=str(i))
for i in range(30):
    result, error = q.get(timeout=10)
    say([result and result.get_response().id, error and str(error)])
c.stop_stream()

async def main():
    async with tritonclient.grpc.aio.InferenceServerClient(url) as c:
        async def requests():
            for i in range(3): yield {"model_name": "plain", "inputs": [matrix([[i, 0, 0, 0]])], \
"request_id": f"s{i}"}
        said = [r.get_response().id async for r, _ in c.stream_infer(requests())]
        many = await asyncio.gather(*(c.infer("plain", [matrix([[i, 0, 0, 0]])], \
request_id=f"m{i}") for i in range(20)))
        try: await c.infer("plain", [matrix([[0, 0, 0, 0]])], request_id="m0")
        except Exception as e: again = e.status()
        return [said, [r.get_response().id for r in many] == [f"m{i}" for i in range(20)], again]
say(asyncio.run(main()))
""",
    )
    assert [id for id, _ in answers] == [
        None if i == 7 else str(i) for i in range(30)
    ] and "'zzz' is not in the models" in answers[7][1]
    assert aio == [["s0", "s1", "s2"], True, "StatusCode.ALREADY_EXISTS"]


def test_deadlines(served):
    "A client's own patience, and a deadline that has passed when the request comes"
    said = client(
        served,
        TRITON
        + """
import grpc
from tritonclient.grpc import service_pb2 as pb
call = grpc.insecure_channel(url).unary_unary("/inference.GRPCInferenceService/ModelInfer", \
pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
q = pb.ModelInferRequest(model_name="plain", \
inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}], raw_input_contents=[bytes(16)])
say(call(q, timeout=10).model_name)
q.parameters["timeout"].int64_param = 1
try: call(q)
except grpc.RpcError as e: say(e.code().name)
""",
    )
    assert said == ["plain", "DEADLINE_EXCEEDED"]


def test_kserve(served, plain):
    (said,) = client(
        served,
        """
import asyncio
from kserve import InferenceGRPCClient, InferInput, InferRequest
async def main():
    c = InferenceGRPCClient(url=url)
    x = InferInput("x", [2, 4], "FP32"); \
x.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4), binary_data=True)
    y = InferInput("x", [2, 4], "FP32"); \
y.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4), binary_data=False)
    answers = [await c.infer(InferRequest("plain", [i])) for i in (x, y)]
    return [await c.is_server_ready(), await c.is_model_ready("plain"), \
[a.outputs[0].as_numpy().tolist() for a in answers]]
say(asyncio.run(main()))
""",
    )
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    expected = plain.score({n: x[:, i] for i, n in enumerate("abcd")})
    assert said[:2] == [True, True] and all(
        np.array_equal(np.float32(s), expected) for s in said[2]
    )


def test_predictions_are_counted_with_those_of_http(service):
    url, served = service
    client(
        served,
        TRITON + 'triton.InferenceServerClient(url).infer("plain", [matrix([[1, 2, 3, 4]])])',
    )
    text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    assert 'scalai_requests_total{model="plain",protocol="grpc",status="200",version="3"}' in text


# of which the service says a part only
PARTLY = {"ModelConfig", "ModelInput", "ModelOutput", "ModelStatistics", "InferStatistics"}


def test_what_triton_asks_besides(service):
    "Configuration and statistics, over gRPC and HTTP, by Triton's own clients"
    http, served = service
    config, before, after, same, kinds, everything = client(
        served,
        TRITON
        + f"""
import tritonclient.http
web = tritonclient.http.InferenceServerClient({http.removeprefix("http://")!r})
c = triton.InferenceServerClient(url)
def done():
    s = c.get_inference_statistics("plain").model_stats[0]
    return [s.version, s.inference_count, s.inference_stats.success.count, s.execution_count, \
s.inference_stats.success.ns, s.inference_stats.compute_infer.ns]
config = c.get_model_config("late").config
say([config.name, config.backend, [i.name for i in config.input], config.output[0].name])
say(done())
for n in (1, 5): c.infer("plain", [matrix(np.ones((n, 4)))])
say(done())
stats = web.get_inference_statistics("plain")["model_stats"][0]
say([stats["inference_count"], stats["inference_stats"]["success"]["count"]])
say([[i.data_type for i in config.input], \
[i["data_type"] for i in web.get_model_config("late", "champion")["input"]]])
say(sorted(m["name"] for m in web.get_inference_statistics()["model_stats"]))
""",
    )
    assert config == ["late", "onnxruntime", ["temp", "hour", "time", "night", "carrier"], "score"]
    more = [b - a for a, b in zip(before[1:], after[1:], strict=True)]
    assert after[0] == "3" and more[:3] == [6, 2, 2] and min(more[3:]) > 0
    assert same == after[1:3]
    numbers, names = kinds
    assert names == ["TYPE_FP32", "TYPE_FP32", "TYPE_FP64", "TYPE_FP32", "TYPE_STRING"]
    assert numbers == [11, 11, 12, 11, 13]
    assert everything == ["late", "plain"]
    for path in ("/v2/models/nobody/stats", "/v2/models/nobody/config"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(http + path)


def test_the_table_is_that_of_the_clients(served):
    "Names, numbers and types of fields as in the messages that tritonclient was made with"
    (theirs,) = client(
        served,
        """
from tritonclient.grpc import service_pb2 as s
def fields(d): return {f.name: [f.number, f.type, f.label] for f in d.fields}
found = {}
def walk(messages):
    for d in messages: found[d.name] = fields(d); walk(d.nested_types)
walk(s.DESCRIPTOR.message_types_by_name.values())
from tritonclient.grpc import model_config_pb2
walk(model_config_pb2.DESCRIPTOR.message_types_by_name.values())
say(found)
""",
    )
    known = {"Parameter": "ParametersEntry", "InferTensor": "InferInputTensor"}
    enum, int32 = 14, 5  # the same in bytes
    for name in SCHEMA:
        ours = {
            f.name: [f.number, f.type, 3 if f.is_repeated else 1]
            for f in getattr(messages(), name).DESCRIPTOR.fields
        }
        wanted = {
            field: [number, int32 if kind == enum else kind, label]
            for field, (number, kind, label) in theirs[known.get(name, name)].items()
        }
        if name in PARTLY:
            wanted = {field: wanted[field] for field in ours}
        assert ours == wanted, name


def test_a_call_that_is_cancelled_takes_back_what_it_has_asked(service):
    "And a conversation of which the client goes away leaves nothing behind"
    url, served = service
    client(
        served,
        TRITON
        + """
import grpc
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc
for i in range(50):
    channel = grpc.insecure_channel(url)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    q = pb.ModelInferRequest(model_name="plain", id=str(i), \
inputs=[{"name": "x", "datatype": "FP32", "shape": [100, 4]}], raw_input_contents=[bytes(1600)])
    call = stub.ModelInfer.future(q, timeout=20)
    stream = stub.ModelStreamInfer(iter([q] * 20), timeout=20)
    next(stream) if i % 2 else None
    stream.cancel(); call.cancel(); channel.close()
""",
    )
    (ready,) = client(served, TRITON + "say(triton.InferenceServerClient(url).is_server_ready())")
    assert ready
    text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    assert "scalai_queue_rows 0" in text


def test_messages_are_bounded(served):
    "As they are sent, and when they are unpacked"
    said = client(
        served,
        TRITON
        + """
import grpc
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc
channel = grpc.insecure_channel(url)
stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
q = pb.ModelInferRequest(model_name="plain", \
inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}], raw_input_contents=[bytes(40 << 20)])
for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
    try: stub.ModelInfer(q, compression=compression)
    except grpc.RpcError as e: say(e.code().name)
""",
    )
    assert said == ["RESOURCE_EXHAUSTED"] * 2


def test_health_and_reflection(served):
    "As probes of Kubernetes ask, and clients that have no .proto"
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    with grpc.insecure_channel(served) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
        known = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in known.get_services()
        file = known.FindFileContainingSymbol("inference.GRPCInferenceService")
        assert {m.name for m in file.service[0].method} >= {"ModelInfer", "ModelStreamInfer"}


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data):
    try:
        tensors(parsed("ModelInferRequest", data))
    except Refusal as e:
        assert e.status == 400
