"Models of several classes and of numbers in service: every protocol, the log, feedback, measures"

import csv
import json
import struct
import time
from io import BytesIO, StringIO

import numpy as np
import pyarrow as pa
import pytest
from served import worker
from sklearn import metrics
from test_classes import TREES, made, plots
from test_protocols import ask

import scalai_nb as sn
from scalai_nb.data.lake.lake import Lake
from scalai_nb.serving.log.feedback import joined, quality, truth_numbers
from scalai_nb.serving.log.ingest import LogKeeper
from scalai_nb.serving.log.journal import Journal
from scalai_nb.metrics import Metrics
from scalai_nb.serving.scoring.calls import Call
from scalai_nb.serving.scoring.scorer import Scorer, example_arrays
from scalai_nb.serving.scoring.validation import Rows

ROWS = 6
SHARES = [f"probability of {c}" for c in TREES]


@pytest.fixture(scope="module")
def models():
    return {
        "tree": made("tree", "trees")[2],
        "birds": made("birds", "poisson", "counts")[2],
        "code": made("code", "line")[2],
    }


@pytest.fixture(scope="module")
def url(models, tmp_path_factory):
    with worker(tmp_path_factory.mktemp("classes"), models) as found:
        yield found


@pytest.fixture(scope="module")
def rows():
    return plots(40, seed=4).isel(row=slice(0, ROWS))[["light", "water", "soil"]].fillna(0)


@pytest.fixture(scope="module")
def records(rows):
    return [
        {k: v if isinstance(v, str) else float(v) for k, v in r.items()}
        for r in rows.to_dataframe().to_dict("records")
    ]


@pytest.fixture(scope="module")
def shares(models, rows):
    return models["tree"].predict(rows).values


@pytest.fixture(scope="module")
def labels(shares):
    return [TREES[i] for i in shares.argmax(axis=1)]


def near(got, expected):
    np.testing.assert_allclose(np.array(got, float), expected, atol=1e-6)


def predict(url, model, records, accept="application/json"):
    body = json.dumps(records).encode()
    return ask(url, "POST", f"/predict/{model}", body, accept=accept)


def test_json_says_the_class_and_each_probability(url, records, shares, labels):
    status, _, said = predict(url, "tree", records)
    assert status == 200 and [p["label"] for p in said["predictions"]] == labels
    near([[p["probabilities"][c] for c in TREES] for p in said["predictions"]], shares)


def test_csv_and_arrow(url, records, shares, labels):
    head, *lines = csv.reader(StringIO(predict(url, "tree", records, "text/csv")[2].decode()))
    assert head == ["id", "label", *SHARES] and [x[1] for x in lines] == labels
    near([x[2:] for x in lines], shares)
    stream = predict(url, "tree", records, "application/vnd.apache.arrow.stream")[2]
    table = pa.ipc.open_stream(BytesIO(stream)).read_all()
    assert table["label"].to_pylist() == labels
    near(np.stack([table[c].to_numpy() for c in SHARES], axis=1), shares)


def test_version_1(url, records, shares, labels):
    path = "/v1/models/tree:predict"
    said = ask(url, "POST", path, {"instances": records})[2]["predictions"]
    assert [p["label"] for p in said] == labels
    near([p["probabilities"] for p in said], shares)
    columns = {k: [r[k] for r in records] for k in records[0]}
    said = ask(url, "POST", path, {"inputs": columns})[2]["outputs"]
    assert said["label"] == labels
    near(said["probabilities"], shares)


def tensors(records):
    kinds = {"light": "FP32", "water": "FP32", "soil": "BYTES"}
    return [
        {"name": n, "datatype": k, "shape": [len(records), 1], "data": [r[n] for r in records]}
        for n, k in kinds.items()
    ]


def test_version_2(url, records, shares, labels):
    path = "/v2/models/tree"
    body = {"inputs": tensors(records), "outputs": [{"name": "label"}, {"name": "probabilities"}]}
    first, second = ask(url, "POST", f"{path}/infer", body)[2]["outputs"]
    assert (first["name"], first["shape"], second["data"]) == ("probabilities", [ROWS, 5], labels)
    near(np.reshape(first["data"], (ROWS, 5)), shares)
    _, headers, raw = ask(
        url, "POST", f"{path}/infer", body | {"parameters": {"binary_data_output": True}}
    )
    length = int(headers["inference-header-content-length"])
    sizes = [o["parameters"]["binary_data_size"] for o in json.loads(raw[:length])["outputs"]]
    near(np.frombuffer(raw[length : length + sizes[0]], "<f4").reshape(ROWS, 5), shares)
    named, at = raw[length + sizes[0] :], 0
    for label in labels:
        (n,) = struct.unpack_from("<I", named, at)
        assert named[at + 4 : at + 4 + n].decode() == label
        at += 4 + n
    assert at == len(named) == sizes[1]
    about = ask(url, "GET", path)[2]["outputs"]
    assert about[0]["shape"] == [-1, 5] and about[0]["parameters"]["classes"] == list(TREES)
    status, _, said = ask(url, "POST", f"{path}/infer", body | {"outputs": [{"name": "odds"}]})
    assert status == 400 and "accepted: probabilities or label." in said["error"]


@pytest.mark.parametrize("name", ["label", "probabilities"])
@pytest.mark.parametrize("binary", [False, True])
def test_version_2_gives_the_outputs_that_were_asked_for(url, records, labels, name, binary):
    body = {"inputs": tensors(records), "outputs": [{"name": name}]}
    body["parameters"] = {"binary_data_output": binary}
    _, headers, said = ask(url, "POST", "/v2/models/tree/infer", body)
    if binary:
        said = json.loads(said[: int(headers["inference-header-content-length"])])
    assert [o["name"] for o in said["outputs"]] == [name]


def test_a_number_is_answered_as_a_value(url, models, rows, records):
    said = predict(url, "birds", records)[2]["predictions"]
    near([p["value"] for p in said], models["birds"].predict(rows))
    tensor = ask(url, "POST", "/v2/models/birds/infer", {"inputs": tensors(records)})[2]
    near(tensor["outputs"][0]["data"], models["birds"].predict(rows))


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_the_client_gets_a_column_for_each_class(url, rows, shares, protocol):
    from scalai_nb.client.client import Client

    with Client(url, model="tree", protocol=protocol) as client:
        near(client.predict(rows), shares)


def test_grpc_has_both_outputs(models, shares, labels):
    from scalai_nb.serving.protocols.tensors import given, packed

    class Served:
        classes = TREES
        labels = Scorer.labels

    served = Served()
    first, second = given(served, shares)
    assert first[:3] == ("probabilities", "FP32", [ROWS, 5]) and second[3] == labels
    assert packed(["a", "bc"]) == b"\1\0\0\0a\2\0\0\0bc"
    assert [t[0] for t in given(served, shares, ["label"])] == ["label"]


def test_the_openapi_document_accepts_a_class_as_feedback(url):
    paths = ask(url, "GET", "/openapi.json")[2]["paths"]
    schema = paths["/feedback"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "string" in schema["anyOf"][1]["properties"]["truth"]["type"]


def test_feedback_that_is_neither(url):
    for truth in (None, "oak"):
        status, _, said = ask(url, "POST", "/feedback", [{"id": "a", "truth": truth}])
        assert status == 400 and "nor the name of a class of the model" in said["error"]
    told = [{"id": "a", "truth": "ash"}, {"id": "b", "truth": 2, "model": "birds"}]
    assert ask(url, "POST", "/feedback", told)[0] == 200


# ---- log and feedback


class Service:
    def __init__(self, folder, model, name):
        self.lake, self.name = Lake(folder / "lake"), name
        self.folder = folder / "service"
        (self.folder / "log").mkdir(parents=True)
        (self.folder / "routes.json").write_text(json.dumps({"models": {name: {}}}))
        self.scorer = Scorer.load(model.save(folder / "m"), "3", name=name)
        self.keeper = LogKeeper(self.folder, self.lake, Metrics())

    def step(self, scored=(), records=()):
        "Log predictions, (id, rows), and feedback; then a step of the keeper"
        journal = Journal(self.folder, 0, secret=b"0" * 32)
        for id, (numbers, others) in scored:
            rows = Rows(numbers, others)
            call = Call(self.scorer, rows, id, None, None, received=time.perf_counter())
            scores = self.scorer.score(numbers, others)
            assert journal.append(self.scorer, [call], numbers, others, scores)
        assert not records or journal.feedback(list(records))
        journal.close()
        assert self.keeper.step(force=True) is not None, self.keeper.trouble

    def gauge(self, what):
        return self.keeper.metrics.gauges["scalai_feedback_" + what, self.name, "3"]


def told(service, truths):
    ids = [f"a:{i}" for i in range(len(truths))]
    return [{"id": i, "truth": t, "received": 1e9} for i, t in zip(ids, truths, strict=True)]


@pytest.mark.parametrize("late", [False, True])
def test_classes_are_logged_joined_and_measured(models, tmp_path, late):
    service = Service(tmp_path, models["tree"], "tree")
    numbers, others = example_arrays(service.scorer)
    shares = service.scorer.score(numbers, others)
    truths = [TREES[i] for i in np.random.default_rng(0).integers(0, 5, 100)]
    truths[7] = "oak"  # no class of the model
    if late:
        service.step([("a", (numbers, others))])
        service.step(records=told(service, truths))
    else:
        service.step([("a", (numbers, others))], told(service, truths))
    logged = service.lake.read("tree-predictions").compute()
    assert [TREES[i] for i in shares.argmax(axis=1)] == logged.label.values.tolist()
    near(np.stack([logged[f"score_{c}"] for c in TREES], axis=1), shares)
    near(logged.score, shares.max(axis=1))
    both = joined(service.lake, "tree")
    known = np.array([t != "oak" for t in truths])
    expected = metrics.accuracy_score(
        np.array(truths)[known], np.array(TREES)[shares.argmax(axis=1)][known]
    )
    line = quality(both).loc["3"]
    assert line["count"] == 99 and line["accuracy"] == pytest.approx(expected)
    wide = shares[known].astype(float)
    loss = metrics.log_loss(
        np.array(truths)[known], wide / wide.sum(axis=1, keepdims=True), labels=list(TREES)
    )
    assert line["log_loss"] == pytest.approx(loss, rel=1e-4)
    assert service.gauge("accuracy") == pytest.approx(expected) and service.gauge("count") == 99
    again = LogKeeper(service.folder, service.lake, Metrics())
    again.running._load("tree")
    again.running.export()
    assert again.metrics.gauges["scalai_feedback_accuracy", "tree", "3"] == pytest.approx(expected)


def test_numbers_are_logged_joined_and_measured(models, tmp_path):
    service = Service(tmp_path, models["birds"], "birds")
    numbers, others = example_arrays(service.scorer)
    truths = np.random.default_rng(0).poisson(2, 100)
    service.step([("a", (numbers, others))], told(service, [*truths.tolist()]))
    error = service.scorer.score(numbers, others) - truths
    assert quality(joined(service.lake, "birds")).loc["3", "mae"] == pytest.approx(
        np.abs(error).mean(), rel=1e-5
    )
    assert service.gauge("rmse") == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)


def test_two_classes_may_be_told_by_name(tmp_path):
    ds = plots(classes=2)
    t = sn.Transform(["light"]).fit(ds)
    e = sn.LogisticRegression().fit(t.transform(ds), ds.tree.values)
    service = Service(tmp_path, sn.package(t, e), "tree")
    numbers, others = example_arrays(service.scorer)
    truths = ["ash", "beech", True, 0, "oak"] * 20
    service.step([("a", (numbers, others))], told(service, truths))
    service.step(records=[{"id": "a:4", "truth": 1, "received": 2e9}])
    both = joined(service.lake, "tree")
    assert both.truth.values[:4].tolist() == [0, 1, 1, 0] and both.truth.values[4] == 1
    assert quality(both).loc["3", "count"] == 81


def test_what_came_true_as_a_number():
    record = {"output": "probabilities", "classes": ["10", "20"]}
    assert truth_numbers([10, 20.0, "20"], record).tolist() == [0, 1, 1]
    assert np.isnan(truth_numbers([30, "a"], record)).all()
    assert truth_numbers([2.5, True], {"output": "value"}).tolist() == [2.5, 1]
    assert np.isnan(truth_numbers(["2.5"], {"output": "value"})).all()


# ---- offline


def test_a_whole_dataset_is_scored(models, tmp_path):
    env = sn.environment("laptop")
    lake = Lake(tmp_path / "lake")
    lake.write("plots", plots(300, seed=4), "plots")
    from dataclasses import replace

    env = replace(env, lake=str(tmp_path / "lake"))
    expected = models["tree"].predict(plots(300, seed=4))
    lazy = sn.score("plots", models["tree"], env=env)
    assert lazy.dims == ("row", "class") and lazy["class"].values.tolist() == list(TREES)
    near(lazy, expected)
    sn.score("plots", models["tree"], to="scored", env=env, progress=False)
    found = lake.read("scored").compute()
    near(found.score_elm, expected.sel({"class": "elm"}))
    assert found.label.values.tolist() == [TREES[i] for i in expected.values.argmax(axis=1)]
