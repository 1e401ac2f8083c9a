"""The CUDA kernels on the host: their source compiled against simt.h, and a device to launch on"""

import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
import time
from contextlib import contextmanager
from functools import cache as once
from pathlib import Path

import numpy as np

from scalai_nb.kernels import cuda

HERE = Path(__file__).parent
ORDERS = "forward", "backward", "shuffled"  # in which threads and blocks take their turns
FLAGS = [
    "-std=c++17",
    "-g1",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused-variable",
    "-Wno-unused-function",
    f"-I{HERE}",
]
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CHECKERS = {  # name -> flags of the kernels, flags of the shim, flags of the link
    "memory": (SANITIZE, SANITIZE, SANITIZE),  # AddressSanitizer and UBSan
    "races": (
        ["-O1", "-fsanitize=thread"],
        ["-O2", "-DRACES"],
        [],
    ),  # ThreadSanitizer's instrumentation, the shim's own order of events
}


class SimtError(AssertionError):
    "What a checker, or the shim itself, has against a kernel; `by`: memory, races or shim"

    def __init__(self, said: str, by: str = "shim"):
        super().__init__(said)
        self.by = by


def compiler() -> str | None:
    "The C++ compiler, if there is one"
    return os.environ.get("CXX") or shutil.which("g++")


def cache() -> Path:
    "Where compiled kernels are kept between test runs, by the hash of all that goes into them"
    folder = Path(tempfile.gettempdir()) / f"scalai-simt-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def prune(days: float = 7):
    "Forget what was compiled for sources that nobody has run for days"
    for file in cache().iterdir():
        if file.is_file() and file.stat().st_mtime < time.time() - days * 86400:
            file.unlink(missing_ok=True)


@once
def _version() -> str:
    return subprocess.run([compiler(), "-dumpfullversion"], capture_output=True, text=True).stdout


def _compile(text: str, flags: list[str], link: tuple = ()) -> Path:
    "The object of a C++ text, or with objects to `link` the program"
    shim = (HERE / "simt.h").read_text()
    made = (
        cache()
        / hashlib.sha256(
            "\0".join([_version(), shim, text, *flags, *map(str, link)]).encode()
        ).hexdigest()[:24]
    )
    if made.exists():
        made.touch()
        return made
    work = Path(tempfile.mkdtemp(dir=cache()))
    try:
        (work / "kernels.cpp").write_text(text)
        command = [
            compiler(),
            *FLAGS,
            *flags,
            *([] if link else ["-c"]),
            "kernels.cpp",
            *map(str, link),
            "-o",
            "made",
        ]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise SimtError(f"{' '.join(command)}\n{done.stderr[-6000:]}")
        os.replace(work / "made", made)
    finally:
        shutil.rmtree(work)
    return made


def build(
    sources: dict[
        str, tuple[str, tuple]
    ],  # namespace ("" for none) -> source of a `.cu` and the instances wanted of it
    checker: str,  # of CHECKERS
) -> Path:
    "A program that runs those kernels on request; in a namespace: `namespace::instance`"
    of_kernels, of_shim, of_link = CHECKERS[checker]
    parts, names = ['#include "simt.h"'], []
    for space, (text, instances) in sources.items():
        parts.append(
            f'namespace {space} {{\n#line 1 "{space or "kernels"}.cu"\n{text}\n}}'
            if space
            else f'#line 1 "kernels.cu"\n{text}'
        )
        names += [f"{space}::{i}" if space else i for i in instances]
    parts.append(
        "void register_kernels() {\n" + "".join(f'  KERNEL("{n}", {n});\n' for n in names) + "}\n"
    )
    kernels, shim = (
        _compile("\n".join(parts), of_kernels),
        _compile((HERE / "simt.cpp").read_text(), of_shim),
    )
    return _compile("", of_link, (kernels, shim))


class Program:
    "A running program of `build`; it is started again after an error"

    def __init__(self, path: Path):
        self.path, self.process = path, None

    def start(self):
        options = {
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "UBSAN_OPTIONS": "print_stacktrace=0",
        }
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | options,
        )

    def close(self):
        if not self.process:
            return
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
        self.process = None

    def __call__(self, name: str, grid, block, args, shared: int, order: str, seed: int = 0):
        "Launch the kernel `name`; arrays among `args` are written as it writes them"
        if not self.process:
            self.start()
        words = [
            *grid,
            *[1] * (3 - len(grid)),
            *block,
            *[1] * (3 - len(block)),
            shared,
            ORDERS.index(order),
            seed,
            len(args),
            len(name.encode()),
        ]
        message = [struct.pack("<11I", *words), name.encode()]
        for x in args:
            array = isinstance(x, np.ndarray)
            if not array and not isinstance(x, np.generic):
                raise SimtError(
                    f"{name}: an argument is a {type(x).__name__}, not an array or a NumPy scalar"
                )
            kind = x.dtype.kind.upper() if array else x.dtype.kind
            if array:
                x = x.view(np.ndarray)
            message += [
                struct.pack(
                    "<c3xIQII",
                    kind.encode(),
                    x.itemsize,
                    x.nbytes,
                    x.ctypes.data % 16 if array else 0,
                    array,
                ),
                x.tobytes(),
            ]
        try:
            self.process.stdin.write(b"".join(message))
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        if self.process.stdout.read(1) != b"k":
            self._raise(name)
        for x in args:
            if isinstance(x, np.ndarray):
                x = x.view(np.ndarray)
                data = self.process.stdout.read(x.nbytes)
                if x.flags.writeable:
                    x[...] = np.frombuffer(data, x.dtype).reshape(x.shape)
                elif data != x.tobytes():
                    raise SimtError(f"{name} writes to an input")

    def _raise(self, name):
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        code = self.process.wait()
        self.process.stdout.close()
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace")
        self.errors.close()
        self.process = None
        raise SimtError(
            f"{name} (exit {code})\n{text[:3000]}",
            {64: "shim", 65: "shim", 66: "races"}.get(code, "memory"),
        )


PROGRAMS: dict[Path, Program] = {}


def program(sources: dict, checker: str) -> Program:
    "The program of `sources`, built and started once a session"
    path = build(sources, checker)
    return PROGRAMS.setdefault(path, Program(path))


def close():
    "End all programs"
    prune()
    for p in PROGRAMS.values():
        p.close()
    PROGRAMS.clear()


# ---- a device that is the host


class OnDevice(np.ndarray):
    "An array that behaves as CuPy's do: it meets none of the host, but through the device's `host`"

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **words):
        for x in inputs:
            if isinstance(x, np.ndarray) and not isinstance(x, OnDevice):
                raise TypeError(f"{ufunc.__name__} of an array on the device and one on the host")
        plain = {} if out is None else {"out": tuple(o.view(np.ndarray) for o in out)}
        result = getattr(ufunc, method)(
            *[x.view(np.ndarray) if isinstance(x, OnDevice) else x for x in inputs],
            **plain,
            **words,
        )
        return (
            out[0]
            if out is not None
            else result.view(OnDevice)
            if isinstance(result, np.ndarray)
            else result
        )

    def __array_function__(self, function, types, args, words):
        raise TypeError(f"numpy.{function.__name__} of an array on the device")

    def _refuse(self, *_):
        raise TypeError("an array on the device becomes a number of the host only through `host`")

    __bool__ = __float__ = __int__ = __index__ = tolist = _refuse


class Library:
    "NumPy's functions as on the device: its arrays in and out; only `asarray` takes the host's"

    ndarray = OnDevice

    def __getattr__(self, name):
        function = getattr(np, name)

        def plain(x):
            if isinstance(x, (list, tuple)):
                return type(x)(map(plain, x))
            if isinstance(x, OnDevice):
                return x.view(np.ndarray)
            if isinstance(x, np.ndarray) and name != "asarray":
                raise TypeError(f"{name} of an array on the host")
            return x

        def call(*args, **words):
            result = function(*map(plain, args), **{k: plain(v) for k, v in words.items()})
            return result.view(OnDevice) if isinstance(result, np.ndarray) else result

        return call


def put(x: np.ndarray) -> OnDevice:
    "A copy of `x` on the device"
    return np.array(x).view(OnDevice)


class Shim:
    "What `scalai_nb.kernels.cuda` takes for a device: `Library`'s arrays, kernels in the shim"

    library = Library()

    def __init__(
        self,
        checker: str,
        order: str,
        processors: int,
        sources: dict | None = None,
        space: str = "",
    ):
        self.checker, self.order, self.count, self.sources, self.space = (
            checker,
            order,
            processors,
            sources,
            space,
        )

    def processors(self):
        return self.count

    def shared_limit(self):
        return 0 if self.count == 1 else 227 * 1024  # both ways of what would take much

    def host(self, x):
        if not isinstance(x, (OnDevice, np.generic)):
            raise TypeError(f"host takes an array of the device, not a {type(x).__name__}")
        return np.array(x.view(np.ndarray) if isinstance(x, OnDevice) else x)

    def kernel(self, name: str, instance: str):
        run = program(self.sources or {"": (cuda.source(name), cuda.instances(name))}, self.checker)
        called = f"{self.space}::{instance}" if self.space else instance

        def start(grid, block, args, shared_mem=0):
            if shared_mem > max(cuda.SHARED, self.shared_limit()):
                raise SimtError(
                    f"{instance}: {shared_mem} bytes of shared memory are more than "
                    "a block may have"
                )
            run(called, grid, block, args, shared_mem, self.order)

        return start


@contextmanager
def device(
    checker: str = "memory",
    order: str = "forward",
    processors: int = 2,  # of the pretended card: few, so that blocks come back for more
    **where,  # sources and a namespace of `build`, in place of a kernel's own source
):
    "Within it, launchers run on the host"
    saved, cuda.DEVICE = cuda.DEVICE, Shim(checker, order, processors, **where)
    try:
        yield
    finally:
        cuda.DEVICE = saved
