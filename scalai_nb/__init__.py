"""Make the folder of notebooks the system.

Names load on first use (PEP 562), so `import scalai_nb` costs next to nothing."""

from importlib import import_module

from scalai_nb.environment import Environment, environment

__version__ = "0.1.0"

_WHERE = {
    "data.contract": ["Contract"],
    "data.lake": ["Lake", "Version"],
    "data.sources": ["from_frame", "read_csv", "to_frame"],
    "compute.cluster": ["connect"],
    "compute.reduce": ["Mergeable", "reduce"],
    "learn.drift": ["Drift", "drift"],
    "learn.evaluation": ["Evaluation", "evaluate"],
    "learn.summary": ["Summary", "summarize"],
    "learn.transform": ["Transform"],
    "models.package": ["Model", "package"],
    "models.registry": ["Registry"],
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = ["Environment", "environment", *_MODULE]


def __getattr__(name):
    if name not in _MODULE:
        raise AttributeError(f"module 'scalai_nb' has no attribute {name!r}")
    return getattr(import_module(f"scalai_nb.{_MODULE[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
