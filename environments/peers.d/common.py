"What the scripts of all peers share: where to listen, the model on one thread, its name"

import os

MODEL, PORT, GRPC_PORT, METRICS_PORT = (
    os.environ["PEER_MODEL"],
    *(int(os.environ[f"PEER_{name}PORT"]) for name in ("", "GRPC_", "METRICS_")),
)
NAME = "bench"


def scorer():
    "A function from (row, 50) float32 to (row,) scores"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0].ravel()
