"""What goes wrong in a run is done for real; record, exit code and table all say what happened"""

import json
import os
import re
import signal
import subprocess

import pytest
from toy import Project, cells, gone, statuses

from scalai_nb.environment import environment
from scalai_nb.pipeline.execution.forkserver import ForkServer
from scalai_nb.pipeline.running.recorder import about

OUT = "from scalai_nb.pipeline import In, Out\n"


@pytest.fixture
def project(tmp_path):
    "Three steps: `good`; `bad`, whose cells a test fills in; `after`, which depends on both"
    p = Project(tmp_path)
    p.write = (
        "import numpy as np, xarray as xr\n"
        "from scalai_nb.pipeline import write\n"
        "write({0}, xr.Dataset({{'x': ('row', np.arange(3))}}))"
    )
    p.step("00_good", OUT + 'a: Out = "a"', p.write.format("a"))
    p.step("02_after", OUT + 'a: In = "a"\nb: In = "b"\nc: Out = "c"', p.write.format("c"))
    p.bad = lambda *cells: p.step(
        "01_bad",
        OUT + 'a: In = "a"\nb: Out = "b"',
        "print('before', flush=True)",
        *cells,
        p.write.format("b"),
    )
    return p


def check_failed(project, done, cause: str, words: str):
    "Code, table, record and notebook blame `cause` in `bad`; the next run resumes behind `good`"
    assert done.returncode == 1, done.stderr
    assert cause in done.stdout and "failed" in done.stdout and "resume" in done.stdout
    run = project.show()
    assert statuses(run) == {
        "good": ("completed", None),
        "bad": ("failed", cause),
        "after": ("not_run", None),
    }
    assert run["status"] == "failed" and re.search(words, run["steps"][1]["error"])
    assert cells(run, "bad") == ["completed", "completed", "failed", "not_run"]
    nb = json.loads(next(project.root.glob(".scalai/runs/*/01_bad.ipynb")).read_text())
    assert [
        c["metadata"]["scalai"]["status"] for c in nb["cells"] if c["cell_type"] == "code"
    ] == cells(run, "bad")
    assert nb["cells"][2]["outputs"][0]["text"] == "before\n"
    check_resumes(project)


def check_resumes(project):
    "With the fault mended, the next run takes `good` from the cache and completes"
    project.bad()
    again = project.said("run", "toy")
    assert again.returncode == 0, again.stdout + again.stderr
    assert statuses(project.show()) == {
        "good": ("cached", None),
        "bad": ("completed", None),
        "after": ("completed", None),
    }


def test_a_kernel_that_is_killed(project):
    project.bad("import os, time; print(f'pid {os.getpid()}.', flush=True); time.sleep(60)")
    process = project.start("run", "toy")
    os.kill(int(re.search(r"pid (\d+)\.", project.wait_for(".", "01_bad"))[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    check_failed(
        project,
        subprocess.CompletedProcess((), process.returncode, out, err),
        "kernel_crash",
        "SIGKILL",
    )


def test_a_cell_over_its_time_limit(project):
    project.bad("import time; time.sleep(60)")
    check_failed(
        project,
        project.said("run", "toy", SCALAI_CELL_TIMEOUT="5s"),
        "cell_timeout",
        "longer than its limit",
    )


def test_a_cell_over_its_memory_limit(project):
    project.bad("x = bytearray(3_000_000_000)")
    check_failed(
        project, project.said("run", "toy", SCALAI_MEMORY="2GB"), "kernel_oom", "MemoryError"
    )


@pytest.mark.parametrize("ask", ["x.compute()", "np.asarray(x)", "dask.compute([x])"])
def test_what_would_not_fit_is_stopped_before_it_is_brought(project, ask):
    "Native code that meets the limit first may crash, and then nobody learns why"
    project.bad(f"import dask, dask.array as da, numpy as np; x = da.zeros(10**12); {ask}")
    done = project.said("run", "toy", SCALAI_MEMORY="2GB")
    check_failed(project, done, "kernel_oom", "TooLarge: .* nothing was computed")


def test_a_group_of_processes_over_the_memory_limit(project):
    hungry = (
        "import time; x = bytearray(1_100_000_000); x[::4096] = b'1' * len(x[::4096]); "
        "time.sleep(30)"
    )
    project.bad(
        "import subprocess, sys\n"
        f"ps = [subprocess.Popen([sys.executable, '-c', {hungry!r}]) for _ in range(2)]\n"
        "[p.wait() for p in ps]"
    )
    check_failed(
        project,
        project.said("run", "toy", SCALAI_MEMORY="2GB"),
        "kernel_oom",
        r"at most 2\.00 GB; raise memory",
    )


def test_an_error_in_a_cell(project):
    project.bad("1/0")
    check_failed(project, project.said("run", "toy"), "cell_error", "cell 4: ZeroDivisionError")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_cancelled_in_mid_cell(project, signum):
    project.bad(
        "import os, subprocess, time; child = subprocess.Popen(['sleep', '60']); "
        "print(f'pids {os.getpid()} {child.pid}.', flush=True); time.sleep(60)"
    )
    process = project.start("run", "toy")
    pids = [
        int(p) for p in re.search(r"pids (\d+) (\d+)\.", project.wait_for(".", "01_bad")).groups()
    ]
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "cancelled" in out, out + err
    assert all(gone(p) for p in pids)
    run = project.show()
    assert (
        run["status"] == "cancelled"
        and statuses(run)["bad"] == ("cancelled", "cancelled")
        and statuses(run)["after"] == ("not_run", None)
    )
    assert cells(run, "bad") == ["completed", "completed", "cancelled", "not_run"]
    check_resumes(project)


def test_cancelled_though_the_cell_will_not_listen(project):
    project.bad(
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "print('deaf.', flush=True)\n"
        "while True: time.sleep(1)"
    )
    process = project.start("run", "toy")
    project.wait_for("deaf.", "01_bad")
    assert project.said("cancel").stdout.strip().endswith("cancelled")
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert cells(project.show(), "bad") == ["completed", "completed", "cancelled", "not_run"]


def test_a_run_over_its_time_limit(project):
    project.bad("import time; time.sleep(60)")
    check_failed(
        project,
        project.said("run", "toy", SCALAI_RUN_TIMEOUT="8s"),
        "run_timeout",
        "run_timeout in settings.ini",
    )


def test_a_runner_that_is_killed_takes_its_kernels_along(project):
    project.bad(
        "import os, subprocess, time; child = subprocess.Popen(['sleep', '60']); "
        "print(f'pids {os.getpid()} {child.pid}.', flush=True); time.sleep(60)"
    )
    process = project.start("run", "toy")
    pids = [
        int(p) for p in re.search(r"pids (\d+) (\d+)\.", project.wait_for(".", "01_bad")).groups()
    ]
    process.kill()
    process.communicate()
    assert all(gone(p) for p in pids)
    run = project.show()
    assert run["status"] == "lost" and statuses(run) == {
        "good": ("completed", None),
        "bad": ("lost", None),
        "after": ("not_run", None),
    }
    assert cells(run, "bad") == ["completed", "completed", "lost", "not_run"]
    assert "before" in project.said("show", "latest", "bad").stdout
    assert project.said("report").returncode == 0
    check_resumes(project)


DISK = 6  # MB of `small_disk`


def test_a_full_disk_under_the_run_records(project, small_disk):
    project.bad("for i in range(100): print('x' * 200_000)")
    done = project.said("run", "toy", SCALAI_RUNS=str(small_disk))
    assert (
        done.returncode == 1 and "disk_full" in done.stdout and "no space was left" in done.stdout
    ), done.stdout + done.stderr
    run = json.loads(project.said("show", "--json", SCALAI_RUNS=str(small_disk)).stdout)
    assert run["status"] == "failed" and statuses(run)["bad"] == ("failed", "disk_full")
    assert cells(run, "bad") == ["completed", "completed", "failed", "not_run"]
    assert "before" in project.said("show", "latest", "bad", SCALAI_RUNS=str(small_disk)).stdout


def test_a_full_disk_under_the_lake(project, small_disk):
    project.bad(
        "import numpy as np, xarray as xr\nfrom scalai_nb.pipeline import write\n"
        "write(b, xr.Dataset("
        "{'x': ('row', np.random.default_rng(0).integers(0, 2**62, 2_000_000))}))"
    )
    done = project.said("run", "toy", SCALAI_LAKE=str(small_disk))
    assert done.returncode == 1 and statuses(project.show())["bad"] == ("failed", "disk_full"), (
        done.stdout + done.stderr
    )
    assert (
        project.said("lake", "ls", "--json", SCALAI_LAKE=str(small_disk)).stdout.count('"name"')
        == 1
    )


# --- the fork server by itself


@pytest.fixture
def forks(monkeypatch):
    monkeypatch.setenv("LEFT", "by the server")
    with ForkServer() as server:
        yield server


def test_the_fork_server_has_a_session_of_its_own(forks):
    "Ctrl-C in the terminal of the run is for the runner to decide about"
    assert os.getsid(forks.pid) == forks.pid != os.getsid(0)


def test_a_process_has_the_variables_that_it_was_given_and_no_others(forks, tmp_path):
    child = forks.spawn(["/usr/bin/env"], {"GIVEN": "1"}, log=tmp_path / "log")
    assert child.ended.result(timeout=20).status == 0
    names = {line.partition("=")[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert "GIVEN" in names and not names & {"LEFT", "HOME", "PATH"}


def test_a_process_is_signalled(forks):
    child = forks.spawn(["/bin/sleep", "60"], {})
    child.signal(signal.SIGTERM)
    assert child.ended.result(timeout=20).status == -signal.SIGTERM


def test_a_run_says_which_commit_it_ran(project):
    git = ["git", "-C", str(project.root), "-c", "user.name=a", "-c", "user.email=a@b"]
    env = environment("laptop", settings=project.root / "settings.ini")
    assert about(env)["code"] is None
    for words in (["init", "-q"], ["add", "settings.ini"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    assert about(env)["code"] == commit.stdout.strip()
    (project.root / "settings.ini").write_text("[laptop]\n")
    assert about(env)["code"] == commit.stdout.strip() + "+changes"


@pytest.mark.parametrize("name", ["lake", "models", "runs"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_run(project, name):
    done = project.said("run", "toy", **{f"SCALAI_{name.upper()}": "/proc/nothing"})
    assert done.returncode == 2 and f"{name} = /proc/nothing cannot be written" in done.stderr
