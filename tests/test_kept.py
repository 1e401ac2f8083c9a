"""A failed step's kernel that is kept: asked by another process, and gone when its time is over"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from toy import Project, gone

FAILS = "prices = [3, 4]\nprint('half way')", "prices[2]"


@pytest.fixture
def settings(request):
    return getattr(request, "param", "")


@pytest.fixture
def project(tmp_path, settings):
    made = Project(tmp_path, f"cluster = none\ntrackers = none\n{settings}")
    made.step("01_ingest", "months: int = 2", "print(months)")
    made.step("02_train", "depth: int = 4", *FAILS)
    yield made
    made.said("cancel")


def kept(project):
    "The event that tells of the kernel, once it is there"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in project.root.glob(".scalai/runs/toy-*/events.jsonl"):
            for line in path.read_text().splitlines():
                if line.endswith("}") and '"kernel_kept"' in line:
                    return json.loads(line)
        time.sleep(0.05)
    raise AssertionError("no kernel was kept")


def forks(pid):
    "Process id of the fork server that keeps a kernel"
    return psutil.Process(pid).ppid()


def test_a_failed_step_is_attached_to_and_ended(project):
    done = project.scalai("run", "toy", "--keep-kernel")
    assert done.returncode == 1 and "scalai attach toy-" in done.stdout, done.stderr
    event = kept(project)
    file = Path(event["connection_file"])
    assert 3500 < event["until"] - time.time() < 3600
    assert file.stat().st_mode & 0o77 == 0 and file.parent.stat().st_mode & 0o77 == 0
    assert "kernel kept until" in project.said("show").stdout

    asked = project.scalai("attach", "latest", "train", "--code", "print('them:', prices); depth")
    assert (asked.returncode, asked.stdout) == (0, "them: [3, 4]\n4\n")
    again = project.said("attach", "--code", "prices.append(5)\nimport os; os.system('true')")
    assert (again.returncode, again.stdout) == (0, "0\n")
    assert project.said("attach", "-c", "prices[2]").stdout == "5\n"
    wrong = project.said("attach", "-c", "prices[9]")
    assert wrong.returncode == 1 and "IndexError" in wrong.stderr

    server = forks(event["pid"])
    assert "the kernel of train has ended" in project.said("cancel").stdout
    assert gone(event["pid"]) and gone(server) and not file.parent.exists()
    over = project.said("attach")
    assert (
        over.returncode == 2
        and "has ended before, for want of memory or by somebody; run it again" in over.stderr
    )
    assert "kernel kept" not in project.said("show").stdout


def test_a_prompt_reads_cells_and_leaves_the_kernel_alone(project):
    project.scalai("run", "toy", "--keep-kernel", "5min")
    asked = subprocess.run(
        [sys.executable, "-m", "scalai_nb", "attach"],
        input="for p in prices:\n    print('one of', p)\n\nexit\n",
        cwd=project.root,
        env=project.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "--existing" in asked.stdout and "one of 4" in asked.stdout, asked.stderr
    # nor does one that sends `exit` to the kernel, as Jupyter's console does
    assert project.said("attach", "-c", "exit").returncode == 0
    assert project.said("attach", "-c", "sum(prices)").stdout == "7\n"


def test_it_ends_by_itself_with_all_that_it_started(project):
    child = "import subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid)"
    project.step("02_train", "depth: int = 4", child, "1 / 0")
    process = project.start("run", "toy", "--keep-kernel", "4s")
    event = kept(project)
    server = forks(event["pid"])
    sleeper = int(project.wait_for("\n", "02_train"))
    process.communicate(timeout=60)
    assert gone(event["pid"], 30) and gone(sleeper) and gone(server)
    assert not Path(event["connection_file"]).parent.exists()
    assert time.time() < event["until"] + 20


def test_a_runner_that_is_killed_leaves_it_for_its_time_only(project):
    project.step("03_slow", "n: int = 1", "import time; print('slow'); time.sleep(600)")
    process = project.start("run", "toy", "--jobs", "2", "--keep-kernel", "6s")
    project.wait_for("half way")
    event = kept(project)
    project.wait_for("slow")
    server = psutil.Process(forks(event["pid"]))
    others = {c.pid for c in server.children()} - {event["pid"]}
    assert len(others) == 1
    process.kill()
    process.communicate()  # ends: nothing that lives on holds its output
    assert all(map(gone, others))
    assert project.said("attach", "-c", "prices").stdout == "[3, 4]\n"
    assert gone(event["pid"], 30) and gone(server.pid)
    assert not Path(event["connection_file"]).parent.exists()


@pytest.mark.parametrize("settings", ["memory = 600MB\n"], indirect=True)
def test_a_group_that_takes_too_much_memory_is_ended(project):
    project.scalai("run", "toy", "--keep-kernel")
    event = kept(project)
    hungry = "import sys, subprocess; subprocess.Popen([sys.executable, '-c', "
    hungry += "'import time; x = bytearray(500_000_000); time.sleep(60)'])"
    for _ in range(2):
        project.said("attach", "-c", hungry)
    assert gone(event["pid"], 30)


def test_a_fork_server_that_is_killed_takes_it_along(project):
    project.scalai("run", "toy", "--keep-kernel")
    event = kept(project)
    os.kill(forks(event["pid"]), signal.SIGKILL)
    assert gone(event["pid"])
    assert "has ended" in project.said("attach").stderr


def test_without_the_word_nothing_is_kept_and_a_wrong_time_is_one_sentence(project):
    assert "kernel kept" not in project.said("run", "toy").stdout
    asked = project.said("attach")
    assert asked.returncode == 2 and "the next run keeps" in asked.stderr
    wrong = project.said("run", "toy", "--keep-kernel", "2x")
    assert wrong.returncode == 2 and "--keep-kernel 2x is no time" in wrong.stderr


@pytest.mark.parametrize("settings", ["cell_timeout = 2s\n"], indirect=True)
def test_a_step_that_was_interrupted_for_its_time_is_kept_and_answers(project):
    project.step("02_train", "n: int = 1", "prices = [3]", "while True: prices.append(1)")
    project.scalai("run", "toy", "--keep-kernel")
    asked = project.said("attach", "-c", "prices[:2]")
    assert asked.stdout == "[3, 1]\n", asked.stderr


def test_a_step_that_left_something_undone_is_kept_too_and_one_that_did_not_is_not(project):
    out = "from scalai_nb.pipeline import Out\nteas: Out = 'teas'"
    project.step("02_train", out, "prices = [3, 4]", "import sys; sys.exit(0)")
    assert "was not written" in project.scalai("run", "toy", "--keep-kernel").stdout
    assert [kept(project)["step"]] == ["train"]
    assert project.said("attach", "-c", "sum(prices)").stdout == "7\n"
    project.said("cancel")
    (project.root / "pipelines/toy/02_train.ipynb").unlink()
    project.scalai("run", "toy", "--keep-kernel", "--force")
    assert "No kernel of" in project.said("attach").stderr


def test_it_ends_with_its_project(project):
    project.scalai("run", "toy", "--keep-kernel")
    event = kept(project)
    shutil.rmtree(project.root / "pipelines")
    assert gone(event["pid"])
