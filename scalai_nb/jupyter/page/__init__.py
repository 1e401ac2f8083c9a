"""What the page of a project is made of: how its models stand, and the histories of its goals.

In: an environment and a pipeline: contracts, records, registry and lake, which are only read.
Out: `Standing`, `History` and their parts of a page, which `jupyter.dash` puts together.
Imports: any room but `commands` and `cli`.
"""
