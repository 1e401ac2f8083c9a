"""One alarm a cause, whoever is killed; what a person says stays; each sink hears of it"""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalai_nb.data.lake.lake import Lake
from scalai_nb.describe.summary import Summary
from scalai_nb.errors import Conflict, ParameterError
from scalai_nb.monitoring.alarms import (
    KINDS,
    Signal,
    acknowledge,
    alarms,
    amend,
    episodes,
    every,
    find,
    follow,
    resolve,
)
from scalai_nb.monitoring.notifying import Notifier
from scalai_nb.monitoring.watch import Window, _kept

START = np.datetime64("2026-01-01", "us")
DAY = np.timedelta64(1, "D")


def window(day: int, loud: bool, **columns: float) -> Window:
    at = START + day * DAY
    shares = (columns or {"x": 1.0}) if loud else {}
    return Window(at, 10, 0, 9.0 * loud, 5.9, loud, at, "x: ↑" * loud, Summary({}), shares)


def keep(lake: Lake, windows: list[Window]) -> None:
    "What `Watch` commits, and no alarm with it"
    put = lake.append if "a.watch" in lake.names() else lake.write
    put("a.watch", _kept(windows))


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake", author="ada")


def days(lake: Lake, *loud: int, first: int = 0) -> list:
    keep(lake, [window(first + i, bool(x)) for i, x in enumerate(loud)])
    return follow(lake, "a")


# --- records -------------------------------------------------------------------------------------

LOOKS = st.lists(st.tuples(st.lists(st.booleans(), min_size=1, max_size=4), st.booleans()))


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(LOOKS.filter(lambda looks: 0 < len(looks) <= 6))
def test_whoever_is_killed_the_alarms_are_those_of_the_windows(tmp_path_factory, looks):
    "A look keeps windows; a watcher that is killed then has kept no alarm, and the next one does"
    lake, day, said = Lake(tmp_path_factory.mktemp("lake"), author="ada"), 0, []
    for loud, killed in looks:
        keep(lake, [window(day + i, x) for i, x in enumerate(loud)])
        said += [Signal(START + (day + i) * DAY, x, START, "", 0, {}) for i, x in enumerate(loud)]
        day += len(loud)
        if not killed:
            follow(lake, "a")
            follow(lake, "a")
    follow(lake, "a")
    found = [(a.id, a.state, a.opened, a.newest, a.closed) for a in alarms(lake, "a")]
    truth = [(a.id, a.state, a.opened, a.newest, a.closed) for a in episodes("a", "drift", said)]
    assert found == truth


def test_an_alarm_is_what_its_newest_window_says(lake):
    days(lake, 0, 1)
    keep(lake, [window(2, True, x=0.25, y=0.75)])
    (alarm,) = follow(lake, "a")
    assert (alarm.since, alarm.opened, alarm.newest) == (START + DAY, START + DAY, START + 2 * DAY)
    assert alarm.title == "Drift of a in x, y" and alarm.explained == "y 75\xa0%, x 25\xa0%"
    assert follow(lake, "a") == []


def test_what_a_person_says_is_not_overwritten(lake):
    (alarm,) = days(lake, 1)
    acknowledge(lake, alarm, "ada", "at it")
    (later,) = days(lake, 1, first=1)
    assert (later.state, later.by, later.note, later.newest) == (
        *("acknowledged", "ada", "at it"),
        START + DAY,
    )
    acknowledge(lake, alarm, "bob")
    (over,) = days(lake, 0, 0, first=2)
    assert (over.state, over.by, over.note, over.next) == ("resolved", "bob", "at it", "")


def test_a_watcher_that_decided_before_a_person_did_does_not_undo_it(lake):
    "The person comes while the watcher holds what it has read"
    (alarm,) = days(lake, 1)
    keep(lake, [window(1, True)])

    def slow(lake, dataset, begin):
        with pytest.raises(Conflict, match="has been writing"):
            acknowledge(Lake(lake.path, author="bob", lock_timeout=0.1), alarm, "bob")
        return [Signal(START + i * DAY, True, START, "", 0, {}) for i in range(2)]

    follow(lake, "a", signals=slow)
    acknowledge(lake, alarm, "bob")
    follow(lake, "a")
    assert find(lake, alarm.id).by == "bob"


def test_an_alarm_that_a_person_resolved_opens_no_more_before_it_was_quiet(lake):
    (alarm,) = days(lake, 1, 1)
    resolve(lake, alarm, "ada", "a new sensor")
    assert days(lake, 1, 0, 1, first=2) == []
    (next_one,) = days(lake, 0, 0, 1, first=5)
    assert next_one.id != alarm.id and next_one.opened == START + 7 * DAY
    assert [a.state for a in every(lake)] == ["open", "resolved"]
    with pytest.raises(ParameterError, match="resolved by ada already"):
        acknowledge(lake, alarm, "bob")


def test_windows_that_were_given_up_end_their_alarm(lake):
    (alarm,) = days(lake, 1, 1)
    lake.write("a.watch", _kept([window(0, False), window(1, False), window(2, True)]))
    follow(lake, "a")
    old, new = alarms(lake, "a")
    assert (old.id, old.state, old.note) == (alarm.id, "resolved", "its windows were given up")
    assert new.opened == START + 2 * DAY and new.lasts


def test_alarms_of_other_kinds_are_records_of_the_same_dataset(lake):
    days(lake, 1)
    late = [Signal(START, True, START, "no label for 3 days", 0, {})]
    (other,) = follow(lake, "a", kind="labels", signals=lambda *_: late)
    assert other.title == "Labels of a" and other.explained == ""
    assert [a.kind for a in days(lake, 0, 0, first=1)] == ["drift"]
    assert {a.kind: a.state for a in alarms(lake, "a")} == {"drift": "resolved", "labels": "open"}


def test_an_id_is_known_by_its_beginning(lake):
    (alarm,) = days(lake, 1)
    assert find(lake, alarm.id[:3]) == alarm
    for wrong in ("", "zz"):
        with pytest.raises(ParameterError, match=alarm.id):
            find(lake, wrong)


# --- who hears of it -----------------------------------------------------------------------------


class Clock:
    now = 1.8e9

    def __call__(self):
        return self.now


def heard(path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_a_sink_hears_each_news_once(lake, tmp_path):
    told = Notifier(lake, "a", [f"log:{tmp_path / 'log'}"])

    def tell():
        follow(lake, "a", told.sinks("drift"))
        assert told.tell() == [] == told.tell()

    days(lake, 1, 1)
    tell()
    keep(lake, [window(2, True, x=0.5, y=0.5), window(3, True, y=1.0)])
    tell()
    keep(lake, [window(4, True, x=1.0)])
    tell()
    acknowledge(lake, alarms(lake, "a")[0], "ada")
    tell()
    keep(lake, [window(5, False), window(6, False)])
    tell()
    assert heard(tmp_path / "log") == ["opened", "changed", "acknowledged", "resolved"]


def test_what_was_over_before_anybody_watched_is_told_to_nobody(lake, tmp_path):
    told = Notifier(lake, "a", [f"log:{tmp_path / 'log'}"])
    keep(lake, [window(i, x) for i, x in enumerate([True, False, False, True])])
    follow(lake, "a", told.sinks("drift"))
    told.tell()
    assert heard(tmp_path / "log") == ["opened"] and len(alarms(lake, "a")) == 2
    keep(lake, [window(4 + i, x) for i, x in enumerate([False, False, True, False, False])])
    follow(lake, "a", told.sinks("drift"))
    told.tell()
    assert heard(tmp_path / "log") == ["opened", "resolved", "resolved"]
    late = Notifier(lake, "a", [f"log:{tmp_path / 'late'}"])
    late.tell()
    assert not (tmp_path / "late").exists()


def test_a_sink_that_is_away_holds_up_no_other_and_is_told_later(lake, tmp_path):
    clock, away = Clock(), tmp_path / "away" / "log"
    told = Notifier(lake, "a", [f"log:{away}", f"log:{tmp_path / 'log'}"], clock)
    keep(lake, [window(0, True)])
    follow(lake, "a", told.sinks("drift"))
    assert told.tell() == [f"log:{away} was not told: FileNotFoundError; again in 1 min 00 s."]
    assert heard(tmp_path / "log") == ["opened"]
    away.parent.mkdir()
    assert told.tell() == [] and not away.exists()
    clock.now += 61
    again = Notifier(lake, "a", [f"log:{away}"], clock)
    assert again.tell() == [] and heard(away) == ["opened"]
    (alarm,) = alarms(lake, "a")
    heard_of = {"state": "open", "columns": ["x"]}
    assert alarm.told == {f"log:{away}": heard_of, f"log:{tmp_path / 'log'}": heard_of}


def test_news_that_came_while_it_was_told_is_told_next(lake, tmp_path):
    told = Notifier(lake, "a", [f"log:{tmp_path / 'log'}"])
    (alarm,) = days(lake, 1)
    send = next(iter(told.listeners.values())).sink.send

    def meanwhile(notice):
        send(notice)
        if notice.event == "opened":
            acknowledge(Lake(lake.path, author="bob"), alarm, "bob")

    next(iter(told.listeners.values())).sink.send = meanwhile
    told.tell()
    told.tell()
    assert heard(tmp_path / "log") == ["opened", "acknowledged"]
    assert alarms(lake, "a")[0].by == "bob"


KILLED = """
import os, signal, sys
from scalai_nb.data.lake.lake import Lake
from scalai_nb.monitoring import notifying
from scalai_nb.monitoring.alarms import follow
lake = Lake(sys.argv[1])
told = notifying.Notifier(lake, "a", [f"log:{sys.argv[2]}"])
follow(lake, "a", told.sinks("drift"))
told._keep = lambda _: os.kill(os.getpid(), signal.SIGKILL)
told.tell()
"""


def test_a_watcher_that_is_killed_when_it_has_told_tells_the_same_once_more(lake, tmp_path):
    keep(lake, [window(0, True)])
    log = tmp_path / "log"
    words = [sys.executable, "-c", KILLED, str(lake.path), str(log)]
    assert subprocess.run(words, cwd=ROOT).returncode == -signal.SIGKILL
    told = Notifier(lake, "a", [f"log:{log}"])
    assert follow(lake, "a", told.sinks("drift")) == []
    told.tell(), told.tell()
    first, second = (json.loads(line)["id"] for line in log.read_text().splitlines())
    assert first == second


def test_an_alarm_of_a_lake_without_windows_is_kept(lake):
    (alarm,) = days(lake, 1)
    amend(lake, "b", lambda _: [replace(alarm, dataset="b")], "of b")
    assert {a.dataset for a in every(lake)} == {"a", "b"} and len(every(lake, "b")) == 1


def test_a_sink_hears_of_the_kinds_that_stand_before_it(lake, tmp_path):
    pager, log = tmp_path / "pager", tmp_path / "log"
    told = Notifier(lake, "a", [f"goal,concept=log:{pager}", f"log:{log}"])
    days(lake, 1)
    for kind in KINDS:
        follow(lake, "a", told.sinks(kind), kind=kind)
    told.tell()
    assert {json.loads(line)["kind"] for line in log.read_text().splitlines()} == {*KINDS}
    assert {json.loads(line)["kind"] for line in pager.read_text().splitlines()} == {*KINDS[1:]}
    with pytest.raises(ParameterError, match="'gaol' is not in the kinds of alarms"):
        Notifier(lake, "a", ["gaol=log:"])
