"""A folder of notebooks as a pipeline: the plan, the run, its record and its report.

In: notebooks with a contract cell, an environment.
Out: `Pipeline`, `Plan`, `run`, `Run`, the report; `In`, `Out`, `read` and `write` for steps.
Imports: `models`, `tracking` and the rooms below them; nothing above.
"""

from importlib import import_module

# The words of a contract cell, and the calls that a step needs. Names load on first use
# (PEP 562), so a contract cell costs no more than the names that it uses.
_WHERE = {
    "models.package.package": ["Model"],
    "pipeline.io": ["checkpoint", "read", "step_lake", "write"],
    "goals": ["Goal"],
    "pipeline.reading.parameter": ["File", "Fresh", "In", "Out", "Secret"],
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = [*_MODULE]


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module 'scalai_nb.pipeline' has no attribute {name!r}")
    return getattr(import_module(f"scalai_nb.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
