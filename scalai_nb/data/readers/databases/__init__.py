"""Tables and queries of databases in blocks, each as it was at one moment; one small file a driver.

In: an address, as `postgresql://reader@host/shop::orders`; a query; a password's variable.
Out: `source` of each, a `Relation` or its `Ranges`; `relations` is what they have in common.
Imports: the ground, `compute` (arrow, cuts) and `data/readers` (located, columnar).
"""
