"""Boosted trees grown by XGBoost, in bounded memory, here or on the workers of a cluster.

In: rows in blocks: arrays, datasets, files or sources.
Out: `BoostedTrees`, and how it runs (`Execution`).
Imports: errors, compute, learn.features.
"""
