"""NVIDIA's run-time compiler and object reader, from wheels: CUDA C++ compiled without a card"""

import ctypes
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import astuple, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

CARDS = "sm_75", "sm_80", "sm_90", "sm_100", "sm_120"


@cache
def located(wheel: str, name: str) -> Path:
    "The file `name…` of an installed wheel"
    try:
        found = [f for f in files(wheel) or () if f.name.startswith(name)]
    except PackageNotFoundError:
        raise RuntimeError(f"{wheel} is not installed; run: pip install 'scalai-nb[dev]'") from None
    return Path(min(found, key=lambda f: len(f.name)).locate())


@cache
def library():
    "libnvrtc, which needs no driver"
    return ctypes.CDLL(str(located("nvidia-cuda-nvrtc", "libnvrtc.so")))


def _call(name, *args):
    if code := getattr(library(), name)(*args):
        raise RuntimeError(f"{name}: error {code}")


def compile(text: str, instances, card: str, options=("-std=c++17",)) -> bytes:
    "The machine code of the instances; RuntimeError with the compiler's log where it complains"
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    try:
        for instance in instances:
            _call("nvrtcAddNameExpression", program, instance.encode())
        words = [o.encode() for o in (f"--gpu-architecture={card}", *options)]
        code = library().nvrtcCompileProgram(
            program, len(words), (ctypes.c_char_p * len(words))(*words)
        )
        size = ctypes.c_size_t()
        _call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        _call("nvrtcGetProgramLog", program, log)
        if code or log.value.strip():
            raise RuntimeError(f"NVRTC for {card}: {log.value.decode()}")
        _call("nvrtcGetCUBINSize", program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        _call("nvrtcGetCUBIN", program, cubin)
        return cubin.raw
    finally:
        library().nvrtcDestroyProgram(ctypes.byref(program))


@dataclass(frozen=True)
class Usage:
    "Registers, bytes of stack and of spilled locals of a thread; static shared memory of a block"

    function: str
    registers: int
    stack: int
    local: int
    shared: int


def usage(cubin: bytes) -> list[Usage]:
    "What cuobjdump reads of each kernel"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [located("nvidia-cuda-cuobjdump", "cuobjdump"), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = re.findall(
        r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", done.stdout
    )
    return [
        Usage(name, int(reg), int(stack), int(local), int(shared))
        for name, reg, stack, shared, local in found
    ]


def known(text: str, instances, card: str, options, folder: Path) -> list[Usage]:
    "What the instances use, compiled unless `folder` knows it already"
    path = folder / (
        hashlib.sha256(repr((text, instances, card, options)).encode()).hexdigest()[:24] + ".json"
    )
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            json.dump([astuple(u) for u in usage(compile(text, instances, card, options))], file)
        os.replace(file.name, path)
    return [Usage(*u) for u in json.loads(path.read_text())]


def main():
    "Print what each kernel takes on each card"
    from scalai_nb.kernels import cuda
    from . import host

    print(
        f"{'source':10} {'card':7} {'kernels':>7} {'registers, at most':>18} {'stack':>6} "
        f"{'shared':>7}"
    )
    for name in sys.argv[1:] or cuda.MODULES:
        for card in CARDS:
            found = known(cuda.source(name), cuda.instances(name), card, cuda.OPTIONS, host.cache())
            print(
                f"{name:10} {card:7} {len(found):7} {max(u.registers for u in found):18} "
                f"{max(u.stack + u.local for u in found):6} {max(u.shared for u in found):7}"
            )


if __name__ == "__main__":
    main()
