"""A JupyterLab with the panel, as a user has it: behind a base URL, with a token"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
from conftest import free_port

PANEL = Path(__file__).parents[1] / "scalai_nb" / "jupyter" / "lab" / "panel"
TOKEN = "a-token-of-the-tests"


@dataclass
class Server:
    "A Jupyter server that is running"

    address: str  # with the base URL, and a slash at its end
    process: subprocess.Popen

    def ask(self, path: str, body: Any = None, token: str | None = TOKEN, **headers: str) -> Any:
        "Status and JSON of an answer; a body makes it a POST"
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        if token:
            named["Authorization"] = f"token {token}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.address}scalai/{path}", data, named)
        try:
            with urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as e:
            said = e.read()
            return e.code, json.loads(said) if said[:1] in (b"{", b"[") else {}

    def cpu(self) -> float:
        "Seconds of computing so far"
        used = psutil.Process(self.process.pid).cpu_times()
        return used.user + used.system


@contextmanager
def jupyter(
    root: Path,  # where it is started
    folder: Path,  # for what it keeps
    app: str = "jupyter_server",  # or jupyterlab, notebook
    python: str | Path = sys.executable,  # of the environment that the app is in
    more: Path | None = None,  # where `app` is installed, if it is beside this environment's
) -> Iterator[Server]:
    "Serve as long as the block lasts; the panel comes from this checkout"
    (folder / "data/labextensions").mkdir(parents=True, exist_ok=True)
    link = folder / "data/labextensions/scalai-nb"
    if not link.exists():
        link.symlink_to(PANEL)
    config = folder / "config/jupyter_server_config.d"
    config.mkdir(parents=True, exist_ok=True)
    (config / "scalai_nb.json").write_bytes((PANEL / "scalai_nb.json").read_bytes())
    port = free_port()
    variables = {
        "JUPYTER_PATH": paths(folder / "data", more and more / "share/jupyter"),
        "JUPYTER_CONFIG_PATH": paths(folder / "config", more and more / "etc/jupyter"),
        "PYTHONPATH": paths(os.environ.get("PYTHONPATH"), *(more or folder).glob("lib/*/*")),
        "JUPYTER_CONFIG_DIR": str(folder / "own"),
        "JUPYTER_DATA_DIR": str(folder / "share"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    words = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.base_url=/user/a/",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={root}",
        "--LabApp.expose_app_in_browser=True",
        "--JupyterNotebookApp.expose_app_in_browser=True",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    if more:
        variables["JUPYTERLAB_DIR"] = str(_both(folder / "lab", more))
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [python, "-m", app, *words[: 7 if app == "jupyter_server" else None]],
            cwd=root,
            env={k: v for k, v in os.environ.items() if not k.startswith("SCALAI_")} | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}/user/a/", process)
    try:
        _wait(server, folder / "server.log")
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # as a terminal that is closed: to its whole group
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _both(folder: Path, more: Path) -> Path:
    "JupyterLab's settings and themes, and those of an app that is installed elsewhere"
    for prefix in (Path(sys.prefix), more):
        for part in ("schemas", "themes"):
            if (place := prefix / "share/jupyter/lab" / part).is_dir():
                shutil.copytree(place, folder / part, dirs_exist_ok=True)
    return folder


def paths(*found: Path | str | None) -> str:
    "Those that there are, as a variable has them"
    return os.pathsep.join(str(path) for path in found if path)


def _wait(server: Server, log: Path) -> None:
    "Until it answers"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if server.ask("project")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-3000:])
