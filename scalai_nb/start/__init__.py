"""What a project begins with: a file becomes a system of notebooks, a notebook becomes a step.

In: a file, or notebooks.
Out: `Project`, a folder with contract, goals, notebooks and tests; `Proposal`, a contract cell.
Imports: every room below `export`.
"""
