"""What keeps a lake well: checks, compaction, expiry, copies.

In: a lake, names of datasets, a rule of what stays.
Out: `Finding`s of a check, `Remains` that go, `Size`s, what was `Copied`, a `Compaction`.
Imports: the ground, and `data.lake` (lake, layout, repository and what they stand on).
"""
