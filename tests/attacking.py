"""What an attack costs a worker, and what a bystander notices of it"""

import json
import subprocess
import sys
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


_ASK = """
import http.client, json, select, sys, time
host, port = sys.argv[1:]
body, seconds, failed = b'{"instances": [[1, 2, 3, 4]]}', [], []
connection = http.client.HTTPConnection(host, int(port), timeout=20)
while not select.select([sys.stdin], [], [], 0.003)[0]:
    start = time.perf_counter()
    try:
        connection.request("POST", "/v1/models/plain:predict", body)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as e:
        failed.append(repr(e))
        connection.close()
        continue
    seconds.append(time.perf_counter() - start)
    if answer.status != 200:
        failed.append(str(answer.status))
print(json.dumps([seconds, failed]))
"""


class Bystander:
    "Asks for a prediction every few milliseconds, in a process of its own, and notes what it took"

    def __init__(self, at: tuple[str, int]):
        self.at = at
        self.seconds: list[float] = []
        self.failed: list[str] = []

    def __enter__(self):
        command = [sys.executable, "-c", _ASK, *map(str, self.at)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes)
        return self

    def __exit__(self, *_):
        self.seconds, self.failed = json.loads(self.process.communicate()[0])

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
        while not self.done.wait(0.2):
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
        time.sleep(0.7)
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
