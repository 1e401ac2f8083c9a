"""A consumer that is killed at random moments counts each record once; `scalai stream`"""

import json
import signal
import subprocess
import sys

import pytest
from streams import check_kills, numbered

from scalai_nb.data.lake.lake import Lake
from scalai_nb.data.streams.embedded import Log


def filled(path, partitions, n):
    for p in range(partitions):
        with Log(path, str(p), segment=2**20) as log:
            records = numbered(n, p)
            for start in range(0, n, 1000):
                log.append(records[start : start + 1000])
    return str(path)


def test_a_killed_consumer_counts_each_record_once(tmp_path):
    uri = filled(tmp_path / "log", 2, 50_000)
    fell = check_kills(uri, tmp_path / "lake", partitions=2, n=50_000, kills=9, rows=2000)
    assert min(fell[where] for where in ("before", "in", "after")) >= 1, fell


def test_a_killed_reduction_counts_each_record_once(tmp_path):
    uri, how = filled(tmp_path / "log", 2, 20_000), {"partitions": 2, "n": 20_000}
    lake = tmp_path / "lake"
    fell = check_kills(uri, lake, work="reduce", options=how, kills=6, rows=500, **how)
    assert min(fell[where] for where in ("before", "in", "after")) >= 1, fell


@pytest.mark.parametrize("work", ["land", "reduce"])
def test_positions_that_are_stored_before_the_rows_lose_some(work, tmp_path):
    n, uri = 10_000, filled(tmp_path / "log", 1, 10_000)
    how = {"work": work, "options": {"partitions": 1, "n": n} if work == "reduce" else {}}
    how |= {"partitions": 1, "n": n, "kills": 2, "rows": 500, "aims": ("in",), "bug": True}
    with pytest.raises(AssertionError, match="records are lost"):
        check_kills(uri, tmp_path / "lake", **how)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("work", ["land", "reduce"])
def test_campaign_a_million_records_and_fifty_kills(work, tmp_path):
    uri, each = filled(tmp_path / "log", 4, 250_000), {"partitions": 4, "n": 250_000}
    how = {"work": work, "options": each if work == "reduce" else {}, "kills": 50, "rows": 4000}
    fell = check_kills(uri, tmp_path / "lake", **each, **how)
    assert min(fell[where] for where in ("before", "in", "after")) >= 5, fell


def test_the_command_drains_and_commits_when_it_is_told_to_end(tmp_path):
    uri, lake, metrics = filled(tmp_path / "log", 2, 3000), tmp_path / "lake", tmp_path / "m.prom"
    (tmp_path / "settings.ini").write_text("[laptop]\nlake = lake\n")
    command = [sys.executable, "-m", "scalai_nb", "stream", f"log://{uri}", "numbers", "--json"]

    def run(*words):
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, *words], cwd=tmp_path, text=True, stdout=pipe)

    with run("--dry-run") as process:
        assert json.loads(process.communicate()[0])["rows"] == 6000
    assert not lake.exists()
    with run("--metrics", str(metrics)) as process:
        while not (metrics.exists() and "partition" in metrics.read_text()):  # a commit
            assert process.poll() is None
        with Log(uri, "1") as log:
            log.append(numbered(3001, 1)[3000:])
        process.send_signal(signal.SIGTERM)
        done = json.loads(process.communicate()[0])
    assert process.returncode == 0 and done["rows"] in (6000, 6001)
    assert f'partition="0",stream="{done["stream"]}"}} 0.0' in metrics.read_text()
    with run("--once") as process:
        done["rows"] += json.loads(process.communicate()[0])["rows"]
    assert done["rows"] == Lake(lake).version("numbers").rows == 6001
