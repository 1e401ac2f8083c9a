"""What a contract looks at: the facts of columns and keys, gathered in the pass that others share.

In: blocks of a dataset, and the limits that a contract sets.
Out: `facts`, what was seen of columns with examples of what is wrong; `uniqueness` of a key;
`Sieve`, which rows break which rule; `compared`, what changes between two contracts;
`taken_over`, what a schema of Pandera says.
Imports: the ground (errors, types), data.sources and compute.
"""
