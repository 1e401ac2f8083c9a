"""What a watcher keeps of the model of `orchard.py`: eight days; in the last two it has moved"""

import numpy as np
import xarray as xr

from scalai_nb.data.contract import Contract
from scalai_nb.data.lake.lake import Lake
from scalai_nb.describe.summary import summarize
from scalai_nb.environment import Environment
from scalai_nb.monitoring.alarms import acknowledge, follow
from scalai_nb.monitoring.label_windows import QualityWatch
from scalai_nb.monitoring.policy import Decision
from scalai_nb.monitoring.retraining import _kept, decisions_of
from scalai_nb.monitoring.watch import Watch

DAY, LONG = np.datetime64("2026-03-01", "us"), np.timedelta64(1, "D")


def day(i: int, rng: np.random.Generator) -> tuple[dict, dict]:
    "The predictions of a day, and what was told of them"
    weight = rng.normal(14.0 if i >= 6 else 7.0, 2, 300)
    time = DAY + i * LONG + np.arange(300) * np.timedelta64(240, "s")
    ids = np.array([f"{i}-{n}" for n in range(300)], object)
    score = rng.random(300)
    said = {"id": ids, "time": time, "weight": weight, "version": np.full(300, "1", object)}
    said |= {"score": score, "latency_ms": rng.gamma(4, 3, 300), "share": np.ones(300)}
    truth = (rng.random(300) < score) * 1.0
    return said, {"id": ids, "received": time + LONG // 2, "truth": truth}


def watched(env: Environment) -> Lake:
    "Write what a service, a watcher and its loop leave; the lake"
    lake, rng = Lake(env.lake), np.random.default_rng(0)
    attrs = {"name": "ripeness", "output": "probability", "threshold": 0.5}
    for i in range(8):
        said, told = day(i, rng)
        for name, rows in (("ripeness-predictions", said), ("ripeness-feedback", told)):
            ds = xr.Dataset({n: ("row", v) for n, v in rows.items()}, attrs=attrs)
            (lake.append if name in lake.names() else lake.write)(name, ds)
    normal = summarize(xr.Dataset({"weight": ("row", rng.normal(7, 2, 3_000))}))
    Watch(lake, "ripeness-predictions", normal, "time").look()
    QualityWatch(lake, "ripeness").look()
    (alarm,) = follow(lake, "ripeness-predictions")
    acknowledge(lake, alarm, by="ada", note="the new scales")
    decision = Decision(DAY + 7 * LONG, "train", "an alarm: weight", 1, 1, "orchard-1")
    lake.write(decisions_of("ripeness"), _kept(decision))
    return lake


def aside(env: Environment) -> None:
    "A dataset with a contract, of which three rows were put aside"
    lake = Lake(env.lake)
    good = xr.Dataset({"sugar": ("row", np.linspace(8.0, 14.0, 200))})
    lake.write("juice", Contract.infer(good).attach(good), on_breach="quarantine")
    bad = xr.Dataset({"sugar": ("row", np.array([9.0, 99.0, 98.0, 97.0]))})
    lake.append("juice", bad, on_breach="quarantine")
