"""A fitted model as one file: an ONNX graph from raw columns to score, its card and its proof.

In: a fitted `Transform`, an estimator or a model from outside, and a `Contract`.
Out: `package` makes a `Model`; `runtime` opens one with nothing but NumPy and ONNX Runtime.
Imports: compute, evaluation, learn.features and what is below them.
"""
