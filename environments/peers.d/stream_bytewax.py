"Bytewax: a topic of JSON into Parquet. Arguments: broker, topic, how many records, folder"

import json
import os
import resource
import sys
import time

import pyarrow as pa
from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from pyarrow import json as arrow_json
from pyarrow import parquet

BROKER, TOPIC, COUNT, FOLDER = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
ROWS = 100_000  # of a file
BEGAN = time.perf_counter()


class Files(StatelessSinkPartition):
    "A file of Parquet for so many records"

    def __init__(self):
        self.values, self.written = [], 0

    def write_batch(self, items):
        self.values += items
        if len(self.values) >= ROWS or self.written + len(self.values) >= COUNT:
            self.write()

    def write(self):
        table = arrow_json.read_json(pa.BufferReader(b"\n".join(self.values)))
        parquet.write_table(table, f"{FOLDER}/{self.written}.parquet")
        self.written += len(self.values)
        self.values = []
        if self.written >= COUNT:  # where the topic ends is not known to every broker
            used = resource.getrusage(resource.RUSAGE_SELF)
            seconds, cpu = time.perf_counter() - BEGAN, used.ru_utime + used.ru_stime
            print(json.dumps({"seconds": seconds, "cpu": cpu}), flush=True)
            os._exit(0)


class Sink(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Files()


flow = Dataflow("bench")
source = KafkaSource([BROKER], [TOPIC], batch_size=10_000)
records = op.input("records", flow, source)
values = op.map("values", records, lambda message: message.value)
op.output("files", values, Sink())
run_main(flow)
