"""Records that keep coming, and how they land in the lake so that each counts once.

In: an address, as `kafka://host:9092/orders`; where to begin.
Out: `open_stream`, which gives a `Stream`, also for `reduce`; `land`, which lands it in the lake.
Imports: the ground, `compute` (arrow, blocks) and `data` (lake, rules, readers).
"""
