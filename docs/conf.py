"""How Sphinx renders the site; docs/build.py lays out its pages and calls it"""

import scalai_nb

project = "scalai-nb"
author = "The scalai-nb developers"
release = scalai_nb.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"scalai-nb {release}"
html_copy_source = False
html_show_sourcelink = False
templates_path: list[str] = []
exclude_patterns: list[str] = []

nb_execution_mode = "off"  # notebooks are committed with their outputs
nb_ipywidgets_js: dict = {}  # no script from another host
nb_merge_streams = True
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have them
napoleon_google_docstring = False
python_use_unqualified_type_names = True
suppress_warnings = [
    "myst.xref_missing",  # links to folders of the repository
    "misc.highlighting_failure",
    "toc.not_included",
    "mystnb.unknown_mime_type",
    "docutils",  # docstrings are read by people first
]


def own_branch(app: object, page: str, template: str, context: dict, doctree: object) -> None:
    "Let the sidebar of a page open its own branch only: that of 260 pages takes half of the build"
    whole = context["toctree"]
    context["toctree"] = lambda **options: whole(**options | {"collapse": True})


def setup(app: object) -> None:
    "Called by Sphinx"
    app.connect("html-page-context", own_branch, priority=400)  # before the theme's
