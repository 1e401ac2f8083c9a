"""What all tests share: no settings of the developer's, one run of the demo, no quiet skip in CI"""

import logging
import os
import re
import shutil
import socket
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from filelock import FileLock

ROOT = Path(__file__).parent.parent

for name in [n for n in os.environ if n.startswith("SCALAI_")]:
    del os.environ[name]
# Threads of OpenMP and OpenBLAS wait asleep. Where processes share the processors, those that wait
# in a loop took five to twenty times the time of the work itself. The numbers are the same.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2⁴ cycles
for signum, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if (
        signal.getsignal(signum) == signal.SIG_IGN
    ):  # as a shell or nohup leaves it for what runs in the background; processes inherit it
        signal.signal(signum, handler)


# ---- one run of the demo


@dataclass
class Demo:
    "A copy of the project, and commands in it as a user of this Python's environment types them"

    folder: Path
    first: str = ""  # what `make demo` printed

    @property
    def env(self) -> dict[str, str]:
        "The variables of whoever types"
        from outputs import ENVIRONMENT

        venv = Path(sys.executable).parent.parent
        hidden = "IN_TEST", "MAKELEVEL", "PROCESSES", "FILES"
        inherited = {k: v for k, v in os.environ.items() if k not in hidden}
        typed = {k: v for k, v in ENVIRONMENT.items() if k != "SCALAI_ENV"}
        return (
            inherited
            | typed
            | {
                "PATH": f"{venv}/bin:{inherited['PATH']}",
                "HOME": str(self.folder / "home"),
                "VENV": str(venv),
                "MAKEFLAGS": f"-o {venv}/.installed",  # make leaves the environment as it is
            }
        )

    def __call__(self, command: str, timeout=500) -> subprocess.CompletedProcess:
        "What a command has printed when it has ended"
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    @contextmanager
    def started(self, command: str):
        "The process of a command that goes on; killed at the end of the block if it still does"
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.env | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.wait()


def _copied(folder: Path) -> Demo:
    "A copy of the project, without what was made in it"
    ignore = shutil.ignore_patterns(
        ".git",
        ".venv*",
        ".scalai",
        ".services",
        "__pycache__",
        ".ipynb_checkpoints",
        ".*_cache",
        ".hypothesis",
        "*.egg-info",
        "build",
        "dist",
    )
    shutil.copytree(ROOT, folder, ignore=ignore, symlinks=True)
    for mirror in (folder / "nbs").rglob("*.py"):
        mirror.unlink()
    (folder / "home").mkdir()
    return Demo(folder)


@pytest.fixture(scope="session")
def fresh_copy(tmp_path_factory) -> Demo:
    "A copy of the project in which nothing has run"
    return _copied(tmp_path_factory.mktemp("project") / "project")


# ---- what is only copied is made once, for all processes of pytest-xdist


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    "A folder of a name that whoever asks first makes; the others wait for it"
    top = tmp_path_factory.getbasetemp()
    shared = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def demo(made_once, tmp_path_factory) -> Demo:
    "A copy of the project in which `make demo` has run"

    def make(folder: Path) -> None:
        project = _copied(folder / "project")
        done = project("make demo")
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "said").write_text(done.stdout)
        assert project("scalai runs send").returncode == 0  # nobody writes while it is copied

    made, folder = made_once("demo", make), tmp_path_factory.mktemp("demo") / "project"
    shutil.copytree(made / "project", folder, symlinks=True)
    first = (made / "said").read_text().replace(f"{made}/project", str(folder))
    rows = "\n".join(f"{x},{x % 7},{3 * x + x % 7}" for x in range(200))
    (folder / "sales.csv").write_text(f"area,rooms,price\n{rows}\n")  # a reader's own file
    return Demo(folder, first)


# ---- a project that nothing in the library knows


@pytest.fixture(scope="session")
def orchard_run(made_once) -> Path:
    "The folder of the project of `orchard.py`, run once by the real command"
    from orchard import orchard

    def make(folder: Path) -> None:
        done = orchard(folder).scalai("run", "orchard", "--plain", timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once("orchard", make)


@pytest.fixture
def orchard_env(orchard_run, tmp_path, monkeypatch):
    "The environment of a copy of it, which a test may break"
    from scalai_nb.environment import environment

    root = tmp_path / "orchard"
    shutil.copytree(orchard_run, root)
    monkeypatch.delenv("SCALAI_SETTINGS", raising=False)
    return environment("laptop", settings=root / "settings.ini")


# ---- tools with environments of their own


def tool(name: str) -> Path:
    "The `bin` folder of a tool that `make test-services` installs; without it the test is skipped"
    folder = ROOT / ".services" / name
    if not (folder / ".installed").exists():
        pytest.skip(f"no {name} in .services; run make test-services")
    return folder / "bin"


# ---- a registry


@pytest.fixture(scope="session")
def database(made_once) -> Path:
    "MLflow's file, set up once: its migrations take seconds"

    def make(folder: Path) -> None:
        from scalai_nb.tracking.mlflow_sink import client

        client(SimpleNamespace(tracking=f"sqlite:///{folder}/tracking.db"))

    return made_once("mlflow", make) / "tracking.db"


@pytest.fixture
def registry(database, tmp_path):
    from scalai_nb.models.registry.registry import Registry

    shutil.copy(database, tmp_path / "tracking.db")
    return Registry(
        SimpleNamespace(
            models=str(tmp_path / "models"), tracking=f"sqlite:///{tmp_path}/tracking.db"
        )
    )


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    "The URL of a real MLflow server, without the consumers of jobs that nobody gives"
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    env = {
        "PATH": f"{tool('mlflow')}:{os.environ['PATH']}",
        "HOME": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its pollers take a processor
        "DO_NOT_TRACK": "true",
    }
    options = {
        "backend-store-uri": f"sqlite:///{folder}/server.db",
        "artifacts-destination": folder / "files",
        "host": "127.0.0.1",
        "port": port,
        "workers": 1,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [tool("mlflow") / "mlflow", "server", *words],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _answers(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str, process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    "Wait until a server answers; what it has logged if it ends or does not"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


# ---- surroundings


@pytest.fixture
def small_disk(tmp_path, request):
    "A file system of as many MB as the test's module says in DISK"
    from scalai_nb.bench import soak

    with soak.small_disk(tmp_path / "small", request.module.DISK) as there:
        if not there:
            pytest.skip("a tmpfs cannot be mounted here")
        yield tmp_path / "small"


@pytest.fixture
def quiet():
    "For tests in which what fails, and is logged, fails on purpose"
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


# ---- no quiet skip


def _unlisted(skipped, allowed: str) -> list[str]:
    "Reasons of the `skipped` reports that no pattern in the text `allowed` explains"
    patterns = [line for line in allowed.splitlines() if line and not line.startswith("#")]
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in skipped}
    return sorted(r for r in reasons if not any(re.search(p, r) for p in patterns))


def pytest_sessionfinish(session):
    "With CI=true, a skip whose reason is not in allowed_skips.txt fails the session"
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    session.unlisted = []
    if os.environ.get("CI") == "true" and reporter:
        allowed = Path(__file__).with_name("allowed_skips.txt").read_text(encoding="utf-8")
        session.unlisted = _unlisted(reporter.stats.get("skipped", []), allowed)
    if session.unlisted and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for reason in terminalreporter._session.unlisted:
        terminalreporter.write_line(
            f"CI: skipped for a reason that tests/allowed_skips.txt does not list: {reason}",
            red=True,
        )


def free_port() -> int:
    "A port at which nobody listens"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
