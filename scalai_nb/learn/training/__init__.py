"""Several models learn from the same rows; each row is judged by a model that has not seen it.

In: candidates by name, a dataset with its contract, goals.
Out: `train` and what it returns, `Training`; `split`, `check_leaks`, `importances`.
Imports: evaluation and the floors below it, and learn.features; learners come as candidates.
"""
