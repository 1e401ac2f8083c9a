"""What a step notebook imports: the words of its contract cell, and the three calls that it needs.

Names load on first use (PEP 562), so a contract cell costs no more than the names that it uses."""

from importlib import import_module

_WHERE = {
    "models.package": ["Model"],
    "pipeline.io": ["checkpoint", "read", "write"],
    "goals": ["Goal"],
    "pipeline.step": ["In", "Out", "Secret"],
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = [*_MODULE]


def __getattr__(name):
    if name not in _MODULE:
        raise AttributeError(f"module 'scalai_nb.pipeline' has no attribute {name!r}")
    return getattr(import_module(f"scalai_nb.{_MODULE[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
