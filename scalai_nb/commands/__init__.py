"""The commands of `scalai` that have a room of their own: models, serving, tokens, export, benches.

In: words of a command line.
Out: typer apps and functions that `cli` collects.
Imports: every room below; nothing imports this one but `cli`.
"""
