"""What the contract calls `later` is refused, in whatever form a request brings it"""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from served import worker
from test_protocols import ask

import scalai_nb as sn
from scalai_nb.serving.protocols import protobuf
from scalai_nb.serving.protocols.messages import messages
from scalai_nb.serving.refusal import Refusal
from scalai_nb.serving.scoring.scorer import Scorer

SENT = {"hour": [7.0, 8.0], "temp": [20.5, 30.5]}
LATER = SENT | {"delay": [3.0, 4.0]}


@pytest.fixture(scope="module")
def departures(tmp_path_factory):
    "A model whose contract knows a column of later, and the url of its worker"
    rng = np.random.default_rng(2)
    means = {"hour": 12, "temp": 50, "delay": 0, "note": 0}
    ds = xr.Dataset({n: ("row", np.float32(rng.normal(m, 10, 200))) for n, m in means.items()})
    ds = ds.assign(late=ds.delay > 0)
    t = sn.Transform(numeric=["hour", "temp"]).fit(ds)
    contract = sn.Contract.infer(ds, label="late", later="delay")
    model = sn.package(
        t, sn.LogisticRegression().fit(t.transform(ds), ds.late.values), contract, name="gone"
    )
    with worker(tmp_path_factory.mktemp("departures"), {"gone": model}) as url:
        yield url, model


def named_tensors(columns):
    about = {"datatype": "FP32", "shape": [2, 1]}
    return {"inputs": [about | {"name": n, "data": x} for n, x in columns.items()]}


def in_arrow(columns):
    sink, table = io.BytesIO(), pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def in_parquet(columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def in_rows(columns):
    return [dict(zip(columns, x, strict=True)) for x in zip(*columns.values(), strict=True)]


def in_csv(columns):
    lines = zip(*columns.values(), strict=True)
    return "\n".join([",".join(columns), *(",".join(map(str, x)) for x in lines)]).encode()


LATER_BODIES = {
    "records": ("/predict", "application/json", in_rows),
    "lines": (
        "/predict",
        "application/x-ndjson",
        lambda c: b"\n".join(json.dumps(r).encode() for r in in_rows(c)),
    ),
    "csv": ("/predict", "text/csv", in_csv),
    "arrow": ("/predict", "application/vnd.apache.arrow.stream", in_arrow),
    "parquet": ("/predict", "application/vnd.apache.parquet", in_parquet),
    "v1 instances": (
        "/v1/models/gone:predict",
        "application/json",
        lambda c: {"instances": in_rows(c)},
    ),
    "v1 inputs": ("/v1/models/gone:predict", "application/json", lambda c: {"inputs": c}),
    "v2": ("/v2/models/gone/infer", "application/json", named_tensors),
}


@pytest.mark.parametrize("form", LATER_BODIES)
def test_what_is_known_only_later_is_refused(departures, form):
    url, _ = departures
    path, kind, body = LATER_BODIES[form]
    assert ask(url, "POST", path, body(SENT), content_type=kind)[0] == 200
    fine = ask(url, "POST", path, body(SENT | {"note": [1.0, 2.0]}), content_type=kind)
    assert fine[0] == 200, "a column that the contract knows, and the model does not take"
    status, _, said = ask(url, "POST", path, body(LATER), content_type=kind)
    assert status == 400 and said["column"] == "delay"
    assert "Column 'delay' is known only after the prediction" in said["error"]


def test_what_is_known_only_later_is_refused_over_grpc_and_as_one_tensor(departures, tmp_path):
    url, model = departures
    scorer = Scorer.load(model.save(tmp_path / "package"), 3)
    contents = {
        n: {"name": n, "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": x}}
        for n, x in LATER.items()
    }
    message = messages().ModelInferRequest(model_name="gone", inputs=[*contents.values()])
    with pytest.raises(Refusal, match="Column 'delay' is known only after"):
        protobuf.decode(message, "me", received=0.0).rows(scorer)
    one = {"name": "delay", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    status, _, said = ask(url, "POST", "/v2/models/gone/infer", {"inputs": [one]})
    assert status == 400 and said["column"] == "delay"
