"""What the data layer costs beside its peers.

In: a scale and a number of rounds.
Out: cases for `bench.compare`, by `scalai bench data`: contracts, arrivals, appends.
Imports: `bench`, and every room below `commands`.
"""
