"""A model made smaller, as far as no slice loses more than is allowed.

In: a model package, rows with labels that it has not learned from, goals and a tolerance.
Out: `slim` gives a `Slimming`: every try, what it costs on which slice, and what is proposed.
Imports: evaluation, models.package and what is below them.
"""
