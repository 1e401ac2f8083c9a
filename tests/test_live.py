"""The pipeline that runs again each month: what is new, once, whatever dies; dirt is put aside"""

import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from databases import PASSWORD, postgresql
from outputs import refresh, steps
from toy import Project

from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import ScalaiError

pytest.importorskip("adbc_driver_postgresql")
ROOT = Path(__file__).parent.parent
STEPS = ROOT / "nbs/pipelines/flights_live"
FLIGHTS = {1: 27_004, 2: 24_951}  # of 2013, as the data of the demo have them
HOURS = {1: 2226, 2: 2010}
PLANTED = {"carrier category": 5, "arr_delay range": 3, "time_hour, origin, carrier, flight key": 4}


@pytest.mark.slow
def test_the_demo_runs_and_shows_what_it_showed(fresh_copy):
    done = fresh_copy("scalai run flights_live")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.html" in done.stdout
    shown = steps("flights_live", fresh_copy.folder).items()
    assert not [line for path, ran in shown for line in refresh(path, ran, check=True)]


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    "A project with the steps that bring data in, and a database of its own"
    root = tmp_path_factory.mktemp("live")
    with postgresql() as server:
        project = Project(root)
        project.env |= {"SCALAI_PASSWORD": PASSWORD}
        project.uri = f"postgresql://reader@127.0.0.1:{server.port}/postgres"
        folder = root / "pipelines/flights_live"
        folder.mkdir(parents=True)
        for step in ("01_deliver", "02_arrivals"):
            shutil.copy(STEPS / f"{step}.ipynb", folder)
        yield project


def words(project, until: int) -> list[str]:
    "A run that delivers up to a month, in the second of which things go wrong"
    given = {"until": until, "spoiled": 2, "database": project.uri}
    given |= {"weather": "../../outside/weather", "planes": "../../outside/planes.csv"}
    arrivals = {"database": f"{project.uri}::departures"}
    arrivals |= {name: given[name] for name in ("weather", "planes")}
    told = {f"deliver.{n}": v for n, v in given.items()}
    told |= {f"arrivals.{n}": v for n, v in arrivals.items()}
    return ["run", "flights_live", *(w for n, v in told.items() for w in ("-p", f"{n}={v}"))]


def staged(lake: Lake, name: str) -> int:
    "Rows that a dataset has on the branch of the step"
    for ref in (lake.path / name / "refs").glob("branch.*.arrivals"):
        with suppress(ScalaiError):  # it is just being made
            return lake.version(name, ref.name.removeprefix("branch.")).rows
    return 0


def killed_in_the_middle(project, lake: Lake) -> None:
    "Kill a run when all is on its branch, and the last cell waits for a lock that we hold"
    with lake.lock("arrivals"):
        process = project.start(*words(project, 2))
        until = time.monotonic() + 300
        while staged(lake, "observations") <= HOURS[1]:
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.1)
        assert staged(lake, "departures") == sum(FLIGHTS.values())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()


def test_each_flight_counts_once_though_a_run_is_killed(farm):
    lake = Lake(farm.root / ".scalai/lake")
    first = farm.scalai(*words(farm, 1), timeout=400)
    assert first.returncode == 0, first.stdout + first.stderr
    january = lake.version("departures")
    assert january.rows == FLIGHTS[1] and "departures.quarantine" not in lake.names()
    killed_in_the_middle(farm, lake)
    assert lake.version("departures") == january
    second = farm.scalai(*words(farm, 2), timeout=400)
    assert second.returncode == 0, second.stdout + second.stderr

    flights = lake.read("departures").load()
    assert flights.sizes["row"] == sum(FLIGHTS.values())
    key = flights[["time_hour", "origin", "carrier", "flight"]].to_dataframe()
    assert not key.duplicated().any()
    assert lake.version("departures").parent == january.id
    came = lake.read("arrivals").to_dataframe().set_index(["upto", "dataset"])
    assert came.new[2, "departures"] == FLIGHTS[2]
    put_aside = lake.read("departures.quarantine").rule.to_series()
    assert put_aside.value_counts().to_dict() == PLANTED
    late, dead = (lake.version(f"observations.{kind}").rows for kind in ("late", "dead"))
    odd = lake.read("observations.quarantine").wind_speed.values
    assert (late, dead) == (3, 2) and [round(v) for v in odd] == [1048]
    hours = lake.read("observations")[["origin", "time_hour"]].to_dataframe()
    assert len(hours) == sum(HOURS.values()) - late - 1 and not hours.duplicated().any()
