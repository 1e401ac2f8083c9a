"""A small project that nothing in the library knows: crates of fruit, ripe or not; run for real"""

from pathlib import Path

from toy import Project

USE_CASE = """from scalai_nb.pipeline import Goal
roc_auc: Goal = ">= 0.7"  # a ripe crate is <i>ranked</i> above an unripe one
precision: Goal = ">= 0.9"  # share of the crates sent that are ripe
latency_ms: Goal = "<= 2000"
rmse: Goal = "<= 2"  # nobody measures it"""
PICK = """from scalai_nb.pipeline import Out
crates: Out = "crates"
rows: int = 400"""
PICKED = """import numpy as np, xarray as xr
from scalai_nb.pipeline import write
rng = np.random.default_rng(7)
weight = rng.normal(8, 1, rows)
ripe = (weight + rng.normal(0, 0.5, rows) > 8).astype(int)
print("picked", rows)
write(crates, xr.Dataset({"weight": ("row", weight), "ripe": ("row", ripe)}))"""
TRAIN = '''from scalai_nb.pipeline import In, Model, Out
crates: In = "crates"
ripeness: Out[Model] = "ripeness"'''
TRAINED = """import matplotlib.pyplot as plt
import scalai_nb as sn
from scalai_nb.pipeline import read, write
data = read(crates).load()
transform = sn.Transform(numeric=["weight"]).fit(data)
fitted = sn.LogisticRegression().fit(transform.transform(data).values, data.ripe.values)
model = sn.package(transform, fitted, name=ripeness, summary=sn.summarize(data[["weight"]]))
write(ripeness, model, metrics={"precision": 0.8, "roc_auc": 0.5})
plt.plot(data.weight[:9]);"""
RELEASE = '''from scalai_nb.pipeline import In, Model, Out
crates: In = "crates"
ripeness: In[Model] = "ripeness"
weeks: Out = "weeks"'''
RELEASED = """import scalai_nb as sn
from scalai_nb.models.registry.gate import Limits
from scalai_nb.models.registry.release import examine, release
from scalai_nb.pipeline import read, write
import xarray as xr
registry = sn.Registry(sn.environment())
goals = {"roc_auc": ">= 0.7", "latency_ms": "<= 2000"}
v, verdict = examine(registry, f"{ripeness}@latest", read(crates).load(), "ripe", goals)
release(registry, ripeness, v.version, verdict)
ds = xr.Dataset({
    "week": ("row", ["one", "<b>two</b>", "three"]),
    "roc_auc": ("row", [0.9, 0.6, 0.8], {"long_name": "in service"}),
    "roc_auc_anew": ("row", [0.9, 0.85, 0.8]),
    "sent": ("row", [30, 40, 50], {"long_name": "crates sent"}),
})
write(weeks, ds.assign_attrs(history="week"))"""


def orchard(root: Path) -> Project:
    "The project, not run yet; it has no folder of dashboards"
    project = Project(root)
    for name, contract, cells, title in (
        ("00_use_case", USE_CASE, (), "Ripe crates"),
        ("01_pick", PICK, (PICKED,), "Pick"),
        ("02_train", TRAIN, (TRAINED,), "Train"),
        ("03_release", RELEASE, (RELEASED,), "Release"),
    ):
        project.step(name, contract, *cells, pipeline="orchard", title=title)
    return project
