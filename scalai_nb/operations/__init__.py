"""Keeping a system well: what is missing on this machine, and what to do about it.

In: an `Environment`.
Out: `examine`, a list of `Check`.
Imports: every room below `jupyter`.
"""
