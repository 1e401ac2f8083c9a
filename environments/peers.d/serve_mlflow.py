"MLflow's own server, for an ONNX model that it has saved"

import os
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import onnx
from common import MODEL, PORT
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

folder, commands = tempfile.mkdtemp(prefix="scalai-peer-") + "/model", Path(sys.executable).parent
signature = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 50))]))
mlflow.onnx.save_model(
    onnx.load(MODEL),
    folder,
    signature=signature,
    onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
)
os.environ["PATH"] = f"{commands}:{os.environ['PATH']}"  # where it looks for its server
os.execv(
    commands / "mlflow",
    [
        "mlflow",
        "models",
        "serve",
        "-m",
        folder,
        "-h",
        "127.0.0.1",
        "-p",
        str(PORT),
        "-w",
        "1",
        "--env-manager",
        "local",
    ],
)
