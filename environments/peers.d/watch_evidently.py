"Evidently: its preset for drift of data, a report a window"

import os

os.environ["DO_NOT_TRACK"] = "1"  # it reports its use otherwise

import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset
from watching import names, serve


def prepare(reference, windows):
    columns = names(len(reference))
    return [pd.DataFrame(x.T, columns=columns) for x in (reference, *windows)]


def moved(metric):
    "Whether a column has: a p-value below the threshold that Evidently chose, or a distance above"
    config = metric["config"]
    p = "p_value" in config["method"]
    return metric["value"] < config["threshold"] if p else metric["value"] >= config["threshold"]


def preset(frames):
    reference, *windows = frames
    for window in windows:
        found = Report([DataDriftPreset()]).run(window, reference).dict()["metrics"][1:]
        yield [int(m["config"]["column"][1:]) for m in found if moved(m)]


serve(prepare, {"preset": lambda frames: list(preset(frames))})
