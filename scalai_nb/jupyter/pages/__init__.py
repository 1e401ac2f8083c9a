"""The pages of a project for people without code: overview, operations, quality, drift, and so on.

In: an environment: contracts, records, registry and lake, which are only read.
Out: per page a state that is read once, the parts of it, and an app; files without a kernel.
Imports: any room but `commands` and `cli`.
"""
