"""From columns to what a model learns from: features, labels and weights, block by block.

In: datasets, arrays of NumPy, CuPy or Dask, and sources of blocks.
Out: `Transform` and its `recipes`; a `Fold` over any `rows`; classes and their weights (`labels`).
Imports: errors, kernels, compute, describe.
"""
