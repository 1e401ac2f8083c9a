"""Learns with PyTorch from more rows than fit in memory, here or on the workers of a cluster.

In: rows as arrays, datasets or blocks; a module, or the sizes of a perceptron's layers.
Out: `Network`, a scikit-learn estimator; its `NetworkOptions` and `Checkpoint`.
Imports: the ground, `compute`, `learn.features`; PyTorch only when something is learnt.
"""
