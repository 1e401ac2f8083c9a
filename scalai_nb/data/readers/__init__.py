"""What people have, in blocks: files, databases and grids, each kind in one small file.

In: an address, as `sales/*.csv.gz` or `postgresql://host/shop::orders`; columns; options.
Out: `read_source`, which gives `Blocks`; `register` adds a reader.
Imports: the ground, `compute` (arrow, blocks, cuts) and `data` (sources, opening).
"""
