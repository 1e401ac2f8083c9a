"""Metrics of several processes as one page, and spans that reach a collector."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, strategies as st
from prometheus_client.parser import text_string_to_metric_families

from scalai_nb import metrics
from scalai_nb.serving import tracing
from scalai_nb.metrics import METRICS, Metrics


def samples(m: Metrics) -> dict:
    "The samples of the page, by name and labels"
    text, kind = metrics.page(m)
    assert kind.startswith("text/plain")
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


# ---- counting


@given(st.lists(st.floats(0, 10), max_size=50))
def test_a_histogram_is_what_counting_by_hand_gives(values):
    m = Metrics()
    for v in values:
        m.observe("scalai_score_seconds", "late", "3", value=v)
    if not values:
        return
    found = samples(m)
    assert found["scalai_score_seconds_count", "3", "late"] == len(values)
    buckets = {key: n for key, n in found.items() if key[0] == "scalai_score_seconds_bucket"}
    for end in metrics.SECONDS:
        (n,) = [n for key, n in buckets.items() if str(end) in key]
        assert n == sum(v <= end for v in values)


def test_every_metric_of_the_table_can_be_on_the_page():
    m = Metrics()
    for name, (kind, labels, _) in METRICS.items():
        values = [f'a "{label}"\n' for label in labels]
        if kind == "counter":
            m.count(name, *values)
        elif kind == "gauge":
            m.gauge(name, *values, value=1)
        else:
            m.observe(name, *values, value=0.5)
    found = {key[0] for key in samples(m)}
    for name, (kind, *_) in METRICS.items():
        assert (name if kind in ("counter", "gauge") else f"{name}_count") in found


def test_a_metric_that_nobody_declared_is_told():
    m = Metrics()
    m.count("scalai_misspelt_total")
    with pytest.raises(AssertionError, match="misspelt"):
        metrics.page(m)


# ---- several processes


def test_all_processes_are_on_the_page_once(tmp_path):
    workers = [Metrics(), Metrics(), Metrics()]
    for i, m in enumerate(workers):
        m.count("scalai_shed_total", "full", n=10**i)
        m.observe("scalai_batch_rows", "late", "3", value=i + 1)
        m.gauge("scalai_queue_rows", value=i)
        assert metrics.save(m, tmp_path / f"worker-{i}.json")
    found = samples(metrics.of_service(workers[1], tmp_path / "worker-1.json"))
    assert (
        found["scalai_shed_total", "full"] == 111
        and found["scalai_batch_rows_sum", "3", "late"] == 6
        and found["scalai_queue_rows",] == 3
    )


def test_a_worker_that_comes_back_goes_on_counting(tmp_path):
    m = Metrics()
    m.count("scalai_shed_total", "full", n=5)
    m.observe("scalai_batch_rows", "late", "3", value=1)
    m.gauge("scalai_queue_rows", value=9)
    metrics.save(m, tmp_path / "worker-0.json")
    back = metrics.resumed(tmp_path / "worker-0.json")
    back.count("scalai_shed_total", "full")
    back.observe("scalai_batch_rows", "late", "3", value=1)
    found = samples(metrics.of_service(back, tmp_path / "worker-0.json"))
    assert (
        found["scalai_shed_total", "full"] == 6
        and found["scalai_batch_rows_count", "3", "late"] == 2
        and ("scalai_queue_rows",) not in found
    )


@pytest.mark.parametrize("text", ["", "[", "{}", "[[], []]"])
def test_a_copy_that_cannot_be_read_counts_for_nothing(tmp_path, text):
    (tmp_path / "worker-1.json").write_text(text)
    metrics.of_service(Metrics(), tmp_path / "worker-0.json")


# ---- traces


def test_spans_reach_a_collector(monkeypatch):
    "A stand-in for a collector: it takes OTLP over HTTP, as every collector does"
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(
                ExportTraceServiceRequest.FromString(
                    self.rfile.read(int(self.headers["content-length"]))
                )
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        t = tracing.tracing("late-flight")
        t.request(0.01, model="late-flight", version="3", protocol="v2", rows=2, status=200)
        t.request(
            0.01,
            f"00-{'a' * 32}-{'b' * 16}-01",
            model="late-flight",
            version="3",
            protocol="v2",
            rows=1,
            status=503,
        )
        t.close()
        server.shutdown()
    (resource,) = received[0].resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}[
        "service.name"
    ] == "late-flight"
    first, second = resource.scope_spans[0].spans
    assert (
        first.status.code == 0
        and second.status.code == 2
        and second.trace_id.hex() == "a" * 32
        and second.parent_span_id.hex() == "b" * 16
    )


def test_a_collector_that_is_down_costs_nothing(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    t = tracing.tracing("late-flight")
    t.request(0.01, model="late-flight", version="3", protocol="v2", rows=2, status=200)
    t.close()
