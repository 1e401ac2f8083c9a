"""A real worker, in a process of its own, for tests of what it says over the wire"""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import xarray as xr

import scalai_nb as sn

_WORK = """
import json, socket, sys
from pathlib import Path
from scalai_nb.serving.process.options import Options
from scalai_nb.serving.process.worker import work
sock, folder, names, grpc_port, more = sys.argv[1:]
options = Options(tuple(names.split(",")), grpc_port=int(grpc_port) or None, **json.loads(more))
work(socket.socket(fileno=int(sock)), Path(folder), options,
     announce=lambda: print("ready", flush=True))
"""


def flights(rows: int = 400) -> xr.Dataset:
    "Columns of each kind, some values missing"
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "temp": (
                "row",
                np.where(rng.random(rows) < 0.1, np.nan, rng.normal(50, 20, rows)).astype(
                    np.float32
                ),
            ),
            "hour": ("row", rng.integers(5, 23, rows)),
            "time": ("row", np.datetime64("2013-01-01", "s") + rng.integers(0, 10**7, rows)),
            "night": ("row", rng.random(rows) < 0.2),
            "carrier": ("row", rng.choice(np.array(["AA", "UA", "é'\"", None], object), rows)),
            "late": ("row", rng.random(rows) < 0.3),
        }
    )


def late_model() -> sn.Model:
    "Numbers, a boolean, a time and a string"
    ds = flights()
    t = sn.Transform(numeric=["temp", "hour", "time", "night"], categorical=["carrier"]).fit(ds)
    return sn.package(
        t,
        sn.LogisticRegression().fit(t.transform(ds), ds.late.values),
        sn.Contract.infer(ds, label="late"),
        name="late",
    )


def plain_model() -> sn.Model:
    "Four numbers, without a contract; a regression"
    rng = np.random.default_rng(1)
    ds = xr.Dataset({n: ("row", rng.normal(size=200).astype(np.float32)) for n in "abcd"})
    t = sn.Transform(numeric=list("abcd")).fit(ds)
    return sn.package(
        t, sn.LinearRegression().fit(t.transform(ds), ds.a.values * 2 + ds.b.values), name="plain"
    )


@contextmanager
def worker(
    folder: Path,
    models: dict,
    canary: dict | None = None,
    grpc_port: int = 0,  # 0: it does not speak gRPC
    **options: object,  # of the service
):
    """The url of a worker that serves models by their names, as version 3 with the alias champion

    With a canary, it serves them once more as version 4.
    """
    (folder / "secret").write_bytes(b"0" * 32)
    routes = {}
    for name, model in models.items():
        path = model.save(folder / "packages" / name)
        digest = sha256((path / "manifest.json").read_bytes()).hexdigest()
        versions = {
            v: {"path": str(path), "digest": digest, "aliases": [alias]}
            for v, alias in (("3", "champion"), ("4", "challenger"))
            if v == "3" or canary
        }
        routes[name] = {"primary": "3", "canary": canary, "shadow": None, "versions": versions}
    (folder / "routes.json").write_text(json.dumps({"models": routes}))
    with socket.create_server(("127.0.0.1", 0)) as sock, (folder / "stderr").open("wb") as stderr:
        sock.setblocking(False)
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-c", _WORK),
                *(
                    str(sock.fileno()),
                    str(folder),
                    ",".join(models),
                    str(grpc_port),
                    json.dumps(options),
                ),
            ],
            pass_fds=[sock.fileno()],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
        )
        try:
            assert process.stdout.readline() == "ready\n", (folder / "stderr").read_text()
            scheme = "https" if options.get("tls_cert") else "http"
            yield f"{scheme}://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            process.terminate()
            process.communicate(timeout=40)
    assert process.returncode == 0 and not (folder / "stderr").read_text(), (
        folder / "stderr"
    ).read_text()
