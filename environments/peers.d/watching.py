"""What the scripts of detectors share: a line of JSON asks, a line answers

{"load": [file of the reference (feature, row), file of the windows (window, feature, row)]}, then
{"detect": name}, as often as one likes: the seconds it took, and of each window the features in
alarm.
"""

import json
import sys
import time

import numpy as np


def serve(prepare, detectors):
    """Answer until the lines end

    prepare(reference, windows) makes what the detectors take, which is not measured; a detector
    returns for each window the numbers of the features that it finds moved."""
    print("0", flush=True)
    data = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "load" in asked:
            data = prepare(*(np.load(path) for path in asked["load"]))
            print("0", flush=True)
            continue
        began = time.perf_counter()
        found = detectors[asked["detect"]](data)
        seconds = time.perf_counter() - began
        moved = [[int(i) for i in window] for window in found]
        print(json.dumps({"seconds": seconds, "moved": moved}), flush=True)


def names(features):
    return [f"x{i}" for i in range(features)]
