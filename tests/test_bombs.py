"""What is small when it is sent and large when it is decoded, in every format and encoding

Each bomb is made from a seed. A thousand of them cost a worker no more memory than it may take:
`pytest -m campaign tests/test_bombs.py` throws them, CI a twentieth of that.
"""

import gzip
import http.client
import io
import itertools
import json
import random
import struct
import threading
import zlib
from collections import Counter
from urllib.parse import urlsplit

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from attacking import listener, watched
from conftest import free_port
from served import late_model, plain_model, worker

from scalai_nb.serving.protocols.messages import SERVICE, messages

SMALL = 300_000  # bytes of a bomb, as it is sent
KINDS = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}


def _size(r: random.Random) -> int:
    "Bytes, from a few thousand to some ten million"
    return int(10 ** r.uniform(3.5, 7.5))


# ---- text


def _json(r: random.Random) -> bytes:
    n = _size(r)
    value = r.choice(
        [
            b"[]",
            b"{}",
            b"[1,2,3,4]",
            b"1e5",
            b'""',
            b'{"a":1}',
            b"[[[[]]]]",
            b"null",
            b'"%b"' % (b"x" * 99),
        ]
    )
    row = r.choice([b"%b", b'{"instances":%b}', b'{"inputs":{"a":%b}}', b'{"rows":%b}'])
    deep = b"[" * n + b"]" * n
    wide = b"[" + b",".join(itertools.repeat(value, max(1, n // len(value)))) + b"]"
    keys = b"{" + b",".join(b'"%d":0' % i for i in range(n // 12)) + b"}"
    long = b'["' + b"x" * n + b'"]'
    digits = b"[" + b"9" * n + b"]"
    return row % r.choices([wide, deep, keys, long, digits], [6, 1, 1, 1, 1])[0]


def _ndjson(r: random.Random) -> bytes:
    line = r.choice(
        [b"[]\n", b"{}\n", b"[1,2,3,4]\n", b"1\n", b"\n", b'{"a":1,"b":2,"c":3,"d":4}\n']
    )
    return line * (_size(r) // len(line))


def _csv(r: random.Random) -> bytes:
    n = _size(r)
    head = r.choice([b"a,b,c,d\n", b"", b"a" * n + b"\n", b"a," * (n // 2) + b"\n"])
    line = r.choice([b"1,2,3,4\n", b",,,\n", b"\n", b"," * n, b'"' + b"x" * n, b"0\n"])
    return head + line * max(1, n // len(line))


# ---- Arrow and Parquet


def _arrays(r: random.Random) -> tuple[pa.DataType, callable]:
    "A column of much in little: its type is one of many, its values all alike"
    rows = int(10 ** r.uniform(2, 6.5))
    text = "x" * int(10 ** r.uniform(0, 5))
    indices = pa.array(np.zeros(rows, np.int8))
    choices = [
        lambda: pa.nulls(rows),
        lambda: pa.nulls(rows, pa.float64()),
        lambda: pa.nulls(rows, pa.list_(pa.float64())),
        lambda: pa.array(np.zeros(rows, bool)),
        lambda: pa.array(np.zeros(rows, np.int8)),
        lambda: pa.DictionaryArray.from_arrays(indices, [text]),
        lambda: pa.DictionaryArray.from_arrays(indices, pa.array([1.5])),
        lambda: pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([text])),
        lambda: pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([1.5])),
        lambda: pa.array([text] * min(rows, 100)),
        lambda: pa.array([text] * min(rows, 100), pa.string_view()),
        lambda: pa.array([text] * min(rows, 100), pa.large_string()),
        lambda: pa.array([b"x"] * min(rows, 10_000), pa.binary()),
        lambda: pa.array([[1.0] * 100] * min(rows, 10_000)),
        lambda: pa.array([{"a": 1.0}] * min(rows, 10_000)),
        lambda: pa.array(np.zeros(rows, "M8[s]")),
        lambda: pa.array(np.zeros(rows)),
    ]
    return r.choice(choices)()


def _table(r: random.Random) -> pa.Table:
    names = r.choice([["a"], list("abcd"), list("abcd"), ["a"] * 20, [f"c{i}" for i in range(200)]])
    column = _arrays(r)[: 3_000_000 // len(names)]
    return pa.Table.from_arrays([column] * len(names), names=names)


def _arrow(r: random.Random) -> bytes:
    table, out = _table(r), io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=r.choice([None, "lz4", "zstd"]))
    with pa.ipc.new_stream(out, table.schema, options=options) as stream:
        stream.write_table(table, max_chunksize=r.choice([None, 1_000]))
    return out.getvalue()


def _parquet(r: random.Random) -> bytes:
    out = io.BytesIO()
    compression = r.choice(["NONE", "snappy", "gzip", "zstd", "brotli", "lz4"])
    try:
        pq.write_table(_table(r), out, compression=compression, use_dictionary=r.random() < 0.7)
    except (pa.ArrowException, ValueError):  # a type that Parquet has not
        return _parquet(r)
    return out.getvalue()


# ---- tensors


def _tensors(r: random.Random) -> bytes:
    n = _size(r)
    kind, value = r.choice([("FP32", "0"), ("BOOL", "true"), ("BYTES", '""'), ("INT64", "null")])
    data = "[" + ",".join([value] * (n // len(value) // 2)) + "]"
    shape = r.choice([[n // len(value) // 2, 1], [10**9, 4], [n], [0, 4], [-1]])
    tensor = f'{{"name":"a","datatype":"{kind}","shape":{shape},"data":{data}}}'
    tensors = ",".join([tensor] * r.choice([1, 1, 4]))
    return f'{{"inputs":[{tensors}]}}'.encode()


def _message(r: random.Random) -> bytes:
    n = min(_size(r), 8 << 20)
    field = r.choice(
        ["int_contents", "bool_contents", "fp32_contents", "bytes_contents", "raw", "many"]
    )
    request = messages().ModelInferRequest(model_name="plain")
    if field == "many":
        request.inputs.extend(messages().InferTensor() for _ in range(n // 40))
    elif field == "raw":
        request.inputs.add(name="a", datatype="BYTES", shape=[n // 4])
        request.raw_input_contents.append(struct.pack("<I", 0) * (n // 4))
    else:
        values = {"bool_contents": False, "bytes_contents": b""}.get(field, 0)
        kind = {"bool_contents": "BOOL", "bytes_contents": "BYTES", "int_contents": "INT8"}
        tensor = request.inputs.add(name="a", datatype=kind.get(field, "FP32"), shape=[n // 2, 1])
        getattr(tensor.contents, field).extend(itertools.repeat(values, n // 2))
    return request.SerializeToString()


# ---- throwing


MAKE = {"json": _json, "ndjson": _ndjson, "csv": _csv, "arrow": _arrow, "parquet": _parquet}


def _bomb(seed: int) -> tuple[str, str, bytes, dict]:
    "Format, path, body and headers of a bomb"
    r = random.Random(seed)
    name = r.choice([*MAKE, "tensors"])
    body = _tensors(r) if name == "tensors" else MAKE[name](r)
    headers = {"Content-Type": KINDS.get(name, "application/json")}
    if len(body) > 200_000 or r.random() < 0.3:
        encoding, pack = r.choice([("gzip", gzip.compress), ("deflate", zlib.compress)])
        body, headers["Content-Encoding"] = pack(body, 6), encoding
    if len(body) > SMALL:
        return _bomb(seed + 1_000_000)  # this one is no bomb
    paths = {"tensors": "/v2/models/plain/infer"}
    if name == "json":
        paths["json"] = r.choice(["/v1/models/plain:predict", "/predict/plain", "/feedback"])
    return name, paths.get(name, "/predict/plain"), body, headers


def _thrown(at: tuple[str, int], bombs: dict, said: Counter) -> None:
    "Throw bombs, one after another, and note what is said to each"
    connection = http.client.HTTPConnection(*at, timeout=60)
    for seed, (name, path, body, headers) in bombs.items():
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        said[name, answer.status] += 1
        if answer.status not in (200, 400, 404, 413, 415, 429, 503):
            said[f"seed {seed}: {answer.status} {text[:200]!r}"] += 1
    connection.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    grpc_port, models = free_port(), {"plain": plain_model(), "late": late_model()}
    with worker(tmp_path_factory.mktemp("s"), models, grpc_port=grpc_port) as url:
        at = urlsplit(url).hostname, urlsplit(url).port
        _honest(at)
        yield at, (at[0], grpc_port), listener(at[1])


def _honest(at: tuple[str, int]) -> None:
    "What is read once for each format, as pyarrow, belongs to the rest"
    table = pa.table({name: np.zeros(1_000, np.float32) for name in "abcd"})
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_stream(arrow, table.schema) as stream:
        stream.write_table(table)
    connection = http.client.HTTPConnection(*at, timeout=60)
    for name, body in {
        "parquet": parquet.getvalue(),
        "arrow": arrow.getvalue(),
        "json": json.dumps([[0, 0, 0, 0]] * 30_000).encode(),
    }.items():
        connection.request("POST", "/predict/plain", body, {"Content-Type": KINDS[name]})
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:9]) == (200, b'{"model":')
    connection.close()


@pytest.mark.parametrize(
    "bombs", [50, pytest.param(1_000, marks=[pytest.mark.campaign, pytest.mark.timeout(900)])]
)
def test_bombs(served, bombs):
    said = Counter()
    piles = [{seed: _bomb(seed) for seed in range(i, bombs, 3)} for i in range(3)]
    with watched(served, f"{bombs} bombs"):
        throwing = [
            threading.Thread(target=_thrown, args=(served[0], pile, said)) for pile in piles
        ]
        for thread in throwing:
            thread.start()
        for thread in throwing:
            thread.join()
    print(dict(sorted((key, n) for key, n in said.items() if isinstance(key, tuple))))
    wrong = [key for key in said if isinstance(key, str)]
    assert not wrong, wrong[:3]
    assert said.total() == bombs


def test_messages_of_grpc(served):
    said = Counter()
    with watched(served, "messages"), grpc.insecure_channel(f"127.0.0.1:{served[1][1]}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for seed in range(60):
            packed = random.Random(seed).choice([grpc.Compression.Gzip, None])
            try:
                call(_message(random.Random(seed)), timeout=30, compression=packed)
                said["OK"] += 1
            except grpc.RpcError as e:
                said[e.code().name] += 1
    print(dict(said))
    assert said.keys() <= {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
