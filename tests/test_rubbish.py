"Whatever is passed, a command answers in a line that says what to do: no traceback, nothing lost"

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from toy import Project
from typer.main import get_command

import scalai_nb as sn
from scalai_nb.cli import app
from scalai_nb.data.sources import read_csv

pytestmark = pytest.mark.campaign
VALUES = """5 bananas|-1|0||é
|nan|1500 rows|a=b=c|>= x|{}|[1]|/nowhere/x|file.csv|2026-13-45|none|,|s3://|kafka://|../..|*|\x1b[0m"""
GIVEN = {"file": "file.csv", "uri": "file.csv", "run": "latest", "target": "grafana"}
KNOWN = "toy"  # of whatever else has a name
STAYS = {
    "attach",
    "bench",
    "dash",
    "lab",
    "serve",
}  # those that go on for long, or until they are ended


def commands(command=get_command(app), path: tuple[str, ...] = ()) -> Iterator[tuple]:
    "Each command with the words that lead to it"
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def tried(command, chance: random.Random) -> Iterator[list[str]]:
    "Its words, with one that makes no sense: three for each place that takes a text"
    is_option = {p: p.param_type_name == "option" for p in command.params}
    needed = {p: GIVEN.get(p.name, KNOWN) for p, option in is_option.items() if not option}
    flags = {flag for p in command.params for flag in p.opts} & {"--dry-run", "--once"}
    for place, option in is_option.items():
        if option and (place.is_flag or place.name == "help"):
            continue
        for value in chance.sample(VALUES.split("|"), 3):
            words = {**needed, place: value} if not option else needed
            said = [f"{place.opts[-1]}={value}"] if option else []
            yield [*words.values(), *said, *sorted(flags)]


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*c, id="-".join(c[0])) for c in commands()]
)
def test_a_command_that_is_told_rubbish(tmp_path, path, command):
    if path[0] in STAYS:
        pytest.skip(f"{path[0]} goes on for long")
    project = Project(tmp_path)
    project.step("one", "rows: int = 3")
    (tmp_path / "file.csv").write_text("a,b\n1,x\n2,y\n")
    sn.Lake(tmp_path / ".scalai/lake").write(KNOWN, read_csv(tmp_path / "file.csv"))
    for words in tried(command, random.Random("-".join(path))):
        call = [sys.executable, "-m", "scalai_nb", *path, *words]
        env = os.environ | project.env
        done = subprocess.run(
            call, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, input=""
        )
        assert "Traceback" not in done.stderr, f"{words}\n{done.stderr}"
        assert done.returncode in (0, 1, 2), words
