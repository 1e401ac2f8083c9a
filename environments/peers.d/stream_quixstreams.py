"Quix Streams: a topic of JSON into Parquet. Arguments: broker, topic, how many records, folder"

import json
import logging
import resource
import sys
import time

import pyarrow as pa
from pyarrow import parquet
from quixstreams import Application
from quixstreams.sinks import BatchingSink

BROKER, TOPIC, COUNT, FOLDER = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
ROWS = 100_000  # of a file
logging.disable(logging.WARNING)


class Files(BatchingSink):
    "A file of Parquet for each batch"

    def write(self, batch):
        rows = [item.value for item in batch]
        name = f"{FOLDER}/{batch.partition}-{batch.start_offset}.parquet"
        parquet.write_table(pa.Table.from_pylist(rows), name)


app = Application(
    broker_address=BROKER,
    consumer_group=f"bench-{time.time_ns()}",
    auto_offset_reset="earliest",
    auto_create_topics=False,
    commit_every=ROWS,
    commit_interval=3600,
    loglevel="ERROR",
)
began = []  # when the first record came: to join a group may take half a minute
records = app.dataframe(app.topic(TOPIC, value_deserializer="json"))
records = records.update(lambda _: began or began.append(time.perf_counter()))
records.sink(Files())
app.run(count=COUNT, timeout=60, collect=False)
used = resource.getrusage(resource.RUSAGE_SELF)
seconds = time.perf_counter() - began[0]
print(json.dumps({"seconds": seconds, "cpu": used.ru_utime + used.ru_stime}), flush=True)
