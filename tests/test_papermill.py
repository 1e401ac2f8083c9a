"""papermill's own tests, with the engine `scalai` in place of papermill's"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / ".services/papermill"
SUITE = [
    f"papermill/tests/test_{name}.py"
    for name in ("autosave", "cli", "clientwrap", "engines", "exceptions", "execute")
]
OURS = """
from scalai_nb.pipeline.papermill_engine import ScalaiEngine

for name in (None, "nbclient"):
    papermill_engines.register(name, ScalaiEngine)
"""
DELIBERATE = {  # what differs, and why
    "TestNotebookHelpers::test_start_timeout": "it looks how papermill's own client is called",
    "TestNotebookHelpers::test_default_start_timeout": "it looks how papermill's client is called",
    "TestBrokenNotebook2::test": "its notebook imports what IPython 9 does not have any more",
}


@pytest.mark.slow
@pytest.mark.skipif(not (SOURCE / ".installed").exists(), reason="no papermill in .services")
def test_papermills_own_tests_pass_but_for_what_is_listed(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "source")
    with (tmp_path / "source/papermill/engines.py").open("a") as file:
        file.write(OURS)
    said = suite(tmp_path / "source", *SUITE)
    assert int(re.search(r"(\d+) passed", said)[1]) >= 130
    if not failed(said) <= DELIBERATE.keys():  # some count what happens in 2.5 s, others run beside
        said = suite(tmp_path / "source", "--last-failed", *SUITE)
    assert failed(said) <= DELIBERATE.keys(), said[-6000:]


def suite(source: Path, *words: str) -> str:
    "What papermill's tests print"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *words],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    return done.stdout


def failed(said: str) -> set[str]:
    "The tests that did not pass"
    return set(re.findall(r"^(?:FAILED|ERROR) \S+\.py::(\S+)", said, re.M))
