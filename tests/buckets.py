"A bucket of S3 for tests: moto's server, and a line to it that can be cut"

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from conftest import free_port


def variables(port: int) -> dict[str, str]:
    "What a process finds the server by"
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "the-key-of-tests",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def s3_server(bin: Path) -> Iterator[int]:
    "A server with the bucket `lake`, in memory; its port"
    port = free_port()
    words = [str(bin / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}/lake"
            for _ in range(600):
                with suppress(OSError):
                    urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
                    break
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()


class Line:
    "A port that passes on to another, until it is cut"

    def __init__(self, to: int) -> None:
        self.to = to
        self.cut = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.open: list[socket.socket] = []
        Thread(target=self._accept, daemon=True).start()

    def sever(self) -> None:
        "From now on all is refused, and what is under way ends"
        self.cut = True
        for s in self.open:
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def mend(self) -> None:
        self.open.clear()
        self.cut = False

    def _accept(self) -> None:
        while True:
            here, _ = self.listener.accept()
            if self.cut:
                here.close()
                continue
            there = socket.create_connection(("127.0.0.1", self.to))
            self.open += [here, there]
            for a, b in ((here, there), (there, here)):
                Thread(target=self._pass_on, args=(a, b), daemon=True).start()

    def _pass_on(self, a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            while data := a.recv(2**16):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)


def set_variables(port: int) -> None:
    os.environ.update(variables(port))
