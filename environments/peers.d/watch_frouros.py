"River and frouros: detectors that take a value at a time, one for each feature, as they come"

import numpy as np
from frouros.detectors.concept_drift import CUSUM
from river.drift import ADWIN, PageHinkley
from watching import serve


def alarm_of_river(make):
    detector = make()

    def alarm(value):
        detector.update(value)
        return detector.drift_detected

    return alarm


def alarm_of_frouros():
    detector = CUSUM()

    def alarm(value):
        detector.update(value=value)
        drifted = detector.status["drift"]
        if drifted:
            detector.reset()
        return drifted

    return alarm


def streaming(make):
    "Each feature's values, those of the reference first; a window is in alarm if any value is"

    def detect(data):
        reference, windows = data
        moved = np.zeros(windows.shape[:2], bool)
        for feature in range(len(reference)):
            alarm = make()
            for value in reference[feature].tolist():
                alarm(value)
            for i, window in enumerate(windows[:, feature]):
                found = [alarm(value) for value in window.tolist()]  # all of them, to learn from
                moved[i, feature] = any(found)
        return [np.flatnonzero(window) for window in moved]

    return detect


serve(
    lambda reference, windows: (reference, windows),
    {
        "adwin": streaming(lambda: alarm_of_river(ADWIN)),
        "page_hinkley": streaming(lambda: alarm_of_river(PageHinkley)),
        "cusum": streaming(alarm_of_frouros),
    },
)
