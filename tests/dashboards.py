"""A dashboard that is served, in a process of its own, as `scalai dash` does it"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from scalai_nb.environment import Environment


@contextmanager
def serving(
    env: Environment,
    name: str = "pipeline",  # of a dashboard
    idle: float = 300,  # seconds until a kernel without a page is ended
) -> Iterator[tuple[str, psutil.Process]]:
    "The address and the process of a dashboard; its kernels end with it"
    code = f"from scalai_nb.jupyter.voila import serve; serve({name!r}, 'laptop', idle={idle})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=env.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = psutil.Process(process.pid)
    try:
        yield re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0], server
    finally:
        kernels = server.children(recursive=True)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "Traceback" not in said, said
    assert not [k for k in kernels if k.is_running() and k.status() != psutil.STATUS_ZOMBIE]


def kernels(server: psutil.Process) -> list[psutil.Process]:
    "Of the pages of a dashboard: children of its fork server"
    return [kernel for forks in server.children() for kernel in forks.children()]


def wait_until(true: Callable[[], object], seconds: float = 30) -> object:
    "What `true()` returns once it is true; else what it returns in the end"
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()
