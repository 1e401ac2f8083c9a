"""A grid over the parameters of notebooks, in runs that leave everything as it is.

In: a pipeline, a grid of values.
Out: `combine`, `sweep`, and their tables.
Imports: `pipeline` and its rooms, `models`, `compute`.
"""
