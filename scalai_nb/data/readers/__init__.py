"""What people have, in blocks: files and grids, each kind in one small file; databases have a room.

In: an address, as `sales/*.csv.gz` or `postgresql://host/shop::orders`; columns; options.
Out: `read_source`, which gives `Blocks`; `register` adds a reader.
Imports: the ground, `compute` (arrow, blocks, cuts) and `data` (sources, opening).
"""
