"""What a step notebook says, read without running it.

In: the cells of a notebook, as text.
Out: `Parameter` and the words of a contract, the normal form of code, `closure`.
Imports: `goals`, `errors`.
"""
