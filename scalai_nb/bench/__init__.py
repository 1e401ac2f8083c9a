"""Measurements beside peers, which no user's system needs.

In: names of cases, a scale, a number of rounds.
Out: figures as JSON and tables, by `scalai bench`.
Imports: every room below `commands`.
"""
