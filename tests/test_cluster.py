"""Joining, starting and ending Dask clusters, for real."""

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from distributed.utils import LoopRunner

from scalai_nb.compute import cluster as module
from scalai_nb.compute.cluster import connect, start
from scalai_nb.environment import Environment
from scalai_nb.errors import EnvironmentNotFound, MissingExtra, ParameterError, WorkFailed


def env(cluster="local", **settings):
    return Environment(
        **{
            "name": "test",
            "root": Path("/"),
            "cluster": cluster,
            "workers": 1,
            "memory": 400_000_000,
            **settings,
        }
    )


def gone(pids, seconds=15) -> bool:
    "Whether all processes end within some time"
    until = time.monotonic() + seconds
    while any(
        psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids
    ):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def worker_pids(client):
    return list(client.run(os.getpid).values())


@pytest.fixture(scope="module")
def running():
    "The address of a cluster that runs"
    with start(env(workers=2)) as address:
        yield address


# ---- start ----


def test_start_runs_workers_as_the_environment_says_and_ends_them():
    with start(env(workers=2, memory=300_000_000)) as address:
        assert address.startswith("tcp://127.0.0.1:")
        with connect(env(address)) as client:
            workers = client.scheduler_info()["workers"].values()
            assert [w["memory_limit"] for w in workers] == [300_000_000] * 2
            pids = worker_pids(client)
            assert len(set(pids)) == 2 and os.getpid() not in pids
    assert gone(pids)


def test_the_variables_of_this_process_stay_as_they_are():
    "Those that Dask sets for its workers would be those of kernels, too: one thread, say"
    before = dict(os.environ)
    with start(env(workers=1)):
        assert dict(os.environ) == before


def test_start_ends_the_workers_when_the_block_fails():
    with pytest.raises(ZeroDivisionError), start(env()) as address:
        with connect(env(address)) as client:
            pids = worker_pids(client)
        1 / 0  # noqa: B018
    assert gone(pids)


def test_two_clusters_at_once_do_not_fight_for_a_port(running):
    with start(env()) as other:
        assert other != running  # a warning would be an error


def test_workers_are_chosen_from_the_cores(monkeypatch):
    import dask.system

    monkeypatch.setattr(dask.system, "CPU_COUNT", 64)
    assert module._workers(env(workers=None)) == 4 and module._workers(env(workers=9)) == 9
    monkeypatch.setattr(dask.system, "CPU_COUNT", 1)
    assert module._workers(env(workers=None)) == 1


def test_start_of_none_and_of_a_cluster_that_runs(running):
    with start(env("none")) as address:
        assert address is None
    with start(env(running)) as address:
        assert address == running
    with connect(env(running)) as client:
        assert len(worker_pids(client)) == 2, "it is left running"


@pytest.mark.parametrize("kind", ["start", "connect"])
def test_a_killed_parent_leaves_no_process(kind, tmp_path):
    "kill -9 of the process that started the cluster"
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, time
        from pathlib import Path
        from scalai_nb.compute.cluster import connect, start
        from scalai_nb.environment import Environment
        if __name__ == "__main__":
            env = Environment(name="test", root=Path("/"), cluster="local", workers=2, \
memory=400_000_000)
            with {kind}(env) as it:
                with connect(Environment(name="test", root=Path("/"), cluster=it)) \
if "{kind}" == "start" else it as client:
                    print(*client.run(os.getpid).values(), flush=True)
                    time.sleep(600)
    """)
    )
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        family = [p.pid for p in psutil.Process(parent.pid).children(recursive=True)]
        assert len(workers) == 2 and set(workers) <= set(family)
        os.kill(parent.pid, signal.SIGKILL)
        assert gone(family)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


# ---- connect ----


def test_a_step_joins_the_cluster_of_its_run(running, monkeypatch):
    monkeypatch.setenv("SCALAI_SCHEDULER", running)
    with connect(env("none")) as client:
        assert client.scheduler.address == running and client.submit(sum, [1, 2]).result() == 3
    with connect(env("none")) as client:
        assert len(worker_pids(client)) == 2, "closing the client left the cluster"


def test_a_cluster_that_was_started_is_closed_with_its_client():
    with connect(env(), threads_per_worker=3) as client:
        assert [w["nthreads"] for w in client.scheduler_info()["workers"].values()] == [3]
        pids = worker_pids(client)
    assert gone(pids)


def test_a_closed_client_holds_nobody_up_who_collects_it():
    "Whoever starts a loop has the lock that a cluster's end waits for, and may have to collect"
    with connect(env()) as client:
        client.itself = client
    known = weakref.ref(client)
    del client
    with LoopRunner._lock:
        collecting = threading.Thread(target=gc.collect)
        collecting.start()
        collecting.join(5)
        assert not collecting.is_alive()
    assert known() is None


def test_none_computes_in_this_process():
    with connect(env("none")) as client:
        assert worker_pids(client) == [os.getpid()]


def test_an_environment_may_be_named(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[mine]\ncluster = none\n")
    monkeypatch.chdir(tmp_path)
    with connect("mine") as client:
        assert worker_pids(client) == [os.getpid()]
    with pytest.raises(EnvironmentNotFound):
        connect("yours")


def test_options_of_a_cluster_that_runs_are_refused(running):
    with pytest.raises(
        ParameterError, match=r"n_workers cannot be set: the cluster at tcp://.* runs already"
    ):
        connect(env(running), n_workers=3)


@contextmanager
def listening(words: bytes):
    "The address of a server that says `words` to whoever comes"
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        guests = []

        def serve():
            with suppress(OSError):
                while True:
                    guests.append(server.accept()[0])
                    guests[-1].sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for guest in guests:
            guest.close()


def test_nobody_answers(monkeypatch):
    "A closed port, one that says nothing or something else, and nonsense: an error within seconds"
    monkeypatch.setattr(module, "TIMEOUT", 1)
    with listening(b"") as silent, listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other:
        for address in ("tcp://127.0.0.1:1", silent, other, "nonsense"):
            begun = time.monotonic()
            monkeypatch.setenv("SCALAI_SCHEDULER", address)
            with pytest.raises(
                WorkFailed,
                match=f"No Dask scheduler answers at '{address}' \\(SCALAI_SCHEDULER\\) within 1 s",
            ):
                connect(env())
            assert time.monotonic() - begun < 8
    monkeypatch.delenv("SCALAI_SCHEDULER")
    with (
        pytest.raises(WorkFailed, match="cluster of the environment test"),
        start(env("tcp://127.0.0.1:1")),
    ):
        pass


# ---- clusters of other packages ----


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("cuda", "dask_cuda", "gpu"), ("kubernetes", "dask_kubernetes", "kubernetes")],
)
def test_a_missing_package_names_its_extra(kind, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"scalai-nb\[{extra}\]"):
        connect(env(kind))


class Fake:
    "Stands for a cluster class; remembers how it was called"

    calls = []
    scheduler_address = "tcp://127.0.0.1:9"

    def __init__(self, **options):
        self.calls.append(options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.calls.append("closed")


def test_gpus_and_pods_get_what_the_environment_says(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=Fake))
    monkeypatch.setitem(sys.modules, "dask_kubernetes", ModuleType("dask_kubernetes"))
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", SimpleNamespace(KubeCluster=Fake))
    Fake.calls.clear()
    for kind in ("cuda", "kubernetes"):
        with start(env(kind, workers=3)) as address:
            assert address == Fake.scheduler_address
    cuda, _, pods, closed = Fake.calls
    assert (cuda["n_workers"], cuda["memory_limit"], cuda["host"]) == (3, 400_000_000, "127.0.0.1")
    assert (
        pods["n_workers"] == 3
        and pods["resources"]["limits"] == {"memory": "400000000"}
        and closed == "closed"
    )


def test_importing_it_is_light():
    heavy = (
        "import sys, scalai_nb.compute.cluster; "
        "print([m for m in ('dask', 'distributed', 'numpy', 'xarray') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", heavy], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.campaign
def test_a_worker_that_is_away_when_another_loss_is_15_seconds_old_comes_back():
    with connect(env()) as client:
        for seconds in (
            14.8,
            3,
        ):  # after the second Dask looks after the first loss, while the worker starts
            os.kill(*worker_pids(client), signal.SIGKILL)
            time.sleep(seconds)
            client.wait_for_workers(1, timeout=20)


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_worker_that_dies_while_it_starts_is_started_again(monkeypatch, failures):
    tries = []

    def starts(env, **options):
        tries.append(options)
        if len(tries) <= failures:
            raise RuntimeError("Nanny failed to start.") from OSError("it was killed")
        return "a cluster"

    monkeypatch.setitem(module.CLUSTERS, "local", starts)
    if failures < 3:
        assert module._started(env(), n_workers=2) == "a cluster"
    else:
        with pytest.raises(WorkFailed, match=r"do not start \(it was killed\)"):
            module._started(env(), n_workers=2)
    assert tries == [{"n_workers": 2}] * min(failures + 1, 3)
