"""Which version of a model serves: registered, judged by the gate, released, and rolled back.

In: model packages, rows with labels that no model has learned from, and goals.
Out: `Registry` of versions with aliases and a history, `Verdict` of `judge`, `release`, a DVC pointer.
Imports: describe, evaluation, tracking, models.package and what is below them.
"""
