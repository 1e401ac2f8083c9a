"What a lake in a bucket promises: all that one in a folder does, for many writers on many machines"

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import xarray as xr
import zarr
from conftest import ROOT, tool
from test_retention import check_expiry, contents, files, table
from killing import DEADLY
from toy import Project

from buckets import Line, s3_server, variables
import scalai_nb as sn
from scalai_nb.data.lake import quarantine, repository, storage
from scalai_nb.data.lake.repository import opened
from scalai_nb.data.lake.upkeep import retention
from scalai_nb.data.lake.upkeep.expiry import expire, sizes
from scalai_nb.data.lake.upkeep.replica import bytes_in
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import Conflict, DatasetNotFound, LakeAway, LakeError, Locked

pytest.importorskip("obstore")
CAMPAIGN = [pytest.mark.campaign, pytest.mark.slow]


@pytest.fixture(scope="module")
def server():
    with s3_server(tool("moto")) as port:
        yield port


@pytest.fixture
def lake(server, monkeypatch, request):
    for name, value in variables(server).items():
        monkeypatch.setenv(name, value)
    return Lake(f"s3://lake/{request.node.name}", author="ada")


def rows(n: int, start: int = 0) -> xr.Dataset:
    i = np.arange(start, start + n)
    return xr.Dataset({"id": ("row", i), "name": ("row", np.array([f"n{k}" for k in i]))})


def ids(lake: Lake, version=None) -> list[int]:
    return lake.read("sales", version).id.values.tolist()


def test_what_a_lake_does_it_does_in_a_bucket(lake):
    assert lake.names() == []
    first = lake.write("sales", rows(5), state={"page": 1})
    lake.append("sales", rows(3, 5))
    lake.tag("sales", "gold", first)
    assert ids(lake) == list(range(8)) and ids(lake, "gold") == list(range(5))
    lake.upsert("sales", rows(2, 7), key="id")
    assert lake.state("sales") == {"page": 1} and len(ids(lake)) == 9
    lake.write("sales", rows(1), branch="try")
    assert len(ids(lake)) == 9
    lake.publish("sales", "try")
    assert ids(lake) == [0] and "try" not in str(lake.log("sales"))
    lake.restore("sales", "gold")
    assert ids(lake) == list(range(5)) and len(lake.log("sales")) == 5
    assert lake.diff("sales", "gold").columns == {} and lake.absent("sales") == []
    assert lake.verify("sales") == []
    lazy = pickle.loads(pickle.dumps(lake.read("sales")))
    assert lazy.id.values.tolist() == list(range(5))
    assert Lake(str(lake.path)).names() == ["sales"]


def test_a_copy_goes_into_a_bucket_and_comes_back(lake, tmp_path):
    here, back = Lake(tmp_path / "here"), Lake(tmp_path / "back")
    here.write("sales", rows(5), state={"page": 1})
    here.append("sales", rows(3, 5))
    here.tag("sales", "gold")
    (copied,) = here.copy(lake.path)
    assert copied.versions == 2 and here.copy(lake.path)[0].files == 0
    assert lake.log("sales") == here.log("sales") and ids(lake, "gold") == list(range(8))
    lake.copy(back.path)
    assert back.state("sales") == {"page": 1} and back.log("sales") == here.log("sales")
    assert back.verify("sales") == []


def test_a_copy_out_of_a_bucket_may_have_only_what_is_newer(lake, tmp_path):
    v = [lake.write("a", table(n)) for n in range(4)]
    lake.tag("a", "gold", v[0])
    before, short = files(lake), Lake(tmp_path)
    said = lake.copy(short.path, since=v[1], dry_run=True)
    assert not (tmp_path / "a").exists() and lake.copy(short.path, since=v[1]) == said
    assert said[0].versions == 3 and files(lake) == before
    assert [x.id for x in short.log("a")] == [v[3].id, v[2].id, v[0].id]
    kept = [v[0].id, v[2].id, v[3].id]
    assert contents(short, kept) == contents(lake, kept) and short.verify("a") == []


def test_a_bit_that_flips_in_a_bucket_is_found(lake):
    lake.write("sales", rows(5))
    chunk = next((lake.path / "sales" / "chunks").iterdir())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    assert any(f.bad for f in lake.verify("sales"))


@pytest.fixture
def ripe_at_once(monkeypatch):
    "What is in the bucket need not lie there for an hour before it goes"
    monkeypatch.setattr(retention, "GRACE", timedelta(0))


@pytest.mark.usefixtures("ripe_at_once")
def test_what_the_dead_leave_is_removed(lake):
    lake.write("sales", rows(5))
    lake.write("sales", rows(9), branch="dead")
    lake.write("never", rows(9), branch="dead")
    assert sizes(lake)[0].rows == 5
    of_dead = {"dead": lambda branch: branch == "dead"}
    said = expire(lake, names=["sales"], **of_dead)
    assert expire(lake, names=["sales"], dry_run=False, **of_dead) == said
    assert [f.what for f in said] == ["branch", "records and chunks"]
    expire(lake, dry_run=False, **of_dead)
    assert bytes_in(lake.path / "never") < 2_000 and lake.names() == ["sales"]
    lake.write("never", rows(2))
    assert ids(lake) == list(range(5)) and lake.verify("sales") == lake.verify("never") == []
    with pytest.raises(DatasetNotFound, match="Did you mean 'sales'"):
        expire(lake, names=["sale"])


@pytest.mark.usefixtures("ripe_at_once")
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=CAMPAIGN) for s in range(1, 6))])
def test_an_expiry_keeps_in_a_bucket_what_it_keeps_on_a_disk(lake, seed):
    rng = random.Random(seed)
    check_expiry(lake, rng, keep=2, writes=6)


def test_what_is_young_stays_in_a_bucket(lake):
    for n in range(3):
        lake.write("a", table(n))
    lake.write("a", table(9), branch="side")
    lake.drop("a", "side")
    before = files(lake)
    assert lake.expire("a", 1, (), dry_run=False) == [] == expire(lake, dry_run=False)
    assert files(lake) == before and len(lake.log("a")) == 3


@pytest.mark.usefixtures("ripe_at_once")
def test_who_commits_during_an_expiry_loses_nothing(lake, monkeypatch):
    "Its lock is lost, and what it commits was written before the expiry began"
    v = [lake.write("a", table(n)) for n in range(3)]
    time.sleep(1.1)  # a bucket counts in seconds
    young = datetime.now(UTC).replace(microsecond=0) - timedelta(milliseconds=50)
    monkeypatch.setattr(retention, "ripe", lambda folder: young)
    session = opened(lake.path / "a").writable_session("main")
    zarr.open_group(session.store).create_array("late", data=np.random.rand(10**4))
    make = retention._Cut.make

    def make_meanwhile(cut, repo):
        make(cut, repo)
        if "S3" in str(repo.storage):
            session.commit("late", {"rows": 3000, "author": "eve", "parent": v[2].id})

    monkeypatch.setattr(retention._Cut, "make", make_meanwhile)
    (gone,) = lake.expire("a", 1, (), dry_run=False)
    assert gone.versions == (v[0].id, v[1].id)
    assert [x.message for x in lake.log("a")] == ["late", v[2].message]
    assert lake.absent("a") == [] and lake.absent("a", v[2]) == []


KILLED = f"""{DEADLY}
from datetime import timedelta
from icechunk import Repository
from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.lake.storage import BucketPath
from scalai_nb.data.lake.upkeep import retention

def here(owner, *args):
    "Whether a call changes the bucket, not the replica"
    return isinstance(owner, BucketPath) or "s3" in str(owner.storage)

for name in ("create_branch", "delete_branch", "expire_snapshots", "garbage_collect"):
    deadly(Repository, name, here)
for name in ("write_bytes", "unlink"):
    deadly(BucketPath, name, here)
retention.GRACE = timedelta(0)
lake, left, *named = sys.argv[1:]
left = int(left)
Lake(lake).expire("a", 2, named, dry_run=False)
print(left)
"""


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=CAMPAIGN)])
def test_an_expiry_killed_in_a_bucket_loses_nothing_and_the_next_ends_it(
    lake, tmp_path, monkeypatch, every
):
    monkeypatch.setattr(storage, "LEASE", 0.5)
    monkeypatch.setattr(retention, "GRACE", timedelta(0))
    template = Lake(tmp_path)
    v = [template.write("a", table(n, 20_000)).id for n in range(6)]
    template.tag("a", "old", v[0])
    template.write("a", table(99), branch="side")
    named, stay = v[2:3], [v[0], v[2], *v[4:], "side"]
    expected, size = contents(template, stay), bytes_in(tmp_path / "a")
    for step in range(2, 400, every):
        there = Lake(f"{lake.path}/{step}")
        template.copy(there.path)
        with python(KILLED, there.path, step, *named) as process:
            said = process.communicate(timeout=120)[0]
        assert process.returncode in (0, -signal.SIGKILL), step
        assert contents(there, stay) == expected and there.verify("a") == [], step
        there.expire("a", 2, named, dry_run=False)
        assert contents(there, stay) == expected and there.verify("a") == [], step
        assert {x.id for x in there.log("a")} == {*stay} - {"side"}, step
        assert bytes_in(there.path / "a") < size, step
        if said:
            break
    assert said and step > 9


WRITER = """
import sys, numpy as np, xarray as xr
from scalai_nb.data.lake.lake import Lake
lake, me = Lake(sys.argv[1]), int(sys.argv[2])
for k in range(int(sys.argv[3])):
    lake.append("sales", xr.Dataset({"id": ("row", np.array([me * 1000 + k]))}))
    print(me * 1000 + k, flush=True)
"""


def python(script: str, *words: object, **variables: str) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, words)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, cwd=ROOT, env=os.environ | variables)


def test_every_commit_of_four_writers_is_there(lake):
    lake.write("sales", xr.Dataset({"id": ("row", np.array([-1]))}))
    writers = [python(WRITER, lake.path, me, 4) for me in range(4)]
    said = [int(line) for w in writers for line in w.communicate(timeout=120)[0].split()]
    assert len(said) == 16
    assert sorted(ids(lake)) == [-1, *sorted(said)] and len(lake.log("sales")) == 17


HOLDER = """
import sys, time
from scalai_nb.data.lake.lake import Lake
with Lake(sys.argv[1]).lock("sales"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_the_dead_is_free_and_that_of_the_living_is_not(lake, monkeypatch):
    lake.write("sales", rows(1))
    lake.lock_timeout = 0.3
    with python(HOLDER, lake.path) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Locked, match="has been writing 'sales' for more than 0.3 s"):
            lake.append("sales", rows(1, 1))
        os.kill(holder.pid, signal.SIGKILL)
    monkeypatch.setattr(storage, "LEASE", 0.5)
    lake.lock_timeout = 30
    lake.append("sales", rows(1, 1))
    assert ids(lake) == [0, 1]


def test_who_has_lost_the_lock_commits_nothing(lake):
    lake.write("sales", rows(1))
    with lake.lock("sales") as check:
        check.__self__.lost = True
        with pytest.raises(Conflict, match="another writes 'sales'; nothing was published"):
            lake.append("sales", rows(1, 1))
    assert len(lake.log("sales")) == 1


SLEEPER = """
import sys
import zarr
from scalai_nb.data.lake import quarantine, repository, storage
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import Conflict
storage.LEASE = 0.5
with Lake(sys.argv[1]).lock("sales") as check:
    session = Lake(sys.argv[1])._settled("sales").writable_session("main")
    zarr.open_group(session.store).attrs["mine"] = True
    check()
    print("held", flush=True)
    sys.stdin.readline()
    try:
        check()
    except Conflict as e:
        print(e, flush=True)
    try:
        session.commit("late")
    except Exception as e:
        print(type(e).__name__, flush=True)
"""


def test_who_slept_too_long_is_told_and_commits_nothing(lake, monkeypatch):
    monkeypatch.setattr(storage, "LEASE", 0.5)
    lake.write("sales", rows(1))
    with python(SLEEPER, lake.path) as sleeper:
        assert sleeper.stdout.readline() == "held\n"
        os.kill(sleeper.pid, signal.SIGSTOP)
        lake.append("sales", rows(1, 1))
        os.kill(sleeper.pid, signal.SIGCONT)
        time.sleep(1)
        said = sleeper.communicate("\n", timeout=30)[0].splitlines()
    assert "gave no sign of life for 0.5 s, and another writes 'sales'" in said[0]
    assert said[1] == "ConflictError" and ids(lake) == [0, 1]


APPENDER = """
import sys, numpy as np, xarray as xr
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import LakeError
lake = Lake(sys.argv[1])
ds = xr.Dataset({c: ("row", np.random.default_rng(0).random(300_000)) for c in "abcd"})
print("begin", flush=True)
try:
    print(lake.write("sales", ds).id)
except LakeError as e:
    print("refused", e)
"""


ASKING = {
    "version": lambda lake: lake.version("sales"),
    "log": lambda lake: lake.log("sales"),
    "attrs": lambda lake: lake.attrs("sales"),
    "state": lambda lake: lake.state("sales"),
    "read": ids,
    "names": lambda lake: lake.names(),
    "write": lambda lake: lake.write("sales", rows(3)),
    "append": lambda lake: lake.append("sales", rows(2)),
    "upsert": lambda lake: lake.upsert("sales", rows(2), "id"),
    "tag": lambda lake: lake.tag("sales", f"t{time.monotonic_ns()}"),
    "compact": lambda lake: lake.compact("sales"),
    "sizes": sizes,
    "verify": lambda lake: lake.verify("sales"),
    "expire": lambda lake: expire(lake, retention.Keep(versions=1), dry_run=True),
}


@pytest.mark.parametrize("operation", ASKING)
def test_whatever_question_the_bucket_does_not_answer_is_one_sentence(lake, monkeypatch, operation):
    "Each question in turn: the operation says so, or goes on; the contract stays"
    from obstore.exceptions import GenericError

    lake.write("sales", rows(3), contract=sn.Contract.infer(rows(3)), on_breach="reject")
    monkeypatch.setattr(storage, "LEASE", 1.0)  # of a lock whose holder could not say that it ends
    whole, asked, silent = storage._bucket, 0, 0

    class Bucket:
        def __init__(self, *place):
            self.bucket = whole(*place)

        def __getattr__(self, method):
            nonlocal asked
            asked += 1
            if asked == silent:
                raise GenericError("a reset of the line\nand more")
            return getattr(self.bucket, method)

    told = set()
    with monkeypatch.context() as patched:
        patched.setattr(storage, "_bucket", Bucket)
        while asked >= silent:
            asked, silent = 0, silent + 1
            try:
                ASKING[operation](lake)
            except LakeError as e:
                told.add(str(e))
    assert all("a reset of the line" in said and "\n" not in said for said in told)
    assert lake.attrs("sales")["on_breach"] == "reject"


class Forbids(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(403)

    do_HEAD = do_GET

    def log_message(self, *said):
        "Say nothing"


def test_a_contract_stays_where_icechunk_alone_is_refused(lake, monkeypatch):
    "What is there is not known for a moment: it is not taken for damaged, which may be replaced"
    lake.write("sales", rows(3), contract=sn.Contract.infer(rows(3)), on_breach="reject")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbids)
    Thread(target=server.serve_forever, daemon=True).start()
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        forbidden = storage.storage(lake.path / "sales")
    attrs = quarantine._attrs

    def refused(*words):
        with monkeypatch.context() as away:
            away.setattr(repository, "storage", lambda folder: forbidden)
            return attrs(*words)

    monkeypatch.setattr(quarantine, "_attrs", refused)
    with (
        server,
        pytest.raises(LakeAway, match="refused: .*`scalai doctor` says whether it answers"),
    ):
        lake.write("sales", rows(3).drop_vars("name"))
    server.shutdown()
    assert lake.attrs("sales")["on_breach"] == "reject"
    (lake.path / "sales" / "snapshots" / lake.version("sales").id).unlink()
    with pytest.raises(LakeError, match="damaged") as gone:
        lake.attrs("sales")
    assert not isinstance(gone.value, LakeAway)


def test_a_line_that_is_cut_in_a_write_leaves_the_last_version(lake, server, monkeypatch):
    monkeypatch.setattr(storage, "LEASE", 0.5)
    lake.write("sales", rows(3))
    refused = 0
    for seconds in (0.2, 0.8):
        line, last = Line(server), lake.version("sales").id
        through = f"http://127.0.0.1:{line.port}"
        with python(APPENDER, lake.path, AWS_ENDPOINT_URL=through) as writer:
            assert writer.stdout.readline() == "begin\n"
            time.sleep(seconds)
            line.sever()
            said = writer.communicate(timeout=120)[0]
        refused += said.startswith("refused")
        assert "refused The lake in s3://lake" in said or lake.version("sales").id in said
        assert "the-key-of-tests" not in said
        assert lake.version("sales").id == last or lake.version("sales").rows == 300_000
        assert [f for f in lake.verify("sales") if f.bad] == []
    assert refused
    lake.write("sales", rows(4))
    assert ids(lake) == list(range(4))


def test_a_pipeline_runs_on_a_bucket(lake, tmp_path):
    project = Project(tmp_path, f"cluster = none\ntrackers = none\nlake = {lake.path}\n")
    declared = "from scalai_nb.pipeline import In, Out\n"
    written = "import xarray as xr\nfrom scalai_nb.pipeline import read, write\n"
    project.step(
        "00_a",
        f'{declared}x: Out = "x"',
        f"{written}write(x, xr.Dataset({{'n': ('row', [1, 2])}}))",
    )
    project.step("01_b", f'{declared}x: In = "x"\ny: Out = "y"', f"{written}write(y, read(x) + 1)")
    first = project.said("run", "toy")
    assert first.returncode == 0, first.stderr
    assert lake.read("y").n.values.tolist() == [2, 3]
    again = project.said("run", "toy")
    assert again.returncode == 0 and "cached" in again.stdout
    assert project.said("lake", "ls").stdout.count("\n") >= 2
    told = project.said("lake", "log", "x", "--lineage").stdout
    assert "← a, in toy-" in told and "→ b to y@" in told
    found = json.loads(project.said("doctor", "--json").stdout)
    assert [(c["ok"], c["found"]) for c in found if c["name"] == "lake"] == [
        (True, f"{lake.path}, 2 datasets")
    ]
    assert not list(tmp_path.glob("s3:*"))


def test_an_address_that_is_wrong_is_named(server, monkeypatch):
    for name, value in variables(server).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LakeError, match="accepted: a folder, or s3://BUCKET/PREFIX"):
        Lake("gs://bucket/prefix")
    with pytest.raises(LakeError, match="nobody"):
        Lake("s3://nobody/prefix").write("sales", rows(1))
