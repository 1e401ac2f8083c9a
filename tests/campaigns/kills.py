"""Kill what a run consists of, at random instants: `python tests/campaigns/kills.py`

Each try starts a run of a small pipeline and kills one of its processes with SIGKILL: the runner,
the fork server, a kernel, a process that a cell has started (some in a session of their own), the
sender of records, or one of two Dask workers. Then no process is left, no traceback of ours was
printed, the record says what happened, and the next run ends with the data of an undisturbed one.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from toy import Project

MARK = "SCALAI_KILLS_TRY"  # variable that all processes of a try inherit
KINDS = ("runner", "fork server", "kernel", "child", "sender", "worker")
CONTRACT = "from scalai_nb.pipeline import In, Out\n"
DATA = (
    "import numpy as np, xarray as xr\n"
    "from scalai_nb.pipeline import read, write\n"
    "write({0}, xr.Dataset({{'x': ('row', np.arange(1000) * {1})}}))"
)
CHILDREN = (
    "import subprocess, time\n"
    "quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
    "subprocess.Popen(['sleep', '300'], **quiet)\n"
    "subprocess.Popen(['sleep', '300'], start_new_session=True, **quiet)\n"
    "subprocess.run(['sh', '-c', 'sleep 300 & exit'], start_new_session=True, **quiet)\n"
    "time.sleep(0.4)"
)

ON_WORKERS = (
    "import time\n"
    "import scalai_nb as sn\n"
    "def slow(x):\n"
    "    time.sleep(0.1)\n"
    "    return x\n"
    "client = sn.connect()\n"
    "assert sum(client.gather(client.map(slow, range(20)))) == 190"
)


@dataclass
class Try:
    "What came of one kill"

    seed: int
    kind: str
    after: float  # seconds
    hit: bool = False  # whether there was such a process
    status: str = ""  # of the run, as its record says
    wrong: list[str] = field(default_factory=list)


def project(folder: Path, workers: bool = False) -> Project:
    "A pipeline whose steps start processes and write datasets; the last one may need workers"
    cluster = "cluster = local\nworkers = 2\n" if workers else "cluster = none\n"
    made = Project(folder, f"{cluster}trackers = mlflow\njobs = 2\n")
    made.step("00_a", CONTRACT + 'a: Out = "a"', CHILDREN, DATA.format("a", 2))
    made.step("01_b", CONTRACT + 'b: Out = "b"', CHILDREN, DATA.format("b", 3))
    reads = 'a: In = "a"\nb: In = "b"\nc: Out = "c"\nd: Out = "d"'
    write = DATA.format("c", 5) + "\n" + DATA.format("d", 7)
    work = ON_WORKERS if workers else "import time; time.sleep(0.2)"
    made.step("02_c", CONTRACT + reads, work, write)
    return made


def marked(mark: str) -> list[psutil.Process]:
    "The processes of a try"
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            pass
    return found


def kind_of(process: psutil.Process, runner: int) -> str:
    "What a process is of a run"
    if process.pid == runner:
        return "runner"
    try:
        words = " ".join(process.cmdline())
        parent = process.parent()
        if "forkserver import serve" in words:
            above = " ".join(parent.cmdline()) if parent else ""
            return "kernel" if "forkserver import serve" in above else "fork server"
        if "send_all" in words:
            return "sender"
        return "worker" if "spawn_main" in words else "child"
    except psutil.Error:
        return "gone"


def kill_one(kind: str, mark: str, runner: subprocess.Popen, rng: random.Random) -> bool:
    "Kill a process of this kind, if there is one by now"
    found = [p for p in marked(mark) if kind_of(p, runner.pid) == kind]
    if not found:
        return False
    try:
        os.kill(rng.choice(found).pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def left(mark: str, seconds: float = 8) -> list[str]:
    "Processes that are there after some seconds"
    deadline = time.monotonic() + seconds
    while found := marked(mark):
        if time.monotonic() > deadline:
            said = [f"{p.pid} {' '.join(p.cmdline())[:60]}" for p in found]
            for p in found:
                p.kill()
            return said
        time.sleep(0.05)
    return []


def attempt(seed: int, undisturbed: dict, kinds: tuple[str, ...] = KINDS) -> Try:
    "One run, one kill"
    rng = random.Random(seed)
    done = Try(seed, rng.choice(kinds), rng.uniform(0.05, 4.5))
    if done.kind == "worker":
        done.after += 2.5  # they start late
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        p = project(Path(folder), done.kind == "worker")
        mark = f"{os.getpid()}-{seed}"
        runner = p.start("run", "toy", "--plain", **{MARK: mark})
        end = time.monotonic() + done.after
        while time.monotonic() < end and runner.poll() is None:
            time.sleep(0.01)
        while not done.hit and runner.poll() is None:  # one of its kind comes later, perhaps
            done.hit = kill_one(done.kind, mark, runner, rng)
        try:
            out, err = runner.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            runner.kill()
            out, err = runner.communicate()
            done.wrong.append("the run hangs")
        done.wrong += [f"left: {line}" for line in left(mark)]
        if "Traceback" in out + err:
            done.wrong.append(f"traceback: {(out + err)[-600:]}")
        check_record(p, done)
        check_rerun(p, done, undisturbed)
    return done


def check_record(p: Project, done: Try) -> None:
    "What the record says of a run that was disturbed"
    shown = p.scalai("show", "--json")
    if "Traceback" in shown.stderr:
        done.wrong.append(f"show: {shown.stderr[-300:]}")
    elif shown.returncode == 0:
        record = json.loads(shown.stdout)
        done.status = record["status"]
        for step in record["steps"]:
            if step["status"] in ("pending", "running"):
                done.wrong.append(f"step {step['name']} is {step['status']} for ever")
            if step["status"] == "failed" and not step["error"]:
                done.wrong.append(f"step {step['name']} failed without a reason")


def check_rerun(p: Project, done: Try, undisturbed: dict) -> None:
    "The next run completes, with the data of an undisturbed one"
    again = p.scalai("run", "toy", "--json")
    if again.returncode or (found := data(p)) != undisturbed:
        told = again.stderr[-400:] if again.returncode else str(found)
        done.wrong.append(f"rerun: {again.returncode} {told}")


def data(p: Project) -> dict:
    "What the datasets of a project hold, and what else is in their folders"
    from scalai_nb.data.lake.lake import Lake

    lake = Lake(p.root / ".scalai/lake")
    return {name: int(lake.read(name)["x"].sum()) for name in sorted(lake.names())}


def campaign(tries: int, seed: int, kinds: tuple[str, ...] = KINDS) -> list[Try]:
    "So many kills; says how each ended as it goes"
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        calm = project(Path(folder))
        assert calm.scalai("run", "toy").returncode == 0
        undisturbed = data(calm)
    found = []
    for i in range(tries):
        done = attempt(seed + i, undisturbed, kinds)
        found.append(done)
        said = "; ".join(done.wrong) or "well"
        print(
            f"[{i + 1:3}/{tries}] {done.kind} at {done.after:.2f} s: {done.status}, {said}",
            flush=True,
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--kind", choices=KINDS, help="default: any")
    words = parser.parse_args()
    found = campaign(words.tries, words.seed, (words.kind,) if words.kind else KINDS)
    for kind in KINDS:
        of_kind = [t for t in found if t.kind == kind and t.hit]
        ended = Counter(t.status or "no record" for t in of_kind)
        wrong = sum(bool(t.wrong) for t in of_kind)
        print(f"{kind}: {len(of_kind)} killed, {dict(ended)}, {wrong} wrong")
    return int(any(t.wrong for t in found))


if __name__ == "__main__":
    sys.exit(main())
