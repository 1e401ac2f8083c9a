"alibi-detect: Kolmogorov-Smirnov of each feature, p < 0.05 corrected for their number"

import logging

logging.disable(logging.WARNING)  # that there is no PyTorch

import numpy as np
from alibi_detect.cd import KSDrift
from watching import serve


def ks(data):
    reference, windows = data
    detector = KSDrift(np.ascontiguousarray(reference.T), p_val=0.05)
    for window in windows:
        found = detector.predict(np.ascontiguousarray(window.T))["data"]
        yield np.flatnonzero(found["p_val"] < found["threshold"])


serve(lambda reference, windows: (reference, windows), {"ks": lambda data: list(ks(data))})
