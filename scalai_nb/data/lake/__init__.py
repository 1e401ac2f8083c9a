"""Datasets with versions under a folder: commits, tags, branches, and what becomes of damage.

In: names of datasets, `Dataset`s over `row`, versions; the folder of the lake.
Out: `Lake` with its `Version`s and `Diff`s, `Finding`s of a check, `Remains` of the dead.
Imports: the ground (errors, files, types), `compute` (blocks, cuts) and `data` (sources,
categories).
"""
