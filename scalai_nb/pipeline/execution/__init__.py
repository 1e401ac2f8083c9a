"""One notebook executed in a kernel of its own.

In: a notebook, `Limits`, a `ForkServer`.
Out: events while it runs, a `Verdict` at the end.
Imports: `errors`.
"""
