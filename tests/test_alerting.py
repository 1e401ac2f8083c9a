"""`scalai alarms`, from a watcher that tells people to a person who says that it is over"""

import json

import pytest
from conftest import free_port
from test_watch import hours, rows
from toy import Project
from typer.testing import CliRunner

from scalai_nb.cli import app
from scalai_nb.commands.observing import alerting
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import DatasetNotFound, ParameterError
from scalai_nb.monitoring.sinks.notices import NotSent

WATCH = ["watch", "a", "--against", "@normal", "--every", "1h", "--once"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A dataset that moves, settings that say who is told, and a hook at which nobody listens"
    notify = f"notify = log:{tmp_path / 'told'} slack:HOOK\n"
    made = Project(tmp_path, "cluster = none\ntrackers = none\nlake = lake\n" + notify)
    lake = Lake(tmp_path / "lake", author="ada")
    lake.write("a", rows(hours(0, 12, each=60)))
    lake.tag("a", "normal")
    lake.append("a", rows(hours(12, 3, each=60), shift=4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALAI_USER", "ada")
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{free_port()}/open-sesame")
    return made


def scalai(*words) -> str:
    "What a command prints; what it raises"
    found = CliRunner().invoke(app, [str(w) for w in words])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.stdout


def told(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_alarm_from_its_window_to_its_end(project, tmp_path):
    once = CliRunner().invoke(app, WATCH)
    assert once.exit_code == 0 and "slack:HOOK was not told" in once.stderr
    assert "sesame" not in once.output
    (alarm,) = json.loads(scalai("alarms", "a", "--json"))
    assert f"scalai alarms ack {alarm['id']}" in once.stdout and alarm["shares"] == {"x": 1.0}
    assert f"scalai alarms resolve {alarm['id']}" in alarm["next"]
    assert alerting._names("") == ["a"] and alerting._ids(alarm["id"][:2]) == [alarm["id"]]
    said = scalai("alarms", "ack", alarm["id"][:4], "--note", "hall 2")
    assert "acknowledged: Drift of a in x" in said
    assert "would be resolved" in scalai("alarms", "resolve", alarm["id"], "--dry-run")
    listed = scalai("alarms", "ls")
    assert "by ada" in listed and "“hall 2”" in listed and "explained by x 100" in listed
    scalai("alarms", "resolve", alarm["id"])
    assert "no alarm is open" in scalai("alarms", "a") and alerting._ids("") == []
    assert "resolved" in scalai("alarms", "--all")
    scalai(*WATCH, "--notify", f"log:{tmp_path / 'told'}")
    assert [t["event"] for t in told(tmp_path / "told")] == ["opened", "resolved"]


def test_nothing_is_kept_nor_told_by_a_dry_run(project, tmp_path):
    scalai(*WATCH, "--dry-run")
    assert not (tmp_path / "told").exists()
    assert Lake(tmp_path / "lake").names() == ["a"]


def test_words_that_are_wrong(project, monkeypatch):
    with pytest.raises(DatasetNotFound, match="'b' is not in"):
        scalai("alarms", "b")
    with pytest.raises(ParameterError, match="known: none"):
        scalai("alarms", "ack", "1234")
    with pytest.raises(NotSent, match="refused"):
        scalai("alarms", "test", "slack:HOOK")
    monkeypatch.delenv("HOOK")
    with pytest.raises(ParameterError, match="HOOK is not set"):
        scalai(*WATCH)


def test_a_sink_is_tried_with_an_alarm_that_is_none(project, tmp_path):
    assert "sent to log:" in scalai("alarms", "test", f"log:{tmp_path / 'tried'}")
    assert told(tmp_path / "tried")[0]["test"] is True
