"""What many small appends cost: `python tests/campaigns/appends.py --commits 10000`

A dataset of five columns is written at once, and by many commits of a few rows each. For both:
bytes on the disk, CPU seconds of an append at the beginning and at the end, and after a compaction
those of opening the dataset, of its log and of reading all of it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr

from scalai_nb.data.lake import repository
from scalai_nb.data.lake.upkeep.expiry import bytes_in
from scalai_nb.data.lake.lake import Lake

COLUMNS = 5


def table(rows: int, seed: int = 0) -> xr.Dataset:
    "Random numbers, which nothing compresses"
    random = np.random.default_rng(seed)
    return xr.Dataset({f"x{i}": ("row", random.random(rows)) for i in range(COLUMNS)})


def cpu(work: Callable[[], Any], times: int = 5) -> float:
    "CPU seconds of the cheapest of some calls"
    spent = []
    for _ in range(times):
        repository._opened_group.cache_clear()
        before = time.process_time()
        work()
        spent.append(time.process_time() - before)
    return min(spent)


def reading(lake: Lake, name: str) -> dict[str, float]:
    "CPU seconds of what a reader does"
    return {
        "open": cpu(lambda: lake.read(name)),
        "log": cpu(lambda: lake.log(name), 1),
        "read": cpu(lambda: lake.read(name).compute()),
    }


def appended(lake: Lake, name: str, given: xr.Dataset, rows: int) -> list[float]:
    "CPU seconds of each append of `rows` rows"
    lake.write(name, given.isel(row=slice(0, rows)))
    spent = []
    for first in range(rows, given.sizes["row"], rows):
        before = time.process_time()
        lake.append(name, given.isel(row=slice(first, first + rows)))
        spent.append(time.process_time() - before)
    return spent


def measure(commits: int, rows: int) -> dict[str, Any]:
    "What appends of `rows` rows cost, beside one write of all"
    given = table(commits * rows)
    with TemporaryDirectory() as folder:
        lake = Lake(Path(folder) / "lake")
        lake.write("whole", given)
        spent = appended(lake, "pieces", given, rows)
        tenth = max(1, commits // 10)
        found: dict[str, Any] = {
            "commits": commits,
            "rows": rows,
            "append, first tenth": float(np.median(spent[:tenth])),
            "append, last tenth": float(np.median(spent[-tenth:])),
            "longest append": max(spent),
            "before compaction": reading(lake, "pieces"),
        }
        moved = lake.compact("pieces")
        sizes = {name: bytes_in(lake.path / name) for name in ("whole", "pieces")}
        found |= {
            "moved": moved.rows,
            "at once": reading(lake, "whole"),
            "after compaction": reading(lake, "pieces"),
            "bytes": sizes,
            "bytes by one write": sizes["pieces"] / sizes["whole"],
            "kinds": {f.name: bytes_in(f) for f in (lake.path / "pieces").iterdir()},
            "files": sum(f.is_file() for f in (lake.path / "pieces").rglob("*")),
        }
        assert lake.read("pieces").compute().equals(given)
        return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100)
    given = parser.parse_args()
    print(json.dumps(measure(given.commits, given.rows), indent=1))
