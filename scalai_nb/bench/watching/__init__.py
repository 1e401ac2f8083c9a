"""How rarely a monitor is wrong, how soon it is right, and what it costs, beside its peers.

In: a scale and a number of rounds.
Out: figures by `scalai bench watch`: alarms without a change, windows until one is found, seconds.
Imports: `bench`, and every room below `commands`.
"""
