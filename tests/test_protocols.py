"""Every protocol of REST through a real worker: the model's own scores, errors in one sentence"""

import http.client
import json
import struct
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import flights, late_model, plain_model, worker

ROWS = 7


@pytest.fixture(scope="module")
def late():
    return late_model()


@pytest.fixture(scope="module")
def plain():
    return plain_model()


@pytest.fixture(scope="module")
def one(late, tmp_path_factory):
    with worker(tmp_path_factory.mktemp("one"), {"late": late}) as url:
        yield url


@pytest.fixture(scope="module")
def two(late, plain, tmp_path_factory):
    with worker(tmp_path_factory.mktemp("two"), {"late": late, "plain": plain}) as url:
        yield url


def ask(url, method, path, body=b"", **headers):
    "Status, headers and body of an answer; a body that is no bytes is sent as JSON"
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if (
        answer.headers["content-type"] == "application/json"
        and "inference-header-content-length" not in answer.headers
    ):
        content = json.loads(content or b"null")
    return answer.status, answer.headers, content


def records(ds=None):
    "Rows as JSON has them"
    frame = (
        (flights().isel(row=slice(0, ROWS)) if ds is None else ds).drop_vars("late").to_dataframe()
    )
    frame["time"] = frame["time"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    return [
        {k: None if v != v or v is None else v for k, v in r.items()}
        for r in frame.to_dict("records")
    ]


@pytest.fixture(scope="module")
def expected(late):
    return late.predict(flights().isel(row=slice(0, ROWS))).values


def same(scores, expected):
    assert np.array_equal(np.asarray(scores, np.float64).astype(np.float32), expected)


# ---- v1


def test_v1_takes_records_lists_and_columns(one, expected):
    rows = records()
    for suffix in ("", "/versions/3", "/labels/champion"):
        status, headers, said = ask(
            one, "POST", f"/v1/models/late{suffix}:predict", {"instances": rows}
        )
        same(said["predictions"], expected)
        assert headers["x-model-version"] == "3" and headers["x-prediction-id"]
    order = [c["name"] for c in ask(one, "GET", "/v2/models/late")[2]["inputs"]]
    same(
        ask(
            one,
            "POST",
            "/v1/models/late:predict",
            {"instances": [[r[n] for n in order] for r in rows]},
        )[2]["predictions"],
        expected,
    )
    same(
        ask(
            one,
            "POST",
            "/v1/models/late:predict",
            {"inputs": {n: [r[n] for r in rows] for n in order}},
        )[2]["outputs"],
        expected,
    )
    same(
        ask(
            one,
            "POST",
            "/v1/models/late:predict",
            {"inputs": {n: [[r[n]] for r in rows] for n in order}},
        )[2]["outputs"],
        expected,
    )


def test_v1_says_what_is_served(two):
    assert ask(two, "GET", "/v1/models")[2] == {"models": ["late", "plain"]}
    said = ask(two, "GET", "/v1/models/late")[2]
    assert (
        said["name"] == "late"
        and said["ready"] is True
        and said["model_version_status"][0]["version"] == "3"
        and said["model_version_status"][0]["state"] == "AVAILABLE"
    )
    assert ask(two, "GET", "/v1/models/late/labels/champion")[2] == said
    assert (
        ask(two, "GET", "/v1/models/nobody")[0]
        == ask(two, "GET", "/v1/models/late/versions/9")[0]
        == 404
    )
    status, _, said = ask(two, "POST", "/v1/models/late:explain", {"instances": []})
    assert status == 404 and ":predict" in said["error"]


# ---- v2


def tensors(rows):
    return [
        {"name": "temp", "datatype": "FP32", "shape": [ROWS], "data": [r["temp"] for r in rows]},
        {
            "name": "hour",
            "datatype": "INT64",
            "shape": [ROWS, 1],
            "data": [[r["hour"]] for r in rows],
        },
        {"name": "time", "datatype": "BYTES", "shape": [ROWS], "data": [r["time"] for r in rows]},
        {"name": "night", "datatype": "BOOL", "shape": [ROWS], "data": [r["night"] for r in rows]},
        {
            "name": "carrier",
            "datatype": "BYTES",
            "shape": [ROWS],
            "data": [r["carrier"] for r in rows],
        },
    ]


def test_v2_in_json(one, expected):
    status, headers, said = ask(
        one,
        "POST",
        "/v2/models/late/infer",
        {"id": "mine", "inputs": tensors(records()), "outputs": [{"name": "score"}]},
    )
    assert (
        said["model_name"] == "late"
        and said["model_version"] == "3"
        and said["id"] == headers["x-request-id"] == "mine"
        and said["parameters"]["prediction_id"] == headers["x-prediction-id"] != "mine"
    )
    assert said["outputs"][0] | {"data": 0} == {
        "name": "score",
        "datatype": "FP32",
        "shape": [ROWS],
        "data": 0,
    }
    same(said["outputs"][0]["data"], expected)


def binary(inputs, **more):
    "A body of the binary tensor extension, and the length of its JSON"
    data, said = b"", []
    for tensor in inputs:
        raw = tensor.pop("raw")
        said.append(tensor | {"parameters": {"binary_data_size": len(raw)}})
        data += raw
    head = json.dumps({"inputs": said, **more}).encode()
    return head + data, str(len(head))


def raw_tensors():
    ds = flights().isel(row=slice(0, ROWS))
    strings = b"".join(
        struct.pack("<I", len(b := (v if isinstance(v, str) else "").encode())) + b
        for v in ds.carrier.values
    )
    seconds = (ds.time.values - np.datetime64(0, "s")) / np.timedelta64(1, "s")
    return [
        {"name": "temp", "datatype": "FP32", "shape": [ROWS], "raw": ds.temp.values.tobytes()},
        {"name": "hour", "datatype": "INT64", "shape": [ROWS, 1], "raw": ds.hour.values.tobytes()},
        {"name": "time", "datatype": "FP64", "shape": [ROWS, 1], "raw": seconds.tobytes()},
        {"name": "night", "datatype": "BOOL", "shape": [ROWS], "raw": ds.night.values.tobytes()},
        {"name": "carrier", "datatype": "BYTES", "shape": [ROWS], "raw": strings},
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "score", "parameters": {"binary_data": True}}]},
    ],
)
def test_v2_in_bytes(one, expected, more):
    body, length = binary(raw_tensors(), **more)
    status, headers, said = ask(
        one,
        "POST",
        "/v2/models/late/versions/champion/infer",
        body,
        Inference_Header_Content_Length=length,
    )
    at = int(headers["inference-header-content-length"])
    output = json.loads(said[:at])["outputs"][0]
    assert (
        status == 200
        and output["parameters"]["binary_data_size"] == len(said) - at
        and np.array_equal(np.frombuffer(said[at:], "<f4"), expected)
    )


def test_v2_refuses_bytes_that_do_not_fit(one):
    body, length = binary(raw_tensors())
    bad = {
        "short": (body[:-1], length),
        "long": (body + b"x", length),
        "beyond": (body, str(len(body) + 1)),
        "no length": (body, "x"),
        "cut": (body, "10"),
    }
    for name, (content, said) in bad.items():
        status, _, answer = ask(
            one, "POST", "/v2/models/late/infer", content, Inference_Header_Content_Length=said
        )
        assert status == 400 and answer["error"].endswith("."), name


@pytest.mark.parametrize(
    "datatype",
    [
        "FP16",
        "FP32",
        "FP64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
    ],
)
def test_v2_takes_one_tensor_of_any_type_for_a_model_of_numbers(two, plain, datatype):
    x = np.array(
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        {"FP": "f", "IN": "i", "UI": "u"}[datatype[:2]] + str(int(datatype.strip("UINTFP")) // 8),
    )
    wanted = plain.score({n: x[:, j].astype(np.float32) for j, n in enumerate("abcd")})
    body, length = binary(
        [{"name": "input-0", "datatype": datatype, "shape": [2, 4], "raw": x.tobytes()}]
    )
    same(
        ask(two, "POST", "/v2/models/plain/infer", body, Inference_Header_Content_Length=length)[2][
            "outputs"
        ][0]["data"],
        wanted,
    )
    for data in (x.tolist(), x.ravel().tolist()):
        same(
            ask(
                two,
                "POST",
                "/v2/models/plain/infer",
                {"inputs": [{"name": "x", "datatype": datatype, "shape": [2, 4], "data": data}]},
            )[2]["outputs"][0]["data"],
            wanted,
        )


def test_v2_health_and_metadata(one):
    assert ask(one, "GET", "/v2/health/live")[2] == {"live": True} and ask(
        one, "GET", "/v2/health/ready"
    )[2] == {"ready": True}
    assert (
        ask(one, "GET", "/v2/models/late/ready")[2]
        == ask(one, "GET", "/v2/models/late/versions/3/ready")[2]
        == {"name": "late", "ready": True}
    )
    assert "binary_tensor_data" in ask(one, "GET", "/v2")[2]["extensions"]
    said = ask(one, "GET", "/v2/models/late")[2]
    assert (
        said["versions"] == ["3"]
        and {"name": "time", "datatype": "FP64", "shape": [-1, 1]} in said["inputs"]
    )
    assert ask(one, "POST", "/v2/repository/index")[2] == [
        {"name": "late", "version": "3", "state": "READY", "reason": ""}
    ]
    assert (
        ask(one, "GET", "/v2/models/late/versions/9/ready")[0]
        == ask(one, "GET", "/v2/models/nobody")[0]
        == 404
    )


# ---- plain


def frame():
    return (
        flights()
        .isel(row=slice(0, ROWS))
        .drop_vars("late")
        .to_dataframe()
        .astype({"carrier": object})
    )


def arrow(table, new=pa.ipc.new_stream):
    out = BytesIO()
    with new(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


def parquet(table):
    pq.write_table(table, out := BytesIO())
    return out.getvalue()


def test_plain_takes_every_format(one, expected):
    table, rows = pa.Table.from_pandas(frame(), preserve_index=False), records()
    coded = table.set_column(
        table.column_names.index("carrier"), "carrier", table["carrier"].dictionary_encode()
    )
    bodies = [
        ("application/json", json.dumps(rows).encode()),
        ("application/json; charset=utf-8", json.dumps({"rows": rows}).encode()),
        ("application/x-www-form-urlencoded", json.dumps(rows).encode()),
        ("application/x-ndjson", "\n".join(map(json.dumps, rows)).encode()),
        ("text/csv", frame().to_csv(index=False).encode()),
        ("application/vnd.apache.arrow.stream", arrow(table)),
        ("application/vnd.apache.arrow.stream", arrow(coded)),
        ("application/vnd.apache.arrow.file", arrow(table, pa.ipc.new_file)),
        ("application/vnd.apache.parquet", parquet(table)),
    ]
    for kind, body in bodies:
        status, headers, said = ask(one, "POST", "/predict", body, content_type=kind)
        assert status == 200 and said["model"] == "late" and said["version"] == "3", (kind, said)
        same([p["probability"] for p in said["predictions"]], expected)
        assert [p["id"] for p in said["predictions"]] == [f"{said['id']}:{i}" for i in range(ROWS)]


@pytest.mark.parametrize("write", [arrow, parquet])
def test_a_column_that_the_model_does_not_know_is_named(one, write):
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    more = table.append_column("colour", pa.array(["red"] * ROWS))
    kind = {arrow: "application/vnd.apache.arrow.stream", parquet: "application/vnd.apache.parquet"}
    status, _, said = ask(one, "POST", "/predict", write(more), content_type=kind[write])
    assert status == 400 and "colour" in json.dumps(said)


def test_plain_answers_in_the_format_that_is_asked_for(one, expected):
    body = json.dumps(records()).encode()
    status, headers, said = ask(
        one,
        "POST",
        "/predict/late@champion",
        body,
        Accept="text/html, text/csv;q=0.9",
        x_request_id="abc",
    )
    lines = [line.split(",") for line in said.decode().splitlines()]
    assert (
        headers["content-type"] == "text/csv"
        and lines[0] == ["id", "probability"]
        and lines[1][0] == headers["x-prediction-id"] + ":0"
        and headers["x-request-id"] == "abc"
    )
    same([float(p) for _, p in lines[1:]], expected)
    table = pa.ipc.open_stream(
        ask(one, "POST", "/predict/late", body, Accept="application/vnd.apache.arrow.stream")[2]
    ).read_all()
    assert np.array_equal(table["probability"].to_numpy(), expected)


def test_plain_asks_for_a_name_where_several_are_served(two):
    status, _, said = ask(two, "POST", "/predict", [{"a": 1, "b": 2, "c": 3, "d": 4}])
    assert status == 404 and "/predict/plain" in said["error"]
    assert (
        "value"
        in ask(two, "POST", "/predict/plain", {"a": 1, "b": 2, "c": 3, "d": 4})[2]["predictions"][0]
    )


def test_feedback_is_taken_and_checked(one):
    for body, kind, n in (
        (b'{"id": "a", "truth": true}', "application/json", 1),
        (
            b'[{"id": "a", "truth": 0.5, "time": "2013-01-31"}, {"id": "b", "truth": 0}]',
            "application/json",
            2,
        ),
        (b'{"id": "a", "truth": true}\n{"id": "b", "truth": false}\n', "application/x-ndjson", 2),
    ):
        assert ask(one, "POST", "/feedback", body, content_type=kind)[::2] == (200, {"accepted": n})
    for bad in (
        b"",
        b"[]",
        b"7",
        b'{"id": 7, "truth": true}',
        b'{"id": "a"}',
        b'{"id": "a", "truth": "yes"}',
        b'{"id": "", "truth": 1}',
        b'{"id": "a", "truth": 1, "time": "noon"}',
        b'{"id": "a", "truth": 1, "x": 1}',
    ):
        assert ask(one, "POST", "/feedback", bad)[0] == 400, bad
    for model in (b'""', b'"plan"', b"null", b"7", b'"%s"' % (b"x" * 300), b"[]"):
        body = b'{"id": "a", "truth": 1, "model": %s}' % model
        status, _, said = ask(one, "POST", "/feedback", body)
        assert status == 404 and "served: " in said["error"], (model, said)


# ---- what is wrong


def test_bad_requests_are_named_by_row_and_column(one):
    def first(**changed):
        return [records()[0] | changed]

    cases = {
        "type": (first(hour="7"), 0, "hour"),
        "range": (first(hour=900), 0, "hour"),
        "missing": (first(hour=None), 0, "hour"),
        "boolean": (first(hour=True), 0, "hour"),
        "time": (first(time="now"), 0, "time"),
        "number as time": (first(time=7), 0, "time"),
        "number as string": (first(carrier=7), 0, "carrier"),
        "unknown": (first(huor=7), 0, "huor"),
        "absent": ([{k: v for k, v in records()[0].items() if k != "temp"}], 0, "temp"),
        "string absent, another there": (
            [{k: v for k, v in (records()[0] | {"late": True}).items() if k != "carrier"}],
            0,
            "carrier",
        ),
        "second": ([records()[0], records()[1] | {"temp": 1e30}], 1, "temp"),
        "a list": ([records()[0], [1, 2]], 1, None),
        "empty": ([], None, None),
        "nested": (first(temp=[[1]]), 0, "temp"),
    }
    for name, (rows, row, column) in cases.items():
        for path, body in (("/predict", rows), ("/v1/models/late:predict", {"instances": rows})):
            status, _, said = ask(one, "POST", path, body)
            assert (status, said.get("row"), said.get("column")) == (400, row, column), (name, said)
            assert said["error"].endswith((".", "?")) and "Traceback" not in said["error"]
    assert "Did you mean 'hour'?" in ask(one, "POST", "/predict", first(huor=7))[2]["error"]


BROKEN = [
    b"",
    b"{",
    b"null",
    b"7",
    b'"x"',
    b"[[]]",
    b"[null]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"instances": 7}',
    b'{"inputs": []}',
    b'{"inputs": [7]}',
    b'{"inputs": [{"name": "temp"}]}',
    b'{"inputs": {}}',
    b'{"rows": 1}',
    b'[{"temp": 1e400}]',
    b'[{"temp": NaN}]',
    b'{"instances": [{"temp": 123456789012345678901234567890}]}',
    b'{"inputs": [{"name": "temp", "datatype": "FP32", "shape": [-1], "data": [1]}]}',
    b'{"inputs": [{"name": "temp", "datatype": "FP32", "shape": [1], "data": [[1], 2]}]}',
    b'{"inputs": [{"name": "temp", "datatype": {}, "shape": [1], "data": [1]}]}',
    (
        b'{"inputs": [{"name": "temp", "datatype": "FP32", "shape": [1], "data": [1], '
        b'"parameters": 7}]}'
    ),
    b'{"inputs": [{"name": {}, "datatype": "FP32", "shape": [1], "data": [1]}]}',
    b'{"id": 7, "inputs": [{"name": "temp", "datatype": "FP32", "shape": [1], "data": [1]}]}',
    (
        b'{"inputs": [{"name": "temp", "datatype": "FP32", "shape": [1], "data": [1]}], '
        b'"parameters": []}'
    ),
]


@pytest.mark.parametrize(
    "path", ["/predict", "/v1/models/late:predict", "/v2/models/late/infer", "/feedback"]
)
def test_broken_bodies_are_refused(one, path):
    for body in BROKEN:
        status, _, said = ask(one, "POST", path, body)
        expected = 413 if path == "/feedback" and len(body) > 64 << 10 else 400
        assert status == expected and said["error"].endswith((".", "?")), (body[:80], status, said)
    for kind in (
        "text/csv",
        "application/x-ndjson",
        "application/vnd.apache.arrow.stream",
        "application/vnd.apache.arrow.file",
        "application/vnd.apache.parquet",
    ):
        for body in (
            b"",
            b"\0",
            b"\xff" * 40,
            b"ARROW1\0\0" + b"\xff" * 40,
            b"PAR1" + b"\0" * 40 + b"PAR1",
            b"a,a\n1,2\n",
            b'"a',
            b"a\n1,2\n",
        ):
            assert ask(one, "POST", "/predict", body, content_type=kind)[0] == 400, (kind, body)
    assert ask(one, "GET", "/v2/health/ready")[0] == 200


def test_formats_methods_and_paths_that_are_not_there(one):
    status, _, said = ask(one, "POST", "/predict", b"x", content_type="application/octet-stream")
    assert status == 415 and "text/csv" in said["error"]
    status, headers, _ = ask(one, "GET", "/predict")
    assert status == 405 and headers["allow"] == "POST"
    assert (
        ask(one, "DELETE", "/v2/models/late")[1]["allow"] == "GET, HEAD"
        and ask(one, "GET", "/nowhere")[0] == 404
    )
    assert ask(one, "HEAD", "/v2/models/late")[2] is None


def test_too_many_rows_are_for_offline_scoring(one):
    for path, body in (
        ("/predict", b"[" + b"[1]," * 1_000_001 + b"[1]]"),
        ("/v1/models/late:predict", b'{"instances":[' + b"[]," * 1_000_200 + b"[]]}"),
    ):
        status, _, said = ask(one, "POST", path, body)
        assert status == 413 and "sn.score" in said["error"]


def test_ids_and_deadlines(one):
    row = records()[:1]
    status, headers, said = ask(one, "POST", "/predict", row, x_request_id="my one")
    assert status == 200 and headers["x-request-id"] == "my one" != headers["x-prediction-id"]
    assert said["id"] == headers["x-prediction-id"]
    status, _, said = ask(one, "POST", "/predict", row, x_request_id="my one")
    assert status == 409 and "'my one' before; send another" in said["error"]
    spoofed = ask(one, "POST", "/predict", row, x_request_id="my one", x_client_id="another")
    assert spoofed[0] == 409  # what a client calls itself does not make it another
    assert "x-request-id" not in ask(one, "POST", "/predict", row)[1]
    late = {"x_request_id": "late", "x_request_timeout_ms": "0"}
    assert ask(one, "POST", "/predict", row, **late)[0] == 504
    assert ask(one, "POST", "/predict", row, x_request_id="late")[0] == 200  # as it got no answer
    first, second = (ask(one, "POST", "/predict", row)[1]["x-prediction-id"] for _ in range(2))
    assert first != second
    for bad in ("x" * 129, "é"):
        assert ask(one, "POST", "/predict", row, x_request_id=bad)[0] == 400
    assert (
        ask(
            one, "POST", "/v2/models/late/infer", {"id": "a\r\nb: c", "inputs": tensors(records())}
        )[0]
        == 400
    )
    assert (
        ask(one, "POST", "/predict", row, x_request_timeout_ms="0")[0] == 504
        and ask(one, "POST", "/predict", row, x_request_timeout_ms="20000")[0] == 200
    )
    for bad in ("-1", "soon", "1e3"):
        assert ask(one, "POST", "/predict", row, x_request_timeout_ms=bad)[0] == 400
    assert (
        ask(
            one,
            "POST",
            "/v2/models/late/infer",
            {"inputs": tensors(records()), "parameters": {"timeout": 1}},
        )[0]
        == 504
    )


@pytest.mark.parametrize("key", ["carrier", "X-Plane"])
def test_a_canary_takes_its_share_by_a_column_or_a_header(late, tmp_path, key):
    with worker(tmp_path, {"late": late}, {"version": "4", "share": 0.5, "key": key}) as url:

        def version(value):
            return ask(
                url,
                "POST",
                "/predict",
                [records()[0] | ({"carrier": value} if key == "carrier" else {})],
                x_plane=value,
            )[1]["x-model-version"]

        first = [version(f"plane {i}") for i in range(30)]
        assert set(first) == {"3", "4"} and first == [version(f"plane {i}") for i in range(30)]
        assert {
            ask(url, "POST", "/predict/late@champion", records(), x_plane=f"plane {i}")[1][
                "x-model-version"
            ]
            for i in range(9)
        } == {"3"}


# ---- what it says of itself


def test_requests_are_counted_by_what_is_served(one):
    ask(one, "POST", "/predict", records())
    ask(one, "POST", "/predict/nobody", [{}])
    ask(one, "POST", "/predict", [records()[0] | {"hour": "x"}])
    text = ask(one, "GET", "/metrics")[2].decode()
    counted = {
        tuple(s.labels[k] for k in ("model", "version", "protocol", "status"))
        for f in text_string_to_metric_families(text)
        for s in f.samples
        if s.name == "scalai_requests_total"
    }
    assert {
        ("late", "3", "predict", "200"),
        ("late", "3", "predict", "400"),
        ("", "", "predict", "404"),
    } <= counted and "nobody" not in text


def test_pages_need_nothing_else(one):
    for path in ("/", "/docs"):
        status, headers, page = ask(one, "GET", path, Host='"><script>alert(1)</script>')
        assert (
            status == 200
            and headers["content-type"].startswith("text/html")
            and b"<script>alert" not in page
        )
        assert (
            b"http://"
            not in page.replace(b"http://&quot;", b"")
            .replace(b"http://&#x27;", b"")
            .split(b"<h1>")[0]
            and b"https://" not in page
        )


def test_the_examples_of_the_document_work(two):
    document = ask(two, "GET", "/openapi.json")[2]
    assert document["openapi"] == "3.1.0"
    tried = 0
    for path, operations in document["paths"].items():
        content = (
            operations.get("post", {})
            .get("requestBody", {})
            .get("content", {})
            .get("application/json")
        )
        if not content or path == "/predict":
            continue
        status, _, said = ask(
            two, "POST", path.format(model="late", version="champion"), content["example"]
        )
        assert status == 200, (path, said)
        tried += 1
    assert tried == 8
