"""MLServer with a runtime of its own

MLSERVER_PARALLEL_WORKERS: whether the model is in the server's process (0) or in another (1).
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from common import GRPC_PORT, METRICS_PORT, NAME, PORT

RUNTIME = """
import numpy as np
from common import scorer
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Bench(MLModel):
    async def load(self):
        self.score = scorer()
        return True

    async def predict(self, payload):
        scores = self.score(NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, \
copy=False))
        return InferenceResponse(model_name=self.name, \
outputs=[NumpyCodec.encode_output("score", scores)])
"""
folder = Path(tempfile.mkdtemp(prefix="scalai-peer-"))
(folder / "runtime.py").write_text(RUNTIME)
(folder / "settings.json").write_text(
    json.dumps(
        {
            "host": "127.0.0.1",
            "http_port": PORT,
            "grpc_port": GRPC_PORT,
            "metrics_port": METRICS_PORT,
            "debug": False,
        }
    )
)
(folder / "model-settings.json").write_text(
    json.dumps({"name": NAME, "implementation": "runtime.Bench"})
)
os.chdir(folder)
os.execv(
    mlserver := str(Path(sys.executable).with_name("mlserver")), [mlserver, "start", str(folder)]
)
