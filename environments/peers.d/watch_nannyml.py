"NannyML: its calculator of drift by column, as it comes: Jensen-Shannon, limits from the reference"

import os
import warnings

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"  # its UsageLogger.log returns at once, if this is set
warnings.simplefilter("ignore")

import nannyml
import numpy as np
import pandas as pd
from watching import names, serve


def prepare(reference, windows):
    columns = names(len(reference))
    whole = np.concatenate(windows, axis=-1)
    rows = windows.shape[-1]
    return rows, *(pd.DataFrame(x.T, columns=columns) for x in (reference, whole))


def univariate(data):
    rows, reference, windows = data
    size = min(rows, len(reference) // 10)  # of its chunks: the limits come from ten at least
    columns = list(reference.columns)
    calculator = nannyml.UnivariateDriftCalculator(column_names=columns, chunk_size=size)
    found = calculator.fit(reference).calculate(windows).filter(period="analysis").to_df()
    alerts = found.xs("alert", axis=1, level=2).droplevel(1, axis=1)[columns].to_numpy()
    per = rows // size
    return [np.flatnonzero(alerts[i : i + per].any(axis=0)) for i in range(0, len(alerts), per)]


serve(prepare, {"univariate": univariate})
