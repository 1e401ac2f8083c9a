"""Notebooks are committed executed: `make test` compares the lessons, test_flights the steps"""

import json
from pathlib import Path

import pytest
from outputs import LARGEST, lessons, same

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(
    p
    for folder in ("nbs", "dashboards")
    for p in (ROOT / folder).rglob("*.ipynb")
    if ".ipynb_checkpoints" not in p.parts
)


def shown(path: Path) -> list[dict]:
    "All outputs of a notebook"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]


def test_every_notebook_shows_something_and_nothing_failed():
    assert not [p.name for p in NOTEBOOKS if not shown(p)]
    assert not [p.name for p in NOTEBOOKS for o in shown(p) if o["output_type"] == "error"]


def test_pictures_are_small():
    large = [
        (p.name, kind)
        for p in NOTEBOOKS
        for o in shown(p)
        for kind, data in o.get("data", {}).items()
        if kind.startswith("image/") and 0.75 * len("".join(data)) > LARGEST
    ]
    assert not large


def test_no_path_of_a_machine_is_shown():
    named = (str(ROOT), str(Path.home()) + "/")
    found = [p.name for p in NOTEBOOKS for o in shown(p) if any(n in json.dumps(o) for n in named)]
    assert not found


@pytest.mark.parametrize(
    "a, b, alike",
    [
        ("0.7312 in 3.2 s", "0.7312 in 41 ms", True),
        ("in 3.6 s, 0.3 worker-seconds", "in 1 min 05 s, 2.1 worker-seconds", True),
        ("written 2026-11-24 18:20", "written 2027-01-02 03:04", True),
        ("run toy-20261124-182005 done", "run toy-20270102-030405 done", True),
        ("version DX0A6Q", "version 7K2B9C", True),
        ("B30EVP -> R4ERQB, 83,096 rows", "Z34SAB -> 389883, 83,096 rows", True),
        ("B30EVP -> R4ERQB", "Z34SAB -> 38988", False),
        ("389883 rows of B30EVP", "412000 rows of 123456", False),
        ("on 2013-01-31", "on 2013-02-28", False),
        ("auc 0.731", "auc 0.732", False),
        ("auc 0.73100001", "auc 0.73100002", True),
        ("3 rows", "4 rows", False),
        ("a b", "a c", False),
    ],
)
def test_what_may_differ_and_what_may_not(a, b, alike):
    assert same(a, b) is alike


def test_lessons_are_all_notebooks_but_steps():
    assert {p.parts[1] for p in lessons()} >= {"data", "learn", "serving", "tutorials"}
    assert not [p for p in lessons() if "pipelines" in p.parts]
