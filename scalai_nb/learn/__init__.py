"""Features and learners: transforms, linear models, trees, networks, and how they are compared.

In: datasets over `row`, in memory, lazy or of a lake; their contracts.
Out: estimators with scikit-learn's methods, transforms, and `train`.
Imports: the ground, kernels, data, compute, describe and evaluation.
"""
