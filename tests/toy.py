"""Small projects for tests: a settings.ini and a pipeline of notebooks, run by the real command"""

import atexit
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from scalai_nb.pipeline.execution.forkserver import ForkServer

# root may write what nobody may; before a command, this makes it heed modes as everybody does
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override", "--"] if os.geteuid() == 0 else []
SPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def notebook(
    path: Path, contract: str | None, *cells: str, title: str = "A step", kernel: str = "python3"
) -> Path:
    "Write a step notebook; no contract cell when `contract` is None"
    nb = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": [f"# {title}"]}]
    tagged = [] if contract is None else [("contract", ["parameters"], contract)]
    for id, tags, source in (*tagged, *((f"cell{i}", [], c) for i, c in enumerate(cells))):
        nb.append(
            {
                "cell_type": "code",
                "id": id,
                "metadata": {"tags": tags} if tags else {},
                "source": source.splitlines(keepends=True),
                "outputs": [],
                "execution_count": None,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "cells": nb,
                "metadata": {"kernelspec": {**SPEC, "name": kernel}},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )
    return path


class Project:
    "A folder with a settings.ini, and the command `scalai` in it; no tracker is told of its runs"

    def __init__(
        self,
        root: Path,
        settings: str = "cluster = none\ntrackers = none\n",
        database: Path | None = None,  # MLflow's, to copy: to set one up takes seconds
    ):
        self.root = root
        if database:
            (root / ".scalai").mkdir(exist_ok=True)
            shutil.copy(database, root / ".scalai/tracking.db")
        (root / "settings.ini").write_text(f"[laptop]\npipelines = pipelines\n{settings}")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SCALAI_")}

    def step(
        self, name: str, contract: str | None, *cells: str, pipeline: str = "toy", **kw
    ) -> Path:
        return notebook(
            self.root / "pipelines" / pipeline / f"{name}.ipynb", contract, *cells, **kw
        )

    def start(self, *words: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "scalai_nb", *words],
            cwd=self.root,
            env={**self.env, **variables},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def scalai(
        self, *words: str, timeout: float = 120, **variables: str
    ) -> subprocess.CompletedProcess:
        process = self.start(*words, **variables)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def said(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        "What a command says in this process: of most, the start of one takes most of the time"
        return said(self.root, {**self.env, **variables}, *words)

    def show(self, *words: str) -> dict:
        return json.loads(self.said("show", *words, "--json").stdout)

    def files(self) -> dict[str, bytes]:
        "Every file below the root, to see that nothing was changed"
        return {
            str(p.relative_to(self.root)): p.read_bytes()
            for p in self.root.rglob("*")
            if p.is_file()
        }

    def wait_for(self, text: str, step: str = "*", seconds: float = 60) -> str:
        "Wait until a step has printed `text`; what it has printed so far"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            printed = "".join(
                json.loads(line)["content"].get("text", "")
                for path in self._outputs(step)
                for line in path.read_text().splitlines()
                if line.endswith("}")
            )
            if text in printed:
                return printed
            time.sleep(0.05)
        raise AssertionError(f"{text!r} was not printed within {seconds} s")

    def _outputs(self, step: str) -> list[Path]:
        "Where steps leave what they print; a folder may be renamed while this looks"
        found = (Path(folder, name) for folder, _, files in os.walk(self.root) for name in files)
        return [path for path in found if path.match(f"{step}.outputs.jsonl")]


def said(folder: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    "What `scalai` says in a folder and with these variables, in this process"
    from scalai_nb.cli import main

    path = "PYTHONPATH"
    assert env.get(path) == os.environ.get(path), "other modules need a process: call `scalai`"
    out, err, code = StringIO(), StringIO(), 0
    given = patch.dict(os.environ, env, clear=True)
    forks = patch("scalai_nb.pipeline.execution.forkserver.ForkServer", shared_forks)
    with given, forks, chdir(folder), redirect_stdout(out), redirect_stderr(err):
        try:
            main([*words])
        except SystemExit as ended:
            code = ended.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@contextmanager
def shared_forks(
    modules: Sequence[str], hidden: Collection[str], memory: int | None
) -> Iterator[ForkServer]:
    "A fork server that runs of this process share, those that want it to be the same"
    yield _server(tuple(modules), frozenset(hidden), memory)


@cache
def _server(modules: tuple[str, ...], hidden: frozenset[str], memory: int | None) -> ForkServer:
    with chdir("/"):  # it stays when the folder of the first run is gone
        server = ForkServer(modules, hidden, memory)
    atexit.register(server.close)
    return server


def gone(pid: int, seconds: float = 10) -> bool:
    "Whether process `pid` ends within `seconds`"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def statuses(run: dict) -> dict[str, tuple]:
    "Step name -> status and cause"
    return {s["name"]: (s["status"], s["cause"]) for s in run["steps"]}


def cells(run: dict, step: str) -> list[str]:
    "The status of each cell of a step"
    return [c["status"] for c in next(s for s in run["steps"] if s["name"] == step)["cells"]]
