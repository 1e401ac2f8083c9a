"""How good a score or a prediction is: over all rows, in each slice, and against another model.

In: labels and scores, as arrays or as columns of a dataset, in memory, on Dask or in blocks.
Out: `evaluate`, `evaluate_regression`, `compare`, `calibrate`, `Task`; all are mergeable.
Imports: the ground, kernels, data, compute and describe.
"""
