"""Jupyter: kernels of environments, magics, dashboards, and docstrings written at export.

In: environments, the lake and the run records, which are only read; exported cells.
Out: `kernels.install`, the magics, pages of `dash` that `voila.serve` serves, `Docstrings`.
Imports: any room but `commands` and `cli`.
"""
