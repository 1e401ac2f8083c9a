"""`scalai diff`: the contract first, then the cells, by the real git and the real nbdime"""

import json
import subprocess
from pathlib import Path

import pytest
from toy import Project, notebook

GIT = ("git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org")


def git(folder: Path, *words: str) -> None:
    subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def there(tmp_path):
    "A repository with a step that is committed, and a tag"
    project = Project(tmp_path)
    notebook(tmp_path / "train.ipynb", "depth: int = 4  # of a tree\nold = 1", "fit(depth)")
    for words in (["init", "-q"], ["add", "train.ipynb"], ["commit", "-qm", "one"], ["tag", "v1"]):
        git(tmp_path, *words)
    return project


def changed(project: Project) -> Path:
    contract = "from scalai_nb.pipeline import In\ndepth: int = 6  # of a tree\nrides: In = 'rides'"
    return notebook(project.root / "train.ipynb", contract, "fit(depth, rides)")


def answer(project: Project, *words: str) -> dict:
    done = project.said("diff", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_contract_comes_first_and_a_difference_is_no_failure(there):
    assert "are the same" in there.said("diff", "train.ipynb").stdout
    changed(there)
    done = there.said("diff", "train.ipynb")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "train.ipynb at HEAD → train.ipynb" and "default" in lines[2]
    at = {word: done.stdout.index(word) for word in ("removed", "added", "fit(depth, rides)")}
    assert at["fit(depth, rides)"] > max(at["removed"], at["added"])


def test_it_is_json_for_a_program(there):
    assert answer(there, "train.ipynb", "v1")["same"]
    changed(there)
    found = answer(there, "train.ipynb", "v1")
    assert [(c["name"], c["what"], c["before"], c["after"]) for c in found["contract"]] == [
        ("depth", "default", "4", "6"),
        ("old", "removed", "int = 1", ""),
        ("rides", "added", "", "In = 'rides'"),
    ]
    assert not found["same"] and found["cells"]


def test_two_files_need_no_git_and_outputs_count_when_asked(tmp_path):
    project = Project(tmp_path)
    one = notebook(tmp_path / "a.ipynb", "n: int = 1", "print(n)")
    told = json.loads(one.read_text())
    shown = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
    told["cells"][2] |= {"outputs": [shown], "execution_count": 3, "id": "another"}
    (tmp_path / "b.ipynb").write_text(json.dumps(told))
    assert answer(project, "a.ipynb", "b.ipynb")["same"]
    assert not answer(project, "a.ipynb", "b.ipynb", "--outputs")["same"]
    told["cells"][1]["metadata"] = {}  # no contract any more
    (tmp_path / "b.ipynb").write_text(json.dumps(told))
    assert [c["what"] for c in answer(project, "a.ipynb", "b.ipynb")["contract"]] == ["removed"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.ipynb", "nope"], "'nope' is no file and no revision of git"),
        (["train.ipynb", "nope.ipynb"], "there is no such notebook"),
        (["new.ipynb"], "new.ipynb is not in HEAD; commit it"),
        (["text.ipynb"], "cannot be read as a notebook"),
        (["train.ipynb", "text.ipynb"], "text.ipynb: cannot be read as a notebook"),
        (["broken.ipynb", "train.ipynb"], "correct it"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(there, words, said):
    notebook(there.root / "new.ipynb", "n = 1")
    notebook(there.root / "broken.ipynb", "n: int = = 1")
    (there.root / "text.ipynb").write_text("# a text\n")
    done = there.said("diff", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_outside_of_git_the_other_has_to_be_named(tmp_path):
    project = Project(tmp_path)
    notebook(tmp_path / "a.ipynb", "n = 1")
    done = project.said("diff", "a.ipynb")
    assert done.returncode == 2 and "is in no git repository; name another" in done.stderr
