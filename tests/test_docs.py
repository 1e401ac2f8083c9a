"""What README.md and CONTRIBUTING.md say is true: their commands are run, in the order in which they are written"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
}

ELSEWHERE = {  # what is not run here, and the test that does it
    "make test": "test_project.py::test_ci_ends_with_the_summaries_and_fails_when_a_suite_does",
    "make test PYTHON=python3.13": "test_project.py::test_another_python_gets_another_folder",
    'make test ARGS="-k lake"': "test_project.py::test_make_passes_more_words_to_pytest",
    "make test PROCESSES=8": "test_project.py::test_make_passes_more_words_to_pytest",
    "make check": "test_hygiene.py::test_the_export_is_in_sync_and_no_module_is_an_orphan",
    "make lock": "test_project.py::test_the_lock_holds_all_that_the_project_asks_for",
    "make test-services": "test_project.py::test_services_never_fail",
    "source .venv/bin/activate": "test_project.py::test_make_installs_once_and_again_when_the_lock_changes",
    "scalai dash": "test_dashboard.py::",  # serves until Ctrl-C
    "scalai serve late-flight": "test_serve.py::",  # likewise
    "scalai kernel install": "test_kernels.py::",  # writes into the environment of these tests
}


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCS[name], re.M | re.S)


COMMANDS = [
    (name, line)
    for name in ("README.md", "CONTRIBUTING.md")
    for block in blocks(name, "bash")
    for line in block.splitlines()
]


@pytest.mark.parametrize("where", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_is_not_run_here_is_run_there(where):
    file, _, test = where.partition("::")
    assert re.search(
        rf"^def {test}" if test else r"^def test_",
        (ROOT / "tests" / file).read_text(encoding="utf-8"),
        re.M,
    )


def test_every_line_is_accounted_for():
    written = {line for _, line in COMMANDS}
    assert set(ELSEWHERE) <= written, "these are no longer in the documents"
    assert len(written) > len(ELSEWHERE)


@pytest.mark.slow
def test_the_demo_ends_with_what_to_look_at(demo):
    steps = sorted(p.stem for p in (ROOT / "nbs/pipelines/flights").glob("*.ipynb"))
    for step in steps:
        assert step in demo.first
    assert "champion" in demo.first
    report = Path(re.search(r"\S+report\.html", demo.first)[0])
    assert report.is_file() and report.is_relative_to(demo.folder)


@pytest.mark.slow
@pytest.mark.parametrize("name, command", [c for c in COMMANDS if c[1] not in ELSEWHERE])
def test_the_command_works(demo, name, command):
    done = demo(command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_second_demo_comes_from_the_cache(demo):
    steps = len(list((ROOT / "nbs/pipelines/flights").glob("*.ipynb")))
    done = demo("make demo", timeout=60)
    assert done.returncode == 0 and done.stdout.count("cached") >= steps, done.stdout + done.stderr


@pytest.mark.parametrize("code", blocks("README.md", "python"))
def test_the_code_runs(code):
    names = {}
    exec(code, names)
    assert names["features"] == "features" and names["__annotations__"]


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)\)", DOCS[name])
    missing = [
        link for link in links if not link.startswith("https://") and not (ROOT / link).exists()
    ]
    assert links and not missing
