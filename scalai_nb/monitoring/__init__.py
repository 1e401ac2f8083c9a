"""What a system that runs tells of itself: what has changed, how sure that is, who is told.

In: counts and summaries of windows of rows, beside those that a model learned from.
Out: `evidence`, which is 1 or less on average while nothing changes; alarms with a stated rate.
Imports: the ground, `describe`, `evaluation`, `models`, `pipeline`, `serving` and what is below.
"""
