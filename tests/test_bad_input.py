"""Wrong words: one sentence that names the place and the remedy, exit code 2, nothing changed."""

import pytest
from toy import Project

OUT = "from scalai_nb.pipeline import Goal, In, Out\n"


@pytest.fixture
def project(tmp_path):
    p = Project(tmp_path)
    p.step(
        "00_first", OUT + 'n: int = 1  # how many\nrecall: Goal = ">= 0.6"\na: Out = "a"', "1 + 1"
    )
    return p


def refused(project, *words: str, says: list[str], **variables: str):
    "`scalai *words` ends with 2 and one line that says `says`, and leaves every file as it was"
    before = project.files()
    done = project.said(*words, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in says:
        assert word in done.stderr, done.stderr
    assert project.files() == before


def test_a_missing_dataset(project):
    project.step("01_second", OUT + 'b: In = "bb"', "1")
    refused(project, "run", "toy", says=["01_second.ipynb", "line 2", "'bb' is not in the lake"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-p", "first.recall=0.6"], ["recall", "'0.6' is not a goal", '">= 0.60"']),
        (["-p", "first.n=1", "-p", "first.n=2"], ["first.n", "twice"]),
        (["-p", "first.m=1"], ["'m' is not in", "known: a, n, recall"]),
        (["-p", "firts.n=1"], ["Did you mean 'first'?"]),
        (["-p", "first.n=many"], ["n: 'many' is not of type int"]),
        (["-p", "first.n"], ["first.n", "step.name=value"]),
        (["--from", "secnod"], ["'secnod' is not in", "first"]),
    ],
)
def test_a_wrong_parameter(project, words, says):
    refused(project, "run", "toy", *words, says=says)


def test_a_goal_that_is_not_a_comparison(project):
    project.step("01_second", OUT + 'recall: Goal = "0.6"', "1")
    refused(project, "run", "toy", says=["01_second.ipynb", "line 2", "'0.6' is not a goal"])


def test_a_notebook_without_a_contract_cell(project):
    project.step("01_second", None, "1")
    refused(project, "run", "toy", says=["01_second.ipynb", "parameters"])


def test_a_notebook_with_a_syntax_error(project):
    project.step("01_second", "n: int = 1", "x = 1\ny = = 2")
    refused(project, "run", "toy", says=["01_second.ipynb", "line 2", "y = = 2"])


def test_a_notebook_with_an_unknown_kernel(project):
    project.step("01_second", "n: int = 1", "1", kernel="pyhton3")
    refused(project, "run", "toy", says=["01_second.ipynb", "'pyhton3'", "Did you mean 'python3'?"])


def test_two_steps_that_write_one_dataset(project):
    project.step("01_second", OUT + 'z: Out = "a"', "1")
    refused(
        project,
        "run",
        "toy",
        says=["01_second.ipynb", "a is written by", "00_first.ipynb", "rename"],
    )


def test_a_cycle(project):
    project.step("00_first", OUT + 'b: In = "b"\na: Out = "a"', "1")
    project.step("01_second", OUT + 'a: In = "a"\nb: Out = "b"', "1")
    refused(project, "run", "toy", says=["cycle", "first", "second"])


def test_an_unknown_pipeline_or_environment(project):
    refused(project, "run", "tyo", says=["'tyo' is not in", "Did you mean 'toy'?"])
    refused(project, "run", "toy", "--env", "laptpo", says=["Did you mean 'laptop'?", "--env"])


@pytest.mark.parametrize("key", ["lake", "runs", "models"])
def test_a_place_that_cannot_be_written(project, key):
    (project.root / "file").write_text("not a folder")
    refused(
        project,
        "run",
        "toy",
        says=[key, "file", "cannot be written", f"SCALAI_{key.upper()}"],
        **{f"SCALAI_{key.upper()}": "file/here"},
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[laptop]\nlakee = x\n", ["[laptop]", "Did you mean 'lake'?"]),
        ("[laptop]\nworkers = many\n", ["settings.ini [laptop]", "workers = 'many'"]),
        ("laptop]\n", ["settings.ini cannot be read"]),
    ],
)
def test_settings_with_a_typing_error(project, text, says):
    (project.root / "settings.ini").write_text(text)
    refused(project, "run", "toy", says=says)


def test_a_run_or_step_that_is_not_there(project):
    refused(project, "show", "x", says=["There is no run"])


def test_a_second_run_at_once(tmp_path):
    project = Project(tmp_path)
    project.step(
        "00_long", "n: int = 1", "import time; print('started.', flush=True); time.sleep(60)"
    )
    first = project.start("run", "toy")
    try:
        project.wait_for("started.")
        done = project.said("run", "toy")
        assert (
            done.returncode == 2
            and "toy is being run already, by toy-" in done.stderr
            and "scalai cancel" in done.stderr
        )
        assert len(list(project.root.glob(".scalai/runs/toy-*"))) == 1
    finally:
        first.terminate()
        first.communicate(timeout=30)
