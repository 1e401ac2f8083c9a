"""What a system that runs tells of itself: what has changed, what it is worth, who is told.

In: counts and summaries of windows of rows, beside those that a model learned from; labels.
Out: `evidence`, 1 or less on average while nothing changes; alarms; quality and estimates.
Imports: the ground, `describe`, `evaluation`, `models`, `pipeline`, `serving` and what is below.
"""
