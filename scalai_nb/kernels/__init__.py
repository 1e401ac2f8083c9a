"""What touches every row: a CPU twin in Numba, which is the specification, and a CUDA source.

In: contiguous NumPy or CuPy arrays of a block, which stay on their device.
Out: small arrays of the host, or arrays beside the block; `columns.py` and `cuda/columns.py` have
the same functions, `columns.cu` the source.
Imports: the ground.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

from ..errors import ParameterError

TWINS = {
    "numpy": "scalai_nb.kernels",
    "cupy": "scalai_nb.kernels.cuda",
}  # library of an array -> the package of kernels for it


def of(
    name: str,  # a module of kernels: columns, scores, features, linear, clusters or groups
    x: Any,  # an array of a block
) -> ModuleType:  # the module whose functions take arrays like `x`
    "The kernels `name` for where `x` lives; ParameterError for an array of another library"
    library = type(x).__module__.partition(".")[0]
    if library not in TWINS:
        raise ParameterError(
            f"A block holds an array of {library}; accepted: {', '.join(TWINS)}. "
            "Convert it, say with numpy.asarray."
        )
    return import_module(f"{TWINS[library]}.{name}")
