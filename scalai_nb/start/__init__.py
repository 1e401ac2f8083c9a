"""What a project begins with: a file becomes a system of notebooks, a notebook becomes a step.

In: a file, or notebooks.
Out: `new`, a folder with a contract, goals, five notebooks and their tests.
Imports: every room below `export`.
"""
