"""Which version of a model serves: registered, judged by the gate, released, and rolled back.

In: model packages, rows with labels that no model has learned from, and goals.
Out: a `Registry` of versions and its history, a `Verdict` by `judge`, `release`, a DVC pointer.
Imports: evaluation, tracking, models.package and what is below them; describe for drift.
"""
