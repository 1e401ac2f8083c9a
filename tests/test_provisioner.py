"""A kernel on a worker of a cluster: scheduler, two workers, Jupyter's own ways to start it"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from distributed import Client
from jupyter_client.manager import start_new_kernel
from toy import notebook

from scalai_nb.compute import cluster as cluster_module
from scalai_nb.errors import SettingsError, WorkFailed
from scalai_nb.jupyter import kernels


def started(*words):
    return subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def cluster():
    "The address of a scheduler, and its workers' processes"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    place = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    scheduler = started("distributed.cli.dask_scheduler", *place)
    workers = [
        started("distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard")
        for _ in range(2)
    ]
    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)
    yield address, scheduler, workers
    for process in (scheduler, *workers):
        process.kill()
        process.wait()


@pytest.fixture
def project(cluster, tmp_path, monkeypatch):
    "A project whose environment `far` has its kernel on a worker"
    far = f"[far]\ncluster = {cluster[0]}\nkernel = worker\nmemory = 2GB\n"
    (tmp_path / "settings.ini").write_text(far)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    for name in ("SCALAI_ENV", "SCALAI_SETTINGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    kernels.install(prefix=tmp_path)
    return tmp_path


def asked(client, source):
    "What a cell says"
    said = []

    def hear(message):
        content = message["content"]
        text = content.get("text") or content.get("data", {}).get("text/plain")
        said.append(text or content.get("ename", ""))

    client.execute_interactive(source, timeout=60, output_hook=hear)
    return "".join(said)


def test_a_kernel_lives_on_a_worker_and_ends_with_it(cluster, project):
    _, _, workers = cluster
    manager, client = start_new_kernel(kernel_name="scalai-far", cwd=str(project))
    try:
        pid = int(asked(client, "import os; os.getpid()"))
        parent = psutil.Process(pid).ppid()
        assert parent in [w.pid for w in workers]
        assert asked(client, "os.getcwd()") == repr(str(project))
        assert "curve_secretkey" in Path(manager.connection_file).read_text()

        client.execute("x = 1\nwhile True: pass")
        time.sleep(1)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=20)["content"]["ename"] == "KeyboardInterrupt"
        assert asked(client, "x, os.getpid()") == f"(1, {pid})"

        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        assert asked(client, "'x' in globals()") == "False" and not psutil.pid_exists(pid)

        pid = int(asked(client, "import os; os.getpid()"))
        lost = next(w for w in workers if w.pid == psutil.Process(pid).ppid())
        lost.kill()
        lost.wait()
        end = time.monotonic() + 30
        while manager.is_alive() and time.monotonic() < end:
            time.sleep(0.2)
        assert not manager.is_alive()
        manager.restart_kernel(now=True)  # as JupyterLab's restarter does
        client.wait_for_ready(timeout=60)
        assert "its worker has left the cluster" in asked(client, "1")
        assert psutil.Process(int(asked(client, "import os; os.getpid()"))).ppid() != lost.pid
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_jupyter_execute_takes_it(project):
    notebook(project / "one.ipynb", None, "import scalai_nb as sn\nprint(sn.environment().name)")
    command = Path(sys.executable).parent / "jupyter-execute"
    words = ("--inplace", "--kernel_name=scalai-far", "one.ipynb")
    done = subprocess.run([command, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "far\\n" in (project / "one.ipynb").read_text()


def test_what_is_missing_is_named(cluster, project, monkeypatch):
    with pytest.raises(WorkFailed, match="has no /nowhere, .* or set kernel = here"):
        start_new_kernel(kernel_name="scalai-far", cwd="/nowhere")
    monkeypatch.setattr(cluster_module, "TIMEOUT", 1)
    with pytest.raises(WorkFailed, match="No Dask scheduler answers at 'tcp://127.0.0.1:1'"):
        monkeypatch.setenv("SCALAI_CLUSTER", "tcp://127.0.0.1:1")
        start_new_kernel(kernel_name="scalai-far", cwd=str(project))
    monkeypatch.delenv("SCALAI_CLUSTER")
    (project / "settings.ini").write_text("[near]\nkernel = worker\n")
    with pytest.raises(SettingsError, match="give its address: cluster = tcp://host:port"):
        kernels.install(prefix=project)


def test_a_scheduler_that_is_silent_holds_up_no_cell(cluster, project, monkeypatch):
    address, scheduler, _ = cluster
    (project / "settings.ini").write_text(f"[far]\ncluster = {address}\n")
    kernels.install(prefix=project)
    manager, client = start_new_kernel(kernel_name="scalai-far", cwd=str(project))
    try:
        assert "Client" in asked(client, "import scalai_nb as sn\nclient = sn.connect()\nclient")
        os.kill(scheduler.pid, signal.SIGSTOP)
        assert asked(client, "1 + 1") == f"2the scheduler at {address} does not answer"
    finally:
        os.kill(scheduler.pid, signal.SIGCONT)
        client.stop_channels()
        manager.shutdown_kernel(now=True)
