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
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *SUITE],
        cwd=tmp_path / "source",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "source")},
        capture_output=True,
        text=True,
    )
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+\.py::(\S+)", done.stdout, re.M))
    assert failed <= DELIBERATE.keys(), done.stdout[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 130
