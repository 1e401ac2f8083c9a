"""Runs of small pipelines by the real command

Caching, parameters, order, pins, secrets, publishing, checkpoints, the cluster.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from toy import Project, cells, statuses

from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.pipeline.outputs import recover
from scalai_nb.pipeline.run import load_run

CONTRACT = "from scalai_nb.pipeline import In, Out, Secret\n"
WRITE = (
    "import numpy as np, xarray as xr\n"
    "from scalai_nb.pipeline import checkpoint, read, write\n"
    "write({0}, xr.Dataset({{'x': ('row', np.arange({1}))}}))"
)


@pytest.fixture
def project(tmp_path):
    "a -> b -> d and a -> c -> d, where every step writes a dataset of its own name"
    p = Project(tmp_path)
    for name, reads in (("00_a", ""), ("01_b", "a"), ("02_c", "a"), ("03_d", "bc")):
        own = name[-1]
        p.step(
            name,
            CONTRACT
            + "\n".join(
                [f'{r}: In = "{r}"' for r in reads]
                + [f'{own}: Out = "{own}"', "n: int = 3  # rows"]
            ),
            WRITE.format(own, "n"),
        )
    return p


def run(project, *words, code=0, **variables) -> dict:
    done = project.said("run", "toy", "--json", *words, **variables)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def executed(record: dict) -> list[str]:
    return [name for name, (status, _) in statuses(record).items() if status != "cached"]


def edit(path: Path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_what_is_executed_again(project):
    assert executed(run(project)) == ["a", "b", "c", "d"]
    assert executed(run(project)) == []
    edit(project.root / "pipelines/toy/01_b.ipynb", "arange(n)", "arange(N)".lower() + " ")
    assert executed(run(project)) == []  # layout
    edit(project.root / "pipelines/toy/01_b.ipynb", "# A step", "# Other words")
    assert executed(run(project)) == []  # prose
    edit(project.root / "pipelines/toy/01_b.ipynb", "'x'", "'y'")
    assert executed(run(project)) == ["b", "d"]
    assert executed(run(project, "-p", "c.n=4")) == ["c", "d"]
    assert executed(run(project, "-p", "c.n=4", "--from", "b")) == ["b", "d"]
    assert executed(run(project, "-p", "c.n=4", "--force")) == ["a", "b", "c", "d"]


def test_a_dry_run_changes_nothing(project):
    before = project.files()
    done = project.said("run", "toy", "--dry-run")
    assert done.returncode == 0 and "4 of 4 steps have to run" in done.stdout
    assert project.files() == before
    planned = json.loads(project.said("plan", "toy", "--json").stdout)
    assert [s["status"] for s in planned["steps"]] == ["stale"] * 4 and project.files() == before


def test_independent_steps_overlap(project):
    record = run(project, "--jobs", "2")
    a, b, c, d = ((s["started"], s["started"] + s["seconds"]) for s in record["steps"])
    assert b[0] < c[1] and c[0] < b[1], "b and c do not depend on each other"
    assert a[1] <= min(b[0], c[0]) and max(b[1], c[1]) <= d[0]


def test_inputs_are_pinned_and_recorded(project):
    first = run(project)
    written = {name: version for s in first["steps"] for name, version in s["written"]}
    assert first["steps"][3]["inputs"] == {"b": written["b"], "c": written["c"]}
    assert {s["name"]: s["rows"] for s in first["steps"]} == dict.fromkeys("abcd", 3)
    Lake(project.root / ".scalai/lake").write("a", xr.Dataset({"x": ("row", np.arange(9))}))
    again = run(project)  # somebody wrote over the output of a step: the step makes it again
    assert (
        executed(again) == ["a", "b", "c", "d"]
        and "output a was changed since" in again["steps"][0]["reasons"]
    )


@pytest.mark.slow
def test_a_version_can_be_asked_for(project):
    run(project)
    project.said("lake", "tag", "a", "three")
    run(project, "-p", "a.n=5")
    project.step(
        "00_reader",
        CONTRACT + 'a: In = "a@three"',
        "from scalai_nb.pipeline import read\nprint('rows', read(a).sizes['row'])",
        pipeline="other",
    )
    assert project.said("run", "other").returncode == 0
    assert "rows 3" in project.said("show", "latest", "reader").stdout


def test_a_step_that_fails_publishes_nothing(project):
    run(project)
    lake = Lake(project.root / ".scalai/lake")
    before = lake.version("b").id
    edit(project.root / "pipelines/toy/01_b.ipynb", "arange(n)", "arange(n + 1)")
    project.step(
        "01_b", CONTRACT + 'a: In = "a"\nb: Out = "b"\nn: int = 3', WRITE.format("b", "7"), "1/0"
    )
    assert statuses(run(project, code=1))["b"] == ("failed", "cell_error")
    assert (
        lake.version("b").id == before
        and lake.read("b").sizes["row"] == 3
        and len(lake.log("b")) == 1
    )


def test_what_was_measured_is_recorded_and_what_is_of_models_is_refused(tmp_path):
    project = Project(tmp_path)
    text = CONTRACT + 'a: Out = "a"'
    ending = WRITE.format("a", 3).removesuffix(")")
    project.step("00_a", text, f"{ending}, metrics={{'gap': np.float32(0.5)}})")
    assert project.said("run", "toy").returncode == 0
    env = environment("laptop", settings=tmp_path / "settings.ini")
    assert load_run(env, "latest").step("a").metrics == {"gap": 0.5}
    project.step("00_a", text, f"{ending}, alias='champion')")
    done = project.said("run", "toy")
    assert done.returncode == 1 and "alias is of models" in done.stdout


def test_an_output_that_is_declared_and_not_written(project):
    project.step("00_a", CONTRACT + 'a: Out = "a"', "1 + 1")
    record = run(project, code=1)
    assert (
        statuses(record)["a"] == ("failed", "contract")
        and "'a' is declared as an Out and was not written" in record["steps"][0]["error"]
    )


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("read('b')", "read: 'b' is not in the contract cell"),
        ("write('b', None)", "write: 'b' is not in the contract cell"),
    ],
)
def test_what_the_contract_does_not_declare(project, code, says):
    project.step(
        "00_a", CONTRACT + 'a: Out = "a"', f"from scalai_nb.pipeline import read, write\n{code}"
    )
    assert says in run(project, code=1)["steps"][0]["error"]


@pytest.mark.slow
def test_somebody_else_writes_meanwhile(project):
    run(project)
    project.step(
        "00_a",
        CONTRACT + 'a: Out = "a"',
        WRITE.format("a", "5") + "\nprint('written.', flush=True); import time; time.sleep(4)",
    )
    process = project.start("run", "toy", "--json")
    project.wait_for("written.", "00_a")
    theirs = Lake(project.root / ".scalai/lake").write(
        "a", xr.Dataset({"x": ("row", np.arange(9))})
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and statuses(json.loads(out))["a"] == ("failed", "conflict")
    assert Lake(project.root / ".scalai/lake").version("a").id == theirs.id


def test_a_secret_is_written_nowhere(project):
    project.step(
        "00_a",
        CONTRACT + 'token: Secret = "TOKEN"\na: Out = "a"',
        "from scalai_nb.pipeline import Secret\nprint('it is', Secret(token).value)",
        WRITE.format("a", "3"),
    )
    done = project.said("run", "toy")
    assert done.returncode == 2 and "TOKEN is not set" in done.stderr
    done = project.scalai("run", "toy", TOKEN='hunter2"x')
    assert done.returncode == 0 and "it is ***" in project.said("show", "latest", "a").stdout
    assert not [name for name, content in project.files().items() if b"hunter2" in content]


def checkpoints_of(project, *body) -> tuple[str, str]:
    "What a step prints, when it fails after its checkpoints and when it is run again"
    fault = "from pathlib import Path\nassert Path('mended').exists(), 'not mended'"
    body = ("from scalai_nb.pipeline import checkpoint", *body, fault, WRITE.format("a", "3"))
    project.step("00_a", CONTRACT + 'a: Out = "a"', *body)
    run(project, code=1)
    first = project.said("show", "latest", "a").stdout
    (project.root / "pipelines/toy/mended").touch()
    run(project)
    return first, project.said("show", "latest", "a").stdout


def test_a_checkpoint_is_computed_once(project):
    first, again = checkpoints_of(
        project,
        "def slow(x):\n    print('computed')\n    return x * 2",
        "print('it is', checkpoint('slow', slow, 21))",
    )
    assert "computed" in first and "it is 42" in again and "computed" not in again
    assert not list(project.root.glob(".scalai/runs/checkpoints/toy/a/*"))


def test_each_call_of_a_loop_has_its_own_checkpoint(project):
    first, again = checkpoints_of(
        project,
        "import threading\n"
        "from functools import partial\n"
        "lock = threading.Lock()  # which no file keeps\n"
        "def fold(k, by=1):\n"
        "    with lock: print('computed')\n"
        "    return k * by\n"
        "class Folds:\n"
        "    def __init__(self, k): self.k, self.lock = k, lock\n"
        "    def fold(self): return fold(self.k)",
        "said = []\n"
        "for k in range(2):\n"
        "    def here(): return [fold(k) for _ in 'x'][0]\n"
        "    def given(*, by=k): return fold(by)\n"
        "    calls = [here, given, Folds(k).fold, partial(fold, k), partial(fold, by=k, k=3)]\n"
        "    calls += [lambda k=k: fold(k), lambda: fold(k, 10), partial(fold, k, by=100)]\n"
        "    calls += [partial(lambda pair: fold(pair[1]), [lock, k])]\n"
        "    said.append([checkpoint('fold', call) for call in calls])\n"
        "print('they are', said)",
    )
    said = "they are [[0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 3, 1, 10, 100, 1]]"
    assert said in first and first.count("computed") == 18
    assert said in again and "computed" not in again


def test_a_cell_is_skipped_by_its_tag_and_what_is_left_by_an_exit(project):
    body = ("print('x')", "1 / 0", WRITE.format("a", "3"), "import sys; sys.exit(0)", "1 / 0")
    path = project.step("00_a", CONTRACT + 'a: Out = "a"', *body)
    nb = json.loads(path.read_text())
    nb["cells"][3]["metadata"] = {"tags": ["skip-execution"]}
    path.write_text(json.dumps(nb))
    record = run(project)
    assert statuses(record)["a"] == ("completed", None)
    ended = ["completed", "completed", "skipped", "completed", "completed", "skipped"]
    assert cells(record, "a") == ended
    edit(path, "1 / 0", "2 / 0")
    assert "a" in executed(run(project))  # the last cell could be executed, the code counts


def test_an_exit_with_another_code_is_a_failure(project):
    project.step("00_a", CONTRACT + 'a: Out = "a"', "import sys; sys.exit(3)")
    assert run(project, code=1)["steps"][0]["error"] == "cell 3: SystemExit: 3"


def test_the_cluster_of_the_run(tmp_path):
    project = Project(tmp_path, "cluster = local\ntrackers = none\nworkers = 1\n")
    body = (
        "import scalai_nb as sn\n"
        "client = sn.connect()\n"
        "print('sum', client.submit(sum, [1, 2]).result(), client.scheduler.address)"
    )
    for name in ("00_x", "01_y"):
        project.step(name, "n: int = 1", body)
    run(project)
    told = [
        re.search(r"sum 3 (\S+)", project.said("show", "latest", step).stdout)[1] for step in "xy"
    ]
    assert told[0] == told[1]  # one cluster, owned by the run
    host, port = told[0].removeprefix("tcp://").split(":")
    probe = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
    assert (
        subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 1
    )  # gone with it


def test_a_cached_run_imports_nothing_that_executes(project):
    "What starts kernels and what opens lakes: each would take longer than all of the run"
    run(project)
    time.sleep(2)  # until what is written now would get another time
    run(project)
    log = project.scalai("run", "toy", PYTHONVERBOSE="1").stderr
    heavy = ["nbformat", "jupyter_client", "IPython", "icechunk", "zarr", "numpy", "pandas"]
    loaded = set(re.findall(r"^import '(\w+)'", log, re.M))
    assert "scalai_nb" in loaded and not loaded & {*heavy}


def test_the_notebook_is_a_fold_over_the_logs(project):
    project.step(
        "00_a",
        CONTRACT + 'a: Out = "a"',
        (
            "from IPython.display import HTML, clear_output, display\n"
            "print('gone'); clear_output()\n"
            "h = display(HTML('<b>1</b>'), display_id=True); h.update(HTML('<b>2</b>'))\n"
            "42"
        ),
        WRITE.format("a", "3"),
    )
    run(project)
    record = load_run(environment("laptop", settings=project.root / "settings.ini"))
    written = json.loads((record.folder / "00_a.ipynb").read_text())
    assert recover(record, record.step("a")) == written
    html, number = written["cells"][2]["outputs"]
    assert (
        html["data"]["text/html"] == "<b>2</b>"
        and number["data"]["text/plain"] == "42"
        and written["cells"][2]["execution_count"] == 2
    )


def test_bytes_written_stay_a_small_multiple(tmp_path):
    project = Project(tmp_path)
    project.step("00_loud", "n: int = 1", *["print('x' * 100_000)"] * 60)
    assert project.said("run", "toy").returncode == 0
    folder = next(project.root.glob(".scalai/runs/toy-*"))
    final = (folder / "00_loud.ipynb").stat().st_size
    assert (
        final > 6_000_000 and sum(p.stat().st_size for p in folder.rglob("00_loud.*")) < 2.1 * final
    )


def test_plain_papermill_with_the_engine(project, tmp_path):
    run(project)
    words = [
        "papermill",
        "--engine",
        "scalai",
        "pipelines/toy/03_d.ipynb",
        "out.ipynb",
        "-p",
        "n",
        "6",
        "--cwd",
        "pipelines/toy",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=tmp_path,
        env=project.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    nb = json.loads((tmp_path / "out.ipynb").read_text())
    assert {c["metadata"]["papermill"]["status"] for c in nb["cells"]} == {"completed"}
    assert Lake(project.root / ".scalai/lake").read("d").sizes["row"] == 6
