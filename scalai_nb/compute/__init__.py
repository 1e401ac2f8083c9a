"""Data of any size, reduced block by block: in memory, on threads, on a cluster, over a stream.

In: datasets, lake versions, Parquet files, Arrow tables or iterators of these; a `Mergeable`.
Out: `reduce`, `Mergeable`, `check_mergeable`; `Blocks`; `connect`; `save` and `load` of a state.
Imports: the ground (errors, files, environment, show, types).
"""
