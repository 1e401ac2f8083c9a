"""From checked rows to scores: who answers, in which batch, and whether in time.

In: packages of the registry, and rows of requests (`Rows`, `Call`).
Out: `Models`, `Engine`, `Admission` and `Lateness`; scores, or a `Refusal`.
Imports: serving.refusal, serving.metrics, models.package.
"""
