"""Code of kernels on disk: processes that start at once on an empty cache do not mix it up."""

import gc
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from toy import UNPRIVILEGED

from scalai_nb.kernels import columns, jit


def test_processes_that_compile_at_once_keep_their_own_code(tmp_path, monkeypatch):
    "Numba's own cache, beside ours, mixes them up: the code of int8 is that of uint8 for the next"
    source = tmp_path / "lowest.py"
    source.write_text(
        "def lowest(x):\n    low = x[0]\n    for v in x: low = min(low, v)\n    return low\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    lowest = importlib.import_module("lowest").lowest

    def found(compiled):
        "What a third process reads after two that began with an empty cache; the second saves last"
        first, second, third = compiled(lowest), compiled(lowest), compiled(lowest)
        for one in (first, second):
            monkeypatch.setattr(one._cache._cache_file, "_load_index", dict)
        write = second._cache._cache_file._save_data
        monkeypatch.setattr(
            second._cache._cache_file,
            "_save_data",
            lambda *args: (first(np.array([-1], np.int8)), write(*args)),
        )
        second(np.array([1], np.uint8))
        return third(np.array([-1], np.int8))

    assert (
        found(numba.njit(cache=True)) == 255
    )  # should Numba mend it, kernels/jit is no longer needed
    shutil.rmtree(tmp_path / "__pycache__")
    assert found(jit.njit) == -1


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "u1", "?"])
def test_what_is_read_only_is_no_other_type(dtype):
    "pandas, Arrow and workers hand out nothing else: every kernel would be compiled twice"
    x = np.arange(1000).astype(dtype)
    columns.scan(x)
    scans = columns._scan_floats, columns._scan_whole
    before = [len(kernel.signatures) for kernel in scans]
    x.flags.writeable = False
    assert columns.scan(x) == columns.scan(x.copy())
    assert [len(kernel.signatures) for kernel in scans] == before


def test_a_view_keeps_its_memory():
    x = np.arange(100_000.0)
    x.flags.writeable = False
    view = jit.mutable(x)
    assert view.flags.writeable and np.shares_memory(view, x)
    expected = x.copy()
    del x
    gc.collect()
    others = [np.full(100_000, -1.0) for _ in range(20)]
    assert len(others) == 20 and (view == expected).all()


def test_a_home_and_a_package_that_cannot_be_written_cost_a_compilation_and_nothing_else(tmp_path):
    home = tmp_path / "home"
    for name in ("closed", "late"):
        (home / name).mkdir(parents=True)
        (home / name / f"{name}.py").write_text("def plus(x): return x + 1")
    code = """if True:
        import os, sys, warnings
        from scalai_nb.kernels.jit import njit
        sys.path += ["closed", "late"]
        sys.dont_write_bytecode = True
        import late
        plus = njit(late.plus)
        for folder in ("closed", "late", "late/__pycache__", "."):
            os.chmod(folder, 0o555)
        assert plus(1) == 2
        import closed
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert njit(closed.plus)(1) + njit(closed.plus)(2) == 5
        print(*[w.message for w in said], os.listdir("late/__pycache__"))
    """
    variables = {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-c", code],
        cwd=home,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    for folder in (home, *home.rglob("*/")):
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Set NUMBA_CACHE_DIR") == 1 and done.stdout.endswith("[]\n")
