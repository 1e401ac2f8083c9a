"""Steps that are written as text beside the notebook, and synchronised by jupytext"""

import json

import pytest
from jupytext.cli import jupytext as cli
from toy import Project

STEPS = {
    "plain": ("n: int = 3  # rows", "x = n + 1\nx", "print('done')"),
    "magics": ("n: int = 3", "%matplotlib inline\nn", "!echo shell"),
    "markers": ("text: str = '# %% [markdown]'", "text  # %% not at the beginning", "'```'"),
    "typed": (
        "from scalai_nb.pipeline import Out\nmade: Out = 'made'\nmonths: list[int] = [1, 2]",
        "import xarray as xr\nfrom scalai_nb.pipeline import write",
        "write(made, xr.Dataset({'m': ('row', months)}))",
    ),
    "words": ("name: str = 'Zoë'  # ‘quoted’", "# only a comment", ""),
}


def jupytext(*words):
    "The command, in this process: a start of it takes longer than all that it does"
    assert not cli([*map(str, words)])


def cells(path):
    found = json.loads(path.read_text())["cells"]
    return [(c["id"], c["metadata"].get("tags", []), "".join(c["source"])) for c in found]


def plan(project):
    done = project.said("plan", "toy", "--json")
    assert done.returncode == 0, done.stderr
    return [(s["name"], s["status"]) for s in json.loads(done.stdout)["steps"]]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("format", ["py:percent", "md:myst"])
def test_a_step_survives_the_way_to_text_and_back(project, kind, format):
    step = project.step("00_a", *STEPS[kind])
    before = cells(step)
    jupytext("--set-formats", f"ipynb,{format}", step)
    text = step.with_suffix(f".{format[:2]}")
    text.write_text(text.read_text() + "\n")
    jupytext("--sync", text)
    assert cells(step) == before


def test_a_text_beside_a_step_is_none_and_makes_none_stale(project):
    step = project.step("00_a", *STEPS["plain"])
    jupytext("--set-formats", "ipynb,py:percent", step)
    assert project.said("run", "toy").returncode == 0
    text = step.with_suffix(".py")
    text.write_text(text.read_text().replace("# # A step", "# # Another title"))
    jupytext("--sync", text)
    assert plan(project) == [("a", "cached")]
    text.write_text(text.read_text().replace("n + 1", "n + 2"))
    jupytext("--sync", text)
    assert plan(project) == [("a", "stale")]


@pytest.mark.parametrize("command", ["run", "plan", "adopt"])
def test_a_text_alone_is_refused_with_what_makes_a_notebook_of_it(project, command):
    (project.root / "00_a.py").write_text("# %% tags=['parameters']\nn: int = 3\n")
    done = project.said(command, "00_a.py")
    assert done.returncode == 2 and "jupytext --to ipynb" in done.stderr
