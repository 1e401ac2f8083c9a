"""Looks for the parameters that do best, within a budget, on this machine or a cluster.

In: an objective or an estimator with rows; a space; a budget.
Out: a `Search` with its trials, by `search`; a journal of Optuna's that a later call resumes.
Imports: the ground, `evaluation`, `learn` and `tracking`.
"""
