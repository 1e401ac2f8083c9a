"""What becomes of a fitted estimator: one package, searched, slimmed, versioned and released.

In: transforms and estimators that have learnt; rows to judge them on.
Out: a `Model` (`package`), versions (`registry`), a smaller one (`slim`), parameters (`search`).
Imports: the ground, `data`, `compute`, `describe`, `evaluation`, `learn` and `tracking`.
"""
