"""A lock is one owner's at a time, however its process ends; a file is whole or as before."""

import subprocess
import sys
import threading
import time

import pytest

from scalai_nb.errors import Conflict, Locked, PathError
from scalai_nb.files import file_lock, is_locked, owned, replacing

HOLD = """
import sys, time
from pathlib import Path
from scalai_nb.files import owned
with owned(Path(sys.argv[1]), "run-1"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    "A process that holds a lock, and the lock's file"
    path = tmp_path / "locks" / "flights.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process, path
        process.kill()


def test_another_is_told_who_has_it(holder):
    _, path = holder
    assert is_locked(path)
    with pytest.raises(Locked, match="flights.lock is locked by run-1") as refused, owned(path):
        pass
    assert refused.value.owner == "run-1"
    with pytest.raises(Conflict, match="^run-1 has been writing 'flights' for more than 0.1 s"):
        with file_lock(path, 0.1):
            pass


def test_it_is_free_when_its_process_is_killed(holder):
    process, path = holder
    process.kill()
    process.wait()
    assert not is_locked(path)
    with owned(path, "run-2"):
        assert path.read_text() == "run-2"


def test_who_waits_gets_it(tmp_path):
    path, order = tmp_path / "a.lock", []

    def wait():
        with owned(path, "second", timeout=float("inf")):
            order.append("second")

    with owned(path, "first"):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and not is_locked(path)


def test_an_error_inside_is_left_as_it_is_and_the_lock_is_free(tmp_path):
    path = tmp_path / "a.lock"
    with pytest.raises(Locked, match="^another lock$"), file_lock(path, 0):
        raise Locked("another lock")
    assert not is_locked(path)


def test_to_ask_makes_no_file(tmp_path):
    assert not is_locked(tmp_path / "a.lock") and not list(tmp_path.iterdir())


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "report"
    for content in (b"old", b"new"):
        with replacing(path) as file:
            file.write(content)
    with pytest.raises(ValueError), replacing(path) as file:
        file.write(b"half")
        raise ValueError
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("place", ["", "nowhere/file", "file/inside"])
def test_a_file_that_cannot_be_made_there_says_what_to_do(tmp_path, place):
    (tmp_path / "file").write_text("before")
    with pytest.raises(PathError, match="name a file"), replacing(tmp_path / place) as file:
        file.write(b"after")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
