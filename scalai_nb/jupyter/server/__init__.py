"""The server of the JupyterLab panel: run records, forms, datasets, models and kernels over REST.

In: requests of a signed-in user under the server's base URL; the project, which is only read.
Out: JSON, server-sent events; processes of `scalai`, which live on when the server ends.
Imports: any room but `commands` and `cli`; `jupyter_server` in `loading` and `handlers` alone.
"""


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    "Where a Jupyter server finds what to load"
    return [{"module": "scalai_nb.jupyter.server.loading"}]
