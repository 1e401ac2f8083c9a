"""A watcher counts each row once, whoever kills it, and says what has moved"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT
from test_feedback import Service
from toy import Project

from scalai_nb.data.lake.lake import Lake
from scalai_nb.describe.summary import summarize
from scalai_nb.errors import Conflict, ParameterError
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.package.package import package
from scalai_nb.monitoring.watch import Watch, watch_dataset, watch_model, windows

HOUR = np.timedelta64(3600, "s")
START = np.datetime64("2026-01-01", "us")


def rows(at, seed=0, shift=0.0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    kind = rng.choice(["a", "b"], len(at))
    x = rng.normal(shift, 1, len(at))
    return xr.Dataset(
        {"at": ("row", np.array(at, "M8[us]")), "x": ("row", x), "kind": ("row", kind)}
    )


def hours(first: int, n: int, each: int = 20) -> np.ndarray:
    return START + first * HOUR + np.arange(n * each) * (HOUR // each)


@pytest.fixture
def lake(tmp_path):
    lake = Lake(tmp_path / "lake", author="ada")
    lake.write("a", rows(hours(0, 12)))
    return lake


REFERENCE = summarize(rows(hours(0, 200), seed=9))


def watch(lake, **options) -> Watch:
    return Watch(lake, "a", REFERENCE, "at", every=3600, **options)


def test_windows_close_when_a_later_row_has_come(lake):
    assert [w.rows for w in watch(lake).look()] == [20] * 11
    assert watch(lake).look() == []
    lake.append("a", rows(hours(12, 2)))
    found = watch(lake).look()
    assert [w.start for w in found] == [START + 11 * HOUR, START + 12 * HOUR]
    assert sum(w.rows for w in windows(lake, "a")) == lake.state("a.watch")["rows"] == 260


def test_rows_that_come_late_without_a_time_or_from_the_future_count_where_they_come(lake):
    watch(lake).look()
    late = [START, np.datetime64("NaT", "us"), np.datetime64("2262-01-01", "us")]
    lake.append("a", rows([*late, *hours(12, 1)]))
    lake.append("a", rows([START + 13 * HOUR]))
    eleventh, twelfth = watch(lake).look()
    assert (eleventh.rows, eleventh.late, twelfth.rows, twelfth.late) == (23, 3, 20, 0)


def test_a_gap_of_windows_is_no_window(lake):
    lake.append("a", rows([START + 100 * HOUR, START + 101 * HOUR]))
    starts = [w.start for w in watch(lake).look()]
    assert starts[-2:] == [START + 11 * HOUR, START + 100 * HOUR]


def test_an_alarm_keeps_its_beginning_while_it_lasts(lake):
    lake.append("a", rows(hours(12, 9), shift=3))
    found = watch(lake).look()
    assert [w.alarm for w in found] == [False] * 12 + [True] * 8
    assert {w.since for w in found if w.alarm} == {START + 12 * HOUR}
    assert found[-1].moved.startswith("x: mean")


def test_windows_of_an_earlier_scalai_are_read_and_followed(lake):
    watch(lake).look()
    lake.evolve("a.watch", drop=["shares"])
    assert [w.shares for w in windows(lake, "a")] == [{}] * 11
    lake.append("a", rows(hours(12, 2), shift=3))
    assert watch(lake).look()[-1].shares == {"x": 1.0}
    assert [w.shares for w in windows(lake, "a")] == [{}] * 12 + [{"x": 1.0}]


def test_a_season_is_held_against_the_same_of_what_is_normal(tmp_path):
    "A year, warm in July; the next is alike but for one week of January that is as warm"
    lake, day = Lake(tmp_path / "lake"), np.timedelta64(86_400_000_000, "us")
    first_day = np.datetime64("2023-01-01", "us")

    def days(first: int, n: int, seed: int, odd: tuple[int, ...] = ()) -> xr.Dataset:
        number = first + np.arange(n).repeat(50)
        warm = 10 - 12 * np.cos(2 * np.pi * number / 365) + np.where(np.isin(number, odd), 24, 0)
        temp = warm + np.random.default_rng(seed).normal(0, 4, len(number))
        at = first_day + number * day + np.tile(np.arange(50), n) * (day // 50)
        return xr.Dataset({"at": ("row", at), "temp": ("row", temp)})

    lake.write("normal", days(-365, 365, seed=1))
    lake.write("year", days(0, 372, seed=2, odd=(14, 15, 16, 17, 18, 19, 20)))
    told = {"every": "7d", "large": 0.5}
    alike = watch_dataset(lake, "year", "normal", "at", **told).look(dry_run=True)
    assert np.mean([w.alarm for w in alike]) > 0.5  # against the year as a whole each week is odd
    found = watch_dataset(lake, "year", "normal", "at", season="month", **told).look()
    alarms = [w.start for w in found if w.alarm]
    assert abs(alarms[0] - first_day - 14 * day) < 7 * day and len(alarms) < 6
    months = [w.start.astype("M8[M]").astype(int) % 12 + 1 for w in found]
    assert [w.normal.split()[-2:] for w in found] == [["month", str(m)] for m in months]
    with pytest.raises(ParameterError, match="'moon' is not in the seasons"):
        watch_dataset(lake, "year", "normal", "at", season="moon")


def test_two_watchers_do_not_both_count(lake, monkeypatch):
    slow = watch(lake)
    judged = slow._judged

    def meanwhile(*asked):
        if not windows(lake, "a"):
            watch(lake).look()
        return judged(*asked)

    monkeypatch.setattr(slow, "_judged", meanwhile)
    with pytest.raises(Conflict, match="Another watcher of 'a'"):
        slow.look()
    assert len(windows(lake, "a")) == 11


def test_windows_of_rows_are_closed_by_their_last_row_and_a_watcher_goes_on_where_it_was(lake):
    def look(**options):
        return Watch(lake, "a", REFERENCE, "at", every="50 rows", **options).look()

    found = look()
    assert [w.rows for w in found] == [50] * 4 and look() == []
    lake.append("a", rows([START, np.datetime64("NaT", "us"), np.datetime64("2262-01-01", "us")]))
    for hour in range(12, 16):
        lake.append("a", rows(hours(hour, 1), seed=hour, shift=3.0 * (hour > 12)))
        found += look()
    assert sum(w.rows for w in found) == lake.state("a.watch")["rows"] == 300
    assert [w.start for w in found] == [w.start for w in windows(lake, "a")]
    assert (np.diff([w.start for w in found]) > np.timedelta64(0)).all()
    assert found[-1].alarm and found[-1].start > START + 12 * HOUR
    assert found[1].threshold == pytest.approx(np.log(365.25 * 24 / 2.5), abs=0.03)
    with pytest.raises(ParameterError, match="50 rows long, not 3600 s; .*--restart"):
        watch(lake).look()
    assert [w.threshold for w in look(restart=True)] == [w.threshold for w in found]


def test_what_was_written_anew_is_watched_anew(lake):
    watch(lake).look()
    lake.write("a", rows(hours(0, 3)))
    with pytest.raises(ParameterError, match="was written anew"):
        watch(lake).look()
    assert len(watch(lake, restart=True).look()) == len(windows(lake, "a")) == 2


LOOK = """
import sys
from scalai_nb.data.lake.lake import Lake
from scalai_nb.describe.summary import Summary
from scalai_nb.monitoring.watch import Watch
lake, reference = Lake(sys.argv[1]), Summary.from_json(open(sys.argv[2]).read())
Watch(lake, "a", reference, "at", sys.argv[3]).look()
print("ready", flush=True)
while True:
    Watch(lake, "a", reference, "at", sys.argv[3]).look()
"""


MANY = pytest.mark.campaign


@pytest.mark.parametrize(
    ("kills", "every"),
    [(4, "1h"), pytest.param(50, "1h", marks=MANY), pytest.param(50, "20 rows", marks=MANY)],
)
def test_a_watcher_that_is_killed_counts_each_row_once(lake, tmp_path, kills, every):
    reference, chance = tmp_path / "reference.json", random.Random(kills)
    reference.write_text(REFERENCE.to_json())
    when, phases = 12, set()
    for _ in range(kills):
        words = [sys.executable, "-c", LOOK, str(lake.path), str(reference), every]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout.readline() == "ready\n"
            until = time.monotonic() + chance.uniform(0.02, 1)
            while time.monotonic() < until:
                lake.append("a", rows(hours(when, 1), seed=when))
                when += 1
            phases.add(len(windows(lake, "a")))
            os.kill(process.pid, signal.SIGKILL)
    Watch(lake, "a", REFERENCE, "at", every).look()
    kept, closed = windows(lake, "a"), when - (every == "1h")
    assert len(phases) > 1
    assert [w.start for w in kept] == [START + k * HOUR for k in range(closed)]
    assert {w.rows for w in kept} == {20}
    assert sum(w.summary.rows for w in kept) == lake.state("a.watch")["rows"]


def grid(first: int, n: int, moved: float = 0.0) -> xr.Dataset:
    "Temperatures over 73 latitudes, of which that at 35° has moved"
    rng, lat = np.random.default_rng(first), np.linspace(-90, 90, 73)
    temp = 30 * np.cos(np.radians(lat))[:, None] + rng.normal(0, 8, (n, 73, 10))
    temp[:, 50] += moved
    at = hours(first, n, each=1)
    return xr.Dataset({"at": ("row", at), "temp": (("row", "lat", "lon"), temp)}, {"lat": lat})


def test_a_band_of_many_that_has_moved_is_found_and_named(lake):
    lake.write("grid", grid(0, 200))
    lake.tag("grid", "normal")
    lake.append("grid", grid(200, 25, moved=5))
    known = {"every": 24 * 3600.0, "restart": True}
    whole = watch_dataset(lake, "grid", "@normal", **known).look()[-1]
    assert not whole.alarm
    with pytest.raises(ParameterError, match=r"per \[\], not \['lat'\]; .*--restart"):
        watch_dataset(lake, "grid", "@normal", per=["lat"], every=24 * 3600.0).look()
    bands = watch_dataset(lake, "grid", "@normal", per=["lat"], **known).look()
    assert [w.alarm for w in bands] == [False] * (len(bands) - 1) + [True]
    assert bands[-1].moved.startswith("temp[lat=35.0]: mean") and ";" not in bands[-1].moved
    with pytest.raises(ParameterError, match="Did you mean 'lat'"):
        watch_dataset(lake, "grid", "@normal", per=["lats"], **known)


@pytest.mark.parametrize("each", [20, 200])
def test_an_alarm_ends_soon_after_its_cause_and_the_next_is_another(tmp_path, each):
    lake = Lake(tmp_path)
    shifts = [0.0] * 10 + [3.0] * 6 + [0.0] * 12 + [3.0] * 6 + [0.0]
    for hour, shift in enumerate(shifts):
        put = lake.append if hour else lake.write
        put("a", rows(hours(hour, 1, each), seed=hour, shift=shift))
    found = watch(lake).look()
    alarms = [hour for hour, w in enumerate(found) if w.alarm]
    assert not {*range(10), *range(18, 28)} & {*alarms}
    assert {*range(12, 16), *range(30, 34)} <= {*alarms}
    assert found[33].since >= START + 27 * HOUR


# --- a model --------------------------------------------------------------------------------------


class Registered:
    "A stand-in for a registry: one model"

    def __init__(self, model):
        self.model = model

    def get(self, name):
        return SimpleNamespace(version=1)

    def load(self, name, version):
        return self.model


def model(summary=None, **card):
    from sklearn.linear_model import LogisticRegression

    ds = xr.Dataset({"hour": ("row", np.arange(24.0).repeat(50))})
    transform = Transform(["hour"]).fit(ds)
    estimator = LogisticRegression().fit(transform.transform(ds), ds.hour.values > 12)
    return package(transform, estimator, name="late", card=card, summary=summary and summarize(ds))


def test_what_a_model_is_asked_is_held_against_what_it_learned_from(tmp_path):
    service = Service(tmp_path)
    service.write(*[(f"r{i}", "1", 0.5) for i in range(200)], force=True)
    looking = watch_model(service.lake, Registered(model(True)), "late", every=1.0, large=0.1)
    assert looking.dataset == "late-predictions" and looking.normal.columns == ["hour"]
    time.sleep(1.1)
    service.write(("last", "1", 0.5), force=True)
    found = looking.look()
    assert sum(w.rows for w in found) == 200 and found[-1].alarm
    assert found[-1].moved.startswith("hour: mean 11.5 → 7")  # it is always 7
    with pytest.raises(ParameterError, match="without a summary"):
        watch_model(service.lake, Registered(model()), "late")


def test_a_model_says_what_its_columns_weigh(tmp_path):
    service = Service(tmp_path)
    service.write(("r", "1", 0.5), force=True)

    def weights(*chosen, **card):
        registry = Registered(model(True, **card))
        return watch_model(service.lake, registry, "late", *chosen).normal.weights

    said = {"importance": {"hour": 0.02, "gone": 1.0, "nothing": -0.1}}
    assert weights(**said) == weights("importance", **said) == {"hour": 0.02}
    assert weights() is weights("equal", **said) is weights(importance="great") is None
    assert weights({"hour": 3.0}, **said) == {"hour": 3.0}
    with pytest.raises(ParameterError, match="has no `importance`"):
        weights("importance")
    with pytest.raises(ParameterError, match="Did you mean 'hour'"):
        weights({"hours": 3.0})


# --- the command ----------------------------------------------------------------------------------


def heaps(pid: int) -> int:
    "Stretches of memory that threads have of malloc: each begins at a multiple of 64 MB"
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    starts = (line.split("-")[0] for line in maps if len(line.split()) == 5)
    return sum(int(start, 16) % 2**26 == 0 for start in starts)


def test_the_command(tmp_path):
    project = Project(tmp_path, "cluster = none\ntrackers = none\nlake = lake\n")
    lake = Lake(tmp_path / "lake", author="ada")
    lake.write("a", rows(hours(0, 100)))
    lake.tag("a", "normal")
    lake.append("a", rows(hours(100, 6), shift=4))
    said = project.said("watch", "a")
    assert said.returncode == 2 and "--against DATASET@VERSION" in said.stderr
    said = project.said("watch", "a", "--season", "month")
    assert said.returncode == 2 and "pass --against DATASET@VERSION" in said.stderr
    assert "\nRetraining of a model:\n  --retrain" in project.said("watch", "--help").stdout
    words = ["watch", "a", "--against", "@normal", "--every", "1h"]
    tried = project.said(*words, "--dry-run")
    assert "✘ alarm" in tried.stdout and "a.watch" not in lake.names()
    light = [*words, "--weights", "x=0.0001,kind=1", "--dry-run"]
    assert "✘ alarm" not in (said := project.said(*light).stdout) and "weighs" in said
    once = json.loads(project.said(*words, "--once", "--json").stdout)
    assert len(once) == 105 and [w["alarm"] for w in once[-5:]] == [True] * 5
    assert "no window has closed" in project.said(*words, "--once").stdout
    other = project.said(*words[:-1], "1d", "--once")
    assert other.returncode == 2 and "--restart" in other.stderr
    lake.append("a", rows(hours(106, 2)))
    daemon = project.start(*words)
    assert "window (UTC)" in daemon.stdout.readline()
    assert heaps(daemon.pid) <= 2  # whatever threads it has
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(60) == 0
    daemon.communicate()
