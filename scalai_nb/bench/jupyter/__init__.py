"""What JupyterLab's panel costs, and how soon a page of the dashboard is seen.

In: a number of runs, or a project.
Out: figures by `scalai bench jupyter` and `scalai bench visits`: seconds, a share of a core, bytes.
Imports: `bench`, `jupyter`, and every room below `commands`.
"""
