"""What a Jupyter kernel of an environment does beside executing cells.

In: the environment, IPython's shell.
Out: limits of memory and cores, advice on errors, the account of a cluster, acting magics.
Imports: any room but `commands` and `cli`.
"""
