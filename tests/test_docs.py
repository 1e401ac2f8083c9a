"""What README.md and CONTRIBUTING.md say is true: their commands are run, in the order written"""

import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path
from urllib.request import urlopen

import pytest
from toy import notebook

ROOT = Path(__file__).parent.parent
DOCS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "docs/architecture.md",
    )
}

SERVERS = ("scalai dash", "scalai serve late-flight")  # they serve until Ctrl-C
ACTIVATE = "source .venv/bin/activate"
INTO_ITS_ENVIRONMENT = ("scalai kernel install",)
BY_STAND_INS = {  # what is called, with programs that only write down that they were
    "make test": ["python tests/outputs.py --check --lessons", "pytest --numprocesses 2"],
    "make test PYTHON=python3.13": ["pytest --numprocesses 2"],
    'make test ARGS="-k lake"': ["--dist worksteal -k lake"],
    "make test PROCESSES=8": ["--processes 8", "pytest --numprocesses 8"],
    "make check": ["ruff check", "ruff format --check", "basedpyright", "pytest -m not slow"],
    "make export": ["nbdev-clean", "nbdev-export"],  # test_hygiene exports for real
    "make update": ["nbdev-update", "nbdev-export"],
    "make lock": ["uv pip compile"],
    "make test-services": ["uv pip install"],
}
APART = (*SERVERS, ACTIVATE, *INTO_ITS_ENVIRONMENT, *BY_STAND_INS)


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCS[name], re.M | re.S)


COMMANDS = [
    (name, line)
    for name in ("README.md", "CONTRIBUTING.md")
    for block in blocks(name, "bash")
    for line in block.splitlines()
]


def test_every_line_is_accounted_for():
    written = {line for _, line in COMMANDS}
    assert set(APART) <= written, "these are no longer in the documents"
    assert len(written) > len(APART)


# ---- commands that call heavy programs


@pytest.fixture
def stand_ins(tmp_path):
    "Run a line of `make` where every program only writes down how it was called; what was called"
    log, bin_ = tmp_path / "log", tmp_path / "venv/bin"
    bin_.mkdir(parents=True)
    nbdev = [f"nbdev-{name}" for name in ("clean", "export", "test", "update")]
    for name in nbdev + "python python3 pytest ruff basedpyright uv chromium g++".split():
        program = bin_ / name
        program.write_text(f'#!/bin/sh\necho "$(basename $0) $*" >>{log}\n')
        program.chmod(0o755)
    (tmp_path / "venv/.installed").touch()
    project = tmp_path / "project"
    shutil.copytree(ROOT / "environments", project / "environments")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, project)

    def call(command: str) -> str:
        venv = str(tmp_path / "venv")
        hidden = "MAKELEVEL", "PROCESSES", "FILES"
        env = {k: v for k, v in os.environ.items() if k not in hidden}
        env |= {"PATH": f"{bin_}:{env['PATH']}", "VENV": venv, "MAKEFLAGS": f"-o {venv}/.installed"}
        done = subprocess.run(
            ["bash", "-c", command], cwd=project, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return log.read_text()

    return call


@pytest.mark.parametrize("command", BY_STAND_INS)
def test_make_calls_what_it_says(stand_ins, command):
    called = stand_ins(command)
    for words in BY_STAND_INS[command]:
        assert words in called


# ---- commands that work on what the demo made


@pytest.mark.slow
def test_the_demo_ends_with_what_to_look_at(demo):
    steps = sorted(p.stem for p in (ROOT / "nbs/pipelines/flights").glob("*.ipynb"))
    for step in steps:
        assert step in demo.first
    assert "champion" in demo.first
    report = Path(re.search(r"\S+report\.html", demo.first)[0])
    assert report.is_file() and report.is_relative_to(demo.folder)


@pytest.fixture(scope="session")
def yours(demo):
    "The notebook of whoever reads the README"
    cells = "rows = 100  # to look at\nname = 'analysis.txt'", "open(name, 'w').write('x' * rows)"
    notebook(demo.folder / "analysis.ipynb", None, *cells)


@pytest.mark.slow
@pytest.mark.parametrize("name, command", [c for c in COMMANDS if c[1] not in APART])
def test_the_command_works(demo, yours, name, command):
    done = demo(command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", SERVERS)
def test_the_server_answers_until_it_is_interrupted(demo, command):
    words = f"exec {command}{' --no-open' if command.endswith('dash') else ''} --port 0"
    with demo.started(words) as process:
        lines = iter(process.stdout.readline, "")
        address = next(m[0] for line in lines if (m := re.search(r"http://127\.0\.0\.1:\d+", line)))
        with urlopen(address, timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", INTO_ITS_ENVIRONMENT)
def test_the_command_writes_into_the_environment_that_is_active(demo, command):
    "An environment of its own, with the packages of this one"
    venv.create(demo.folder / ".venv")
    here = Path(sys.executable).parent.parent
    (site,) = (demo.folder / ".venv").glob("lib/python*/site-packages")
    (packages,) = here.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\n")
    program = demo.folder / ".venv/bin/scalai"
    program.write_text(
        f"#!{demo.folder}/.venv/bin/python\nfrom scalai_nb.cli import main\nmain()\n"
    )
    program.chmod(0o755)
    done = demo(f"{ACTIVATE} && {command}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((demo.folder / ".venv/share/jupyter/kernels").glob("*/kernel.json"))


@pytest.mark.parametrize("code", blocks("README.md", "python"))
def test_the_code_runs(code):
    names = {}
    exec(code, names)
    assert names["features"] == "features" and names["__annotations__"]


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)\)", DOCS[name])
    here = (ROOT / name).parent
    missing = [
        link for link in links if not link.startswith("https://") and not (here / link).exists()
    ]
    assert links and not missing


@pytest.mark.parametrize("name", DOCS)
def test_files_that_are_named_exist(name):
    "`learn/features/transform` and the like, and `scalai_nb/....py`; but what changed may be gone"
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_0-9]+)+)`", DOCS[name]))
    named |= {m.removesuffix(".py") for m in re.findall(r"`scalai_nb/([\w/]+\.py)`", DOCS[name])}
    there = [ROOT / "scalai_nb", ROOT]
    gone = [
        n for n in named if not any((t / n).exists() or (t / f"{n}.py").exists() for t in there)
    ]
    assert name == "CHANGELOG.md" or not gone
