"""Files that one step writes and another reads, and how old a result may be"""

import itertools
import json
import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from toy import Project, notebook

from scalai_nb.errors import GraphError, ParameterError
from scalai_nb.pipeline.pipeline import edges_of
from scalai_nb.pipeline.reading.parameter import Fresh
from scalai_nb.pipeline.staleness import Entry, Key
from scalai_nb.pipeline.step import Step

WORDS = "from pathlib import Path\nfrom scalai_nb.pipeline import File, Fresh, In, Out\n"


@pytest.fixture
def project(tmp_path):
    "Two steps: the second reads a file that the first writes half a second after it began"
    project = Project(tmp_path, "cluster = none\ntrackers = none\njobs = 2\n")
    write = "import time\ntime.sleep(0.5)\nPath(clean).write_text(str(rows))"
    project.step("01_clean", WORDS + 'clean: Out[File] = "clean.csv"\nrows: int = 3', write)
    read = "Path(total).write_text(str(2 * int(Path(clean).read_text())))"
    project.step(
        "02_total", WORDS + 'clean: In[File] = "./clean.csv"\ntotal: Out[File] = "total.txt"', read
    )
    return project


def plan(project) -> dict[str, list[str]]:
    "The reasons of each step"
    steps = json.loads(project.said("plan", "toy", "--json").stdout)["steps"]
    return {s["name"]: s["reasons"] for s in steps}


def test_a_file_that_one_step_writes_and_another_reads_is_an_edge(project):
    folder = project.root / "pipelines/toy"
    (folder / "clean.csv").write_text("100")  # of an earlier day: nobody may read it
    done = project.said("run", "toy")
    assert done.returncode == 0, done.stdout
    assert (folder / "total.txt").read_text() == "6"
    assert plan(project) == {"clean": [], "total": []}
    project.said("run", "toy", "-p", "clean.rows=4")
    assert (folder / "total.txt").read_text() == "8"


@pytest.mark.parametrize(
    "change, clean, total",
    [
        (lambda f: f.write_text("5"), ["output clean.csv was changed since"], True),
        (lambda f: f.unlink(), ["output clean.csv is gone"], True),
        (lambda f: os.utime(f, (1, 1)), [], False),
        (lambda f: (f.rename(f.with_name("x")), f.mkdir()), None, True),
    ],
    ids=["edited", "gone", "touched", "a folder"],
)
def test_the_content_of_a_file_between_steps_counts(project, change, clean, total):
    assert project.said("run", "toy").returncode == 0
    change(project.root / "pipelines/toy/clean.csv")
    why = plan(project)
    assert why["clean"] == (why["clean"] if clean is None else clean)
    assert bool(why["total"]) is total and bool(why["clean"]) is total


def test_a_file_that_is_declared_and_not_written_fails_the_step(project):
    folder = project.root / "pipelines/toy"
    (folder / "clean.csv").write_text("100")
    project.step("01_clean", WORDS + 'clean: Out[File] = "clean.csv"', "pass")
    done = project.said("run", "toy")
    assert done.returncode == 1
    run = project.show()
    assert "'clean.csv' is declared as an Out and was not written" in run["steps"][0]["error"]
    assert run["steps"][1]["status"] == "not_run"


def test_a_folder_may_go_between_steps(project):
    write = "Path(parts).mkdir(exist_ok=True)\n(Path(parts) / 'a').write_text('1')"
    project.step("01_clean", WORDS + 'parts: Out[File] = Path("parts")', write)
    read = "print(sorted(p.name for p in parts.iterdir()))"
    project.step("02_total", WORDS + 'parts: In[File] = Path("parts")', read)
    assert project.said("run", "toy").returncode == 0
    assert plan(project) == {"clean": [], "total": []}
    (project.root / "pipelines/toy/parts/b").write_text("2")
    assert plan(project)["total"]


def test_a_file_that_nobody_writes_must_be_there(project):
    project.step("01_clean", WORDS + 'clean: In[File] = "claen.csv"')
    (project.root / "pipelines/toy/02_total.ipynb").unlink()
    refused = project.said("run", "toy")
    assert refused.returncode == 2
    assert "'claen.csv' is not in the folder of the notebooks" in refused.stderr


def test_read_and_write_say_that_a_file_is_one(project):
    read = "from scalai_nb.pipeline import read\nread(clean)"
    project.step("02_total", WORDS + 'clean: In[File] = "clean.csv"', read)
    assert project.said("run", "toy").returncode == 1
    assert "is a file; open it by its path" in json.dumps(project.show())


def test_a_sweep_refuses_a_file_that_every_combination_would_write(project):
    refused = project.said("run", "toy", "--sweep", "clean.rows=1,2")
    assert refused.returncode == 2
    assert "every combination would write clean.csv" in refused.stderr


PATHS = "clean.csv", "./clean.csv", "data/../clean.csv", 'Path("clean.csv")'


@pytest.mark.parametrize("written, read", list(itertools.product(PATHS, PATHS)))
def test_a_file_is_the_same_however_its_path_is_spelt(tmp_path, written, read):
    one, other = (p if p.startswith("Path") else repr(p) for p in (written, read))
    steps = [
        Step.load(notebook(tmp_path / "01_a.ipynb", f"{WORDS}x: Out[File] = {one}")),
        Step.load(notebook(tmp_path / "02_b.ipynb", f"{WORDS}x: In[File] = {other}")),
    ]
    assert [tuple(e) for e in edges_of(steps)] == [("a", "b", "clean.csv")]


def test_a_file_and_a_dataset_of_one_name_are_told_apart(tmp_path):
    steps = [
        Step.load(notebook(tmp_path / "01_a.ipynb", WORDS + 'x: Out[File] = "clean"')),
        Step.load(notebook(tmp_path / "02_b.ipynb", WORDS + 'x: In = "clean"')),
    ]
    with pytest.raises(GraphError, match=r"clean is a file, written by a; write In\[File\]"):
        edges_of(steps)


@pytest.mark.parametrize("text", ["", " ", "a\0b"])
def test_what_names_no_file_is_refused(tmp_path, text):
    step = Step.load(notebook(tmp_path / "01_a.ipynb", WORDS + 'x: In[File] = "clean.csv"'))
    with pytest.raises(ParameterError, match="does not name a file"):
        step.bind({"x": text})


# ---- how old a result may be


@pytest.mark.parametrize(
    "age, hours, reasons",
    [
        ("1d", 23, []),
        ("1d", 25, ["older than 1d"]),
        ("90m", 1.4, []),
        ("90m", 1.6, ["older than 90m"]),
        ("2w", 24 * 15, ["older than 2w"]),
        ("0s", 1, ["older than 0s"]),
    ],
)
def test_a_result_is_as_fresh_as_its_step_says(tmp_path, age, hours, reasons):
    step = Step.load(notebook(tmp_path / "01_a.ipynb", f'{WORDS}fresh: Fresh = "{age}"'))
    ended = datetime.now(UTC) - timedelta(hours=hours)
    assert Entry(Key({}), {}, finished=ended.isoformat()).aged(step) == reasons


def test_a_clock_that_has_gone_back_keeps_nothing_fresh_for_ever(tmp_path):
    fresh = Step.load(notebook(tmp_path / "01_a.ipynb", WORDS + 'fresh: Fresh = "1d"'))
    plain = Step.load(notebook(tmp_path / "02_b.ipynb", WORDS))
    ended = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    entry = Entry(Key({}), {}, finished=ended)
    assert "is yet to come" in entry.aged(fresh)[0] and entry.aged(plain) == []


def aged(project: Project, step: str, **ago: float) -> None:
    "Make the last good run of a step so old, also for other checkouts"
    finished = (datetime.now(UTC) - timedelta(**ago)).isoformat()
    [file] = project.root.rglob(f"cache/toy/{step}.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "finished": finished}))
    [shared] = project.root.rglob(f".cache/toy/{step}.json")
    entry = json.loads(shared.read_text().partition(" ")[2])
    text = json.dumps({**entry, "finished": finished})
    shared.write_text(f"{sha256(text.encode()).hexdigest()} {text}")


def test_an_old_result_is_made_again_or_accepted(tmp_path):
    project = Project(tmp_path)
    project.step("01_prices", WORDS + 'fresh: Fresh = "1d"', "print('asked')")
    project.said("run", "toy")
    aged(project, "prices", hours=23)
    assert plan(project) == {"prices": []}
    aged(project, "prices", hours=25)
    assert plan(project) == {"prices": ["older than 1d"]}
    project.said("accept", "toy", "prices", "--because", "the exchange was closed")
    assert plan(project) == {"prices": []}
    aged(project, "prices", hours=25)
    project.said("run", "toy")
    assert plan(project) == {"prices": []}


def test_an_age_counts_as_a_parameter_only_where_the_code_asks_for_it(tmp_path):
    def step(code):
        return Step.load(notebook(tmp_path / "01_a.ipynb", WORDS + 'fresh: Fresh = "1d"', code))

    assert step("print('x')").arguments == {}
    assert step("print(fresh)").arguments == {"fresh": "1d"}


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1y", "1d2h", "nan d", "1e3d", "１d"])
def test_what_is_no_age_is_refused(text):
    with pytest.raises(ParameterError, match="is not an age; write one such as"):
        Fresh(text)


# ---- what may change without a new run


def test_the_order_of_parameters_does_not_count(tmp_path):
    lines = ["a: int = 1", "b: float = 3", 'c: In = "x"']
    found = {
        Step.load(notebook(tmp_path / "01_a.ipynb", WORDS + "\n".join(order))).contract
        for order in itertools.permutations(lines)
    }
    assert len(found) == 1


def test_a_whole_number_is_the_same_float_however_it_is_written(tmp_path):
    def step(value):
        return Step.load(notebook(tmp_path / "01_a.ipynb", f"{WORDS}rate: float = {value}"))

    spelt = [step("3"), step("3.0"), step("1").bind({"rate": "3"}), step("1").bind({"rate": 3})]
    assert {repr(s.arguments["rate"]) for s in spelt} == {"3.0"}
