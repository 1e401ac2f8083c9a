"""Objects that are looked into by hand: widgets for JupyterLab, Notebook 7 and Voila.

In: a summary, an evaluation, a pipeline, a client; clicks and keys.
Out: widgets whose traits a notebook reads; without widgets, say on GitHub, a table.
Imports: any room but `commands` and `cli`; anywidget where an explorer is made.
"""
