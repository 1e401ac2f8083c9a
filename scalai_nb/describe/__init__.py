"""What is in the data, and has it moved: columns described and compared, at any size, in one pass.

In: datasets over `row` in whatever form `compute.reduce` takes; summaries kept from before.
Out: `summarize` and `Summary`, `drift` and `Drift`, `group_by` and `rolling`; sketches that merge.
Imports: the ground, `kernels`, `compute`, `data`.
"""
