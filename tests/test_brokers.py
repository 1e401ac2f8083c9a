"""Kafka, NATS and Valkey: the laws of a stream on real servers, and what servers do to a reader"""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

import brokers
import pytest
from streams import check_kills, check_stream, numbered

import scalai_nb as sn
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.streams.landing import Landing, land
from scalai_nb.data.streams.records import Origin, Records
from scalai_nb.errors import ParameterError, StreamError

pytest.importorskip("confluent_kafka")
pytest.importorskip("nats")
pytest.importorskip("valkey")

SECRET = "correct horse battery"


# ---- servers, one of a kind for all tests


@pytest.fixture(scope="session")
def kafka(tmp_path_factory):
    server = brokers.kafka(tmp_path_factory.mktemp("kafka")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def nats(tmp_path_factory):
    server = brokers.nats(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory):
    server = brokers.valkey(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.stop()


# ---- what other programs write


def drained(stream, n: int, seconds: float = 20) -> list:
    "The next `n` values"
    found, until = [], time.monotonic() + seconds
    while len(found) < n and time.monotonic() < until:
        found += stream.poll(n - len(found), 0.5)[0].values
    return found


@dataclass
class Topic:
    "A topic of Kafka, and who writes to it"

    host: str
    name: str
    partitions: int = 2

    def __post_init__(self):
        from confluent_kafka.admin import AdminClient, NewTopic

        self.admin = AdminClient({"bootstrap.servers": self.host, "log_level": 0})
        made = self.admin.create_topics([NewTopic(self.name, self.partitions, 1)])
        [f.result(10) for f in made.values()]

    @property
    def uri(self) -> str:
        return f"kafka://{self.host}/{self.name}"

    def producer(self, **options):
        from confluent_kafka import Producer

        named = {k.replace("_", "."): v for k, v in options.items()}
        return Producer({"bootstrap.servers": self.host, "log_level": 0} | named)

    def put(self, partition: int, values: list, keys: list | None = None) -> None:
        from confluent_kafka.admin import NewPartitions

        if partition >= self.partitions:
            self.partitions = partition + 1
            grown = self.admin.create_partitions([NewPartitions(self.name, self.partitions)])
            [f.result(10) for f in grown.values()]
        producer = self.producer()
        producer.list_topics(self.name, timeout=10)
        for value, key in zip(values, keys or [None] * len(values), strict=True):
            producer.produce(self.name, value, key=key, partition=partition, headers={"by": b"me"})
        assert producer.flush(20) == 0

    def drop(self, partition: int, before: int) -> None:
        "What retention does, at once"
        from confluent_kafka import TopicPartition

        there = TopicPartition(self.name, partition, before)
        [f.result(10) for f in self.admin.delete_records([there]).values()]


@dataclass
class Jet:
    "A stream of NATS; keys are behind the subject's dot"

    host: str
    name: str
    options: dict | None = None

    def __post_init__(self):
        self.ask(lambda js: js.add_stream(name=self.name, subjects=[f"{self.name}.>"]))

    @property
    def uri(self) -> str:
        return f"nats://{self.host}/{self.name}"

    def ask(self, what):
        async def asked():
            import nats

            client = await nats.connect(f"nats://{self.host}", **(self.options or {}))
            try:
                return await what(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(asked())

    def put(self, partition: int, values: list, keys: list | None = None) -> None:
        names = [(k or b"none").decode().replace(" ", "_") for k in keys or [None] * len(values)]

        async def publish(js):
            before = (await js.stream_info(self.name)).state.last_seq
            for value, subject in zip(values, names, strict=True):
                headers = {"KV-Operation": "DEL"} if value is None else None
                await js._nc.publish(f"{self.name}.{subject}", value or b"", headers=headers)
            while (await js.stream_info(self.name)).state.last_seq < before + len(values):
                await asyncio.sleep(0.01)

        self.ask(publish)


class Spaced:
    "A stream of NATS whose keys are as they were put: no subject has a space"

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def poll(self, rows, seconds):
        records, positions = self.stream.poll(rows, seconds)

        def origin(i):
            o = records.origin(i)
            key = o.key.partition(b".")[2].replace(b"_", b" ")
            return Origin(o.partition, o.position, o.time, key)

        return Records(records.values, origin), positions


@dataclass
class Key:
    "A stream of Valkey"

    host: str
    name: str
    password: str | None = None

    def __post_init__(self):
        from valkey import Valkey

        host, port = self.host.split(":")
        self.client = Valkey(host, int(port), password=self.password)
        self.client.xgroup_create(self.name, "made", mkstream=True)

    @property
    def uri(self) -> str:
        return f"valkey://{self.host}/{self.name}"

    def put(self, partition: int, values: list, keys: list | None = None) -> None:
        pipe = self.client.pipeline(transaction=False)
        for value, key in zip(values, keys or [None] * len(values), strict=True):
            fields = {b"key": key, b"value": value}
            pipe.xadd(self.name, {k: v for k, v in fields.items() if v is not None})
        pipe.execute()


# ---- the laws


def test_a_topic_of_kafka_keeps_the_laws(kafka):
    topic = Topic(kafka.host, "laws")
    check_stream(lambda: sn.open_stream(topic.uri, look=0.5), topic.put)


class Faltering:
    "A consumer whose first batches end with the word that a partition has stopped"

    def __init__(self, consumer, times: int) -> None:
        self.consumer, self.times = consumer, times

    def __getattr__(self, name):
        return getattr(self.consumer, name)

    def consume(self, rows: int, seconds: float) -> list:
        from confluent_kafka import KafkaError, Message

        found = self.consumer.consume(rows, seconds)
        if self.times and (read := [m for m in found if m.error() is None]):
            self.times -= 1
            error, last = KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION), read[-1]
            return [*found, Message(last.topic(), last.partition(), last.offset() + 1, error=error)]
        return found


def test_what_came_before_a_partition_stopped_does_not_come_again(kafka):
    topic = Topic(kafka.host, "stops")
    for partition in range(2):
        topic.put(partition, numbered(400))
    stream = sn.open_stream(topic.uri)
    stream.consumer = Faltering(stream.consumer, times=4)
    found = []
    while len(found) < 800:
        records, positions = stream.poll(50, 0.2)
        found += records.values
    assert sorted(found) == sorted(numbered(400) * 2)
    assert stream.poll(10, 0.1)[0].values == [] and positions == {"0": 400, "1": 400}
    stream.close()


class Returning:
    "A consumer that brings the last batch again with the next"

    def __init__(self, consumer) -> None:
        self.consumer, self.last = consumer, []

    def __getattr__(self, name):
        return getattr(self.consumer, name)

    def consume(self, rows: int, seconds: float) -> list:
        found = self.consumer.consume(rows, seconds)
        again, self.last = self.last, [m for m in found if m.error() is None] or self.last
        return [*again, *found, *again]


def test_a_record_from_before_a_position_is_none(kafka):
    topic = Topic(kafka.host, "before")
    topic.put(0, numbered(400))
    stream = sn.open_stream(topic.uri)
    stream.consumer = Returning(stream.consumer)
    found = []
    while len(found) < 400:
        found += stream.poll(50, 0.2)[0].values
    assert found == numbered(400) and stream.poll(10, 0.1)[0].values == []
    stream.close()


def test_a_stream_that_is_sought_at_once_stays_there(kafka):
    "The client has asked where the first record is, and is answered later"
    topic = Topic(kafka.host, "at-once")
    for partition in range(2):
        topic.put(partition, numbered(20, partition))
    stream = sn.open_stream(topic.uri)
    stream.seek({"0": 0, "1": 15})
    found, until = [], time.monotonic() + 1.5
    while time.monotonic() < until or len(found) < 25:
        found += stream.poll(50, 0.2)[0].values
    assert sorted(found) == sorted([*numbered(20), *numbered(20, 1)[15:]])
    stream.close()


def test_after_many_seeks_no_record_comes_from_elsewhere(kafka):
    topic, random = Topic(kafka.host, "sought"), Random(0)
    for partition in range(2):
        topic.put(partition, numbered(2_000))
    stream = sn.open_stream(topic.uri)
    for _ in range(150):
        following = {str(p): random.randrange(1_900) for p in range(2)}
        stream.seek(following)
        for _ in range(random.randint(1, 3)):
            records, positions = stream.poll(random.choice((1, 50, 500)), random.choice((0, 0.02)))
            for i in range(len(records)):
                origin = records.origin(i)
                assert origin.position == following[origin.partition]
                following[origin.partition] += 1
            assert positions == following
    stream.close()


def test_a_stream_of_nats_keeps_the_laws(nats):
    jet = Jet(nats.host, "LAWS")
    check_stream(lambda: Spaced(sn.open_stream(jet.uri)), jet.put, partitions=1)


def test_a_stream_of_valkey_keeps_the_laws(valkey):
    key = Key(valkey.host, "laws")
    check_stream(lambda: sn.open_stream(key.uri), key.put, partitions=1)


# ---- what is no longer there


def test_what_kafka_no_longer_keeps_is_named_with_topic_partition_and_gap(kafka):
    topic = Topic(kafka.host, "kept", partitions=1)
    topic.put(0, [b"%d" % i for i in range(100)])
    topic.drop(0, 50)
    stream = sn.open_stream(topic.uri)
    stream.seek({"0": 20})
    for _ in range(2):  # and again, until it is told where to go on
        with pytest.raises(StreamError, match=r"kept, partition 0: 30 records from position 20 to"):
            drained(stream, 1)
    stream.seek({"0": 50})
    assert drained(stream, 50) == [b"%d" % i for i in range(50, 100)]
    stream.seek({"0": 500})
    with pytest.raises(
        StreamError, match=r"partition 0: the stored position 500 is behind its end"
    ):
        drained(stream, 1)
    with pytest.raises(StreamError, match="no partition 7"):
        stream.seek({"7": 1})
    stream.close()


def test_what_nats_no_longer_keeps_is_named(nats):
    jet = Jet(nats.host, "KEPT")
    jet.put(0, [b"%d" % i for i in range(20)])
    stream = sn.open_stream(jet.uri)
    assert len(drained(stream, 5)) == 5
    other = sn.open_stream(jet.uri)
    other.seek({"0": 6})
    jet.ask(lambda js: js.purge_stream("KEPT", seq=11))
    with pytest.raises(StreamError, match=r"KEPT, partition 0: 5 records from position 6 to"):
        drained(other, 1)
    with pytest.raises(StreamError, match=r"KEPT, partition 0: 5 records from position 6 to"):
        drained(stream, 1)  # that reads already
    stream.seek({"0": 11})
    assert drained(stream, 10) == [b"%d" % i for i in range(10, 20)]
    stream.seek({"0": 99})
    with pytest.raises(StreamError, match=r"the stored position 99 is behind its end \(21\)"):
        drained(stream, 1)
    stream.close()
    other.close()


def test_what_valkey_has_trimmed_is_named_to_the_number(valkey):
    key = Key(valkey.host, "kept")
    key.put(0, [b"%d" % i for i in range(20)])
    stream = sn.open_stream(key.uri)
    _, five = stream.poll(5, 1)
    key.client.xtrim(key.name, maxlen=15, approximate=False)
    stream.seek(five)  # what was read is gone, and nothing else
    assert drained(stream, 15) == [b"%d" % i for i in range(5, 20)]
    key.client.xtrim(key.name, maxlen=10, approximate=False)
    stream.seek(five)
    with pytest.raises(StreamError, match=r"kept, partition 0: 5 records from position \d+-\d+/5"):
        drained(stream, 1)
    (gap,) = stream.gone(five)
    assert (gap.start, gap.lost) == (five["0"], 5) and "5 records from position" in str(gap)
    key.client.delete(key.name)
    Key(valkey.host, "kept").client.xadd("kept", {"value": "new"}, id="1-1")
    stream.seek(five)
    with pytest.raises(StreamError, match="the stream was made anew"):
        drained(stream, 1)
    stream.close()


@pytest.mark.parametrize("all_gone", [False, True])
def test_a_gap_of_texts_is_kept_and_gone_past(valkey, tmp_path, all_gone):
    key, lake = Key(valkey.host, f"past {all_gone}"), Lake(tmp_path / "lake")
    key.put(0, numbered(10))
    bring = lambda **how: land(sn.open_stream(key.uri), lake, "n", Landing(**how), idle=0.2)
    before = bring().positions["0"]
    key.put(0, numbered(20)[10:])
    key.client.xtrim(key.name, maxlen=0 if all_gone else 4, approximate=False)
    with pytest.raises(StreamError, match=r"\d+ records from position .* on_gap='skip' goes on"):
        bring()
    assert bring(on_gap="skip").rows == (0 if all_gone else 4)
    key.put(0, numbered(21)[20:])
    done = bring(on_gap="skip")
    assert lake.read("n")["n"].values.tolist() == [
        *range(10),
        *(() if all_gone else range(16, 20)),
        20,
    ]
    (gap,) = lake.state("n")["streams"][done.stream]["gaps"]
    assert (gap["from"], gap["records"]) == (before, 10 if all_gone else 6)


def test_a_queue_that_forgets_what_is_read_is_refused(nats):
    jet = Jet(nats.host, "READ")
    jet.ask(lambda js: js.add_stream(name="QUEUE", subjects=["q"], retention="workqueue"))
    with pytest.raises(StreamError, match="keeps a record until it is acknowledged"):
        sn.open_stream(jet.uri.replace("READ", "QUEUE"))


# ---- transactions, tools of the broker, size


def test_what_a_transaction_has_not_committed_is_no_record_and_its_marker_no_gap(kafka):
    topic = Topic(kafka.host, "paid", partitions=1)
    producer = topic.producer(transactional_id="till")
    producer.init_transactions(10)
    for n, commit in enumerate((True, False, True)):
        producer.begin_transaction()
        for i in range(10):
            producer.produce(topic.name, b"%d %d" % (n, i), partition=0)
        producer.commit_transaction() if commit else producer.abort_transaction()
    stream = sn.open_stream(topic.uri)
    wanted = [b"%d %d" % (n, i) for n in (0, 2) for i in range(10)]
    assert drained(stream, 20) == wanted
    _, positions = stream.poll(1, 0.3)
    assert positions["0"] == stream.bounds()["0"][1] > 21  # two markers at least
    stream.close()


def test_the_tools_of_a_broker_show_how_far_the_lake_is(kafka, valkey):
    from confluent_kafka import Consumer, TopicPartition

    topic, key = Topic(kafka.host, "lag", partitions=1), Key(valkey.host, "lag")
    for made in (topic, key):
        made.put(0, [b"x"] * 10)
        stream = sn.open_stream(made.uri, group="lake")
        _, positions = stream.poll(4, 5)
        stream.acknowledge(positions)
        stream.poll(1, 0.2)
        stream.close()
    other = Consumer({"bootstrap.servers": kafka.host, "group.id": "lake"})
    assert other.committed([TopicPartition("lag", 0)], timeout=10)[0].offset == 4
    other.close()
    (lake,) = [g for g in key.client.xinfo_groups("lag") if g["name"] == b"lake"]
    assert (lake["entries-read"], lake["lag"]) == (4, 6)


def test_what_is_too_large_names_the_option_that_lets_it_in(kafka, nats):
    topic, jet = Topic(kafka.host, "large", partitions=1), Jet(nats.host, "LARGE")
    topic.put(0, [b"x" * 500_000] * 10)
    jet.put(0, [b"x" * 5_000])
    small = {
        "message_max_bytes": 1_000,
        "fetch_max_bytes": 1_000,
        "receive_message_max_bytes": 9_999,
    }
    for uri, options, option in (
        (topic.uri, small, "receive_message_max_bytes=BYTES"),
        (jet.uri, {"max_bytes": 1_000}, "max_bytes=BYTES"),
    ):
        stream = sn.open_stream(uri, **options)
        with pytest.raises(StreamError, match=option):
            drained(stream, 1)
        stream.close()
        stream = sn.open_stream(uri)
        assert len(drained(stream, 1)) == 1
        stream.close()


def test_a_message_of_100_mb_names_the_setting_and_comes_when_it_is_raised(tmp_path):
    server = brokers.tansu(tmp_path / "tansu").start()  # noida takes no message of that size
    try:
        topic, lake = Topic(server.host, "huge", partitions=1), Lake(tmp_path / "lake")
        producer = topic.producer(message_max_bytes=200_000_000)
        for value in (b"small", b"x" * 100_000_000, b"small"):
            producer.produce(topic.name, value, partition=0)
            assert producer.flush(60) == 0
        how = Landing("raw", away=0)
        with pytest.raises(StreamError, match="too large .*pass receive_message_max_bytes=BYTES"):
            land(sn.open_stream(topic.uri), lake, "texts", how, idle=60)
        stream = sn.open_stream(topic.uri, receive_message_max_bytes=200_000_000)
        land(stream, lake, "texts", how, idle=5)
        assert [len(v) for v in lake.read("texts")["value"].values] == [5, 100_000_000, 5]
    finally:
        server.stop()


def test_a_record_of_100_mb_comes(valkey):
    key = Key(valkey.host, "huge")
    key.client.config_set("appendonly", "no")  # no fsync of 100 MB
    key.put(0, [b"small", b"x" * 100_000_000, b"small"])
    stream = sn.open_stream(key.uri)
    assert [len(value) for value in drained(stream, 3)] == [5, 100_000_000, 5]
    stream.close()
    key.client.delete(key.name)


# ---- addresses


def test_what_is_not_there_is_answered_with_what_is(kafka, nats, valkey):
    for made in (Topic(kafka.host, "named"), Jet(nats.host, "NAMED"), Key(valkey.host, "named")):
        with pytest.raises(StreamError, match=f"known: .*{made.name}"):
            sn.open_stream(made.uri + "x")
        with pytest.raises(ParameterError, match="does not say which stream"):
            sn.open_stream(made.uri.rpartition("/")[0])
        with pytest.raises(ParameterError, match="nonsense|has a password in it"):
            sn.open_stream(made.uri, nonsense=1)


@pytest.mark.parametrize("scheme", ["kafka", "nats", "valkey"])
def test_a_server_that_is_not_there_is_said_so(scheme, monkeypatch):
    from scalai_nb.data.streams import kafka, nats, valkey

    for module in (kafka, nats, valkey):
        monkeypatch.setattr(module, "_ANSWER", 0.3)
    with pytest.raises(StreamError, match="answers .*check the address, and that the server runs"):
        sn.open_stream(f"{scheme}://127.0.0.1:1/orders")


# ---- credentials


def test_wrong_credentials_are_refused_without_being_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALAI_PASSWORD", SECRET)
    scram = {"security_protocol": "sasl_plaintext", "sasl_mechanism": "SCRAM-SHA-256"}
    cases = (
        ("kafka", brokers.tansu(tmp_path / "k", "--authentication"), scram),
        ("nats", brokers.nats(tmp_path / "n", "--user", "me", "--pass", "another"), {}),
        ("valkey", brokers.valkey(tmp_path / "v", "--requirepass", "another"), {}),
    )
    for scheme, server, options in cases:
        server.start()
        try:
            with pytest.raises(StreamError, match="credentials are refused") as refused:
                sn.open_stream(f"{scheme}://me@{server.host}/orders", **options)
            assert SECRET not in str(refused.value) and "another" not in str(refused.value)
        finally:
            server.stop()


def test_right_credentials_are_taken_from_a_variable_and_are_in_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("ORDERS_PASSWORD", SECRET)
    cases = (
        (brokers.nats(tmp_path / "n", "--user", "me", "--pass", SECRET), Jet, "me"),
        (brokers.valkey(tmp_path / "v", "--requirepass", SECRET), Key, "default"),
    )
    for server, kind, user in cases:
        server.start()
        try:
            given = {"user": "me", "password": SECRET} if kind is Jet else SECRET
            made = kind(server.host, "ORDERS", given)
            made.put(0, [b"1"])
            stream = sn.open_stream(
                made.uri.replace("://", f"://{user}@"), password="ORDERS_PASSWORD"
            )
            assert drained(stream, 1) == [b"1"]
            assert stream.name == made.uri and user not in stream.name
            stream.close()
        finally:
            server.stop()


# ---- a server that is away


@pytest.mark.parametrize("kind", ["kafka", "nats", "valkey"])
def test_a_server_may_be_away_for_as_long_as_is_said_and_nothing_is_lost(kind, tmp_path):
    server = getattr(brokers, kind)(tmp_path / kind).start()
    try:
        made = {"kafka": Topic, "nats": Jet, "valkey": Key}[kind](server.host, "AWAY")
        made.put(0, [b"%d" % i for i in range(10)])
        patient, hasty = (sn.open_stream(made.uri, patience=s) for s in (60, 0.5))
        assert len(drained(patient, 4)) == 4 and len(drained(hasty, 4)) == 4
        for stream in (patient, hasty):  # what the client holds already
            while len(stream.poll(10, 0.5)[0]) > 0:
                pass
        server.stop()
        began = time.monotonic()
        with pytest.raises(StreamError, match=r"has not answered for .* patience=SECONDS"):
            while time.monotonic() - began < 20:
                hasty.poll(10, 0.2)
        assert len(patient.poll(10, 0.2)[0]) == 0
        server.start()
        made.put(0, [b"%d" % i for i in range(10, 20)])
        for stream in (patient, hasty):
            assert drained(stream, 10) == [b"%d" % i for i in range(10, 20)]
            stream.close()
    finally:
        server.stop()


# ---- Pub/Sub: Google's client, and a stand-in for the service


@pytest.fixture
def pubsub(monkeypatch):
    pytest.importorskip("google.cloud.pubsub_v1")
    service = brokers.PubSub()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", service.host)
    yield service
    service.server.stop(None)


def test_what_the_lake_has_of_a_subscription_is_not_given_again(pubsub):
    pubsub.put([b"%d" % i for i in range(10)], key="mon")
    reader = sn.open_stream("pubsub://shop/orders")
    first, _ = reader.poll(3, 1)
    second, committed = reader.poll(3, 1)
    assert first.values + second.values == [b"%d" % i for i in range(6)]
    lost, _ = reader.poll(2, 1)  # and killed before the commit
    assert len(lost) == 2 and lost.origin(0).key == b"mon"
    reader.close()
    pubsub.crash()
    pubsub.failing = 1
    again = sn.open_stream("pubsub://shop/orders")
    again.seek(committed)
    assert sorted(drained(again, 4)) == [b"6", b"7", b"8", b"9"]
    _, positions = again.poll(1, 0.1)
    again.acknowledge(positions)
    assert not pubsub.waiting and not pubsub.leased
    assert again.poll(1, 0.1)[1] == {"0": "0"}
    again.close()


def test_an_acknowledgement_that_fails_is_tried_next_time(pubsub):
    pubsub.put([b"1", b"2"])
    reader = sn.open_stream("pubsub://shop/orders")
    _, positions = reader.poll(2, 1)
    pubsub.failing = 1
    reader.acknowledge(positions)
    assert reader.poll(1, 0.1)[1] == positions, "so long it stays in the position"
    reader.acknowledge(positions)
    assert reader.poll(1, 0.1)[1] == {"0": "0"} and not pubsub.leased
    reader.close()


def test_more_than_a_commit_can_name_is_not_asked_for(pubsub, monkeypatch):
    from scalai_nb.data.streams import pubsub as driver

    monkeypatch.setattr(driver, "_IDS", 3)
    pubsub.put([b"%d" % i for i in range(5)])
    reader = sn.open_stream("pubsub://shop/orders")
    records, positions = reader.poll(100, 1)
    assert len(records) == 3 and len(reader.poll(100, 0.1)[0]) == 0
    reader.acknowledge(positions)
    assert drained(reader, 2) == [b"3", b"4"]
    reader.close()


def test_what_is_sought_back_of_a_subscription_comes_again(pubsub):
    pubsub.put([b"1", b"2", b"3"])
    reader = sn.open_stream("pubsub://shop/orders")
    _, one = reader.poll(1, 1)
    assert drained(reader, 2) == [b"2", b"3"]
    reader.seek(one)
    assert sorted(drained(reader, 2)) == [b"2", b"3"]
    reader.close()


def test_a_subscription_that_is_not_there_and_a_service_that_is_away(pubsub):
    with pytest.raises(StreamError, match="no such subscription"):
        sn.open_stream("pubsub://shop/other")
    with pytest.raises(ParameterError, match="no file of a service account"):
        sn.open_stream("pubsub://shop/orders", credentials="none.json")
    reader = sn.open_stream("pubsub://shop/orders", patience=0.3)
    with pytest.raises(StreamError, match="gcloud pubsub subscriptions seek"):
        reader.at(datetime.now(UTC))
    pubsub.server.stop(None).wait()
    with pytest.raises(StreamError, match="patience=SECONDS"):
        for _ in range(20):
            reader.poll(1, 0.2)  # each a moment, in which the service is missed
    reader.close()


# ---- a consumer that is killed


def written(kind: str, server: brokers.Broker, name: str, partitions: int, n: int) -> str:
    "The address of a stream with `numbered` records"
    made = (
        Topic(server.host, name, partitions) if kind == "kafka" else KINDS[kind](server.host, name)
    )
    for p in range(partitions):
        records = numbered(n, p)
        for start in range(0, n, 50_000):
            made.put(p, records[start : start + 50_000])
    return made.uri


KINDS = {"kafka": Topic, "nats": Jet, "valkey": Key}


EACH = pytest.mark.parametrize("kind, partitions", [("kafka", 2), ("nats", 1), ("valkey", 1)])


@EACH
def test_a_killed_consumer_counts_each_record_once(kind, partitions, request, tmp_path):
    n = 20_000 // partitions
    uri = written(kind, request.getfixturevalue(kind), "KILLS", partitions, n)
    fell = check_kills(uri, tmp_path / "lake", partitions=partitions, n=n, kills=3, rows=2_000)
    assert sum(fell.values()) == 3, fell


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@EACH
def test_campaign_a_million_records_and_fifty_kills(kind, partitions, tmp_path):
    n = 1_000_000 // partitions
    server = (brokers.tansu if kind == "kafka" else getattr(brokers, kind))(tmp_path / kind).start()
    try:
        uri = written(kind, server, "KILLS", partitions, n)
        fell = check_kills(uri, tmp_path / "lake", partitions=partitions, n=n, kills=50, rows=6_000)
        assert min(fell[where] for where in ("before", "in", "after")) >= 5, fell
    finally:
        server.stop()
