"""What a project begins with: a file becomes a system of notebooks, a notebook becomes a step.

In: a file, or notebooks.
Out: `Proposal`, a contract cell for a notebook that has none.
Imports: every room below `export`.
"""
