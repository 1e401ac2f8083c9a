"""What an attack costs a worker, and what a bystander notices of it"""

import http.client
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import psutil

MEMORY = 64 << 20  # bytes that an attack may take
MOMENT = 0.25  # seconds for a bystander's answer: two cores have other work as well


def listener(port: int) -> psutil.Process:
    "Who listens at a port"
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(c.laddr.port == port for c in process.net_connections("tcp")):
                return process
    raise AssertionError(f"nobody listens at {port}")


def memory(process: psutil.Process) -> int:
    "Bytes that a process and those it has started take; what they share counts once"
    found = 0
    for p in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            found += p.memory_full_info().pss
    return found


class Bystander:
    "Asks for a prediction every few milliseconds, and notes how long each took"

    def __init__(self, at: tuple[str, int]):
        self.at = at
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        body = b'{"instances": [[1, 2, 3, 4]]}'
        connection = http.client.HTTPConnection(*self.at, timeout=20)
        while not self.done.wait(0.003):
            start = time.perf_counter()
            try:
                connection.request("POST", "/v1/models/plain:predict", body)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as e:
                self.failed.append(repr(e))
                connection.close()
                continue
            self.seconds.append(time.perf_counter() - start)
            if answer.status != 200:
                self.failed.append(str(answer.status))
        connection.close()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    @property
    def p99(self) -> float:
        return float(np.percentile(self.seconds, 99))


class Peak:
    "The most that a process takes while the block runs, and half a second after it"

    def __init__(self, process: psutil.Process):
        self.process = process
        self.bytes = memory(process)
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.bytes = max(self.bytes, memory(self.process))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        time.sleep(0.5)
        self.done.set()
        self.thread.join()


@contextmanager
def watched(served, name: str, most: int = MEMORY):
    "What happens in the block costs little memory and holds nobody up"
    at, _, process = served
    before = memory(process)
    with Bystander(at) as calm:
        time.sleep(0.3)
    with Bystander(at) as bystander, Peak(process) as peak:
        yield
    more, p99 = peak.bytes - before, bystander.p99
    print(
        f"{name}: {more / 2**20:.0f} MB, "
        f"bystander's p99 {p99 * 1e3:.1f} ms, calm {calm.p99 * 1e3:.1f}"
    )
    assert not bystander.failed, bystander.failed[:3]
    assert p99 < max(3 * calm.p99, MOMENT)
    assert more < most
