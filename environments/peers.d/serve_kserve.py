"KServe's Python server: v1 and v2 over REST, v2 over gRPC"

import numpy as np
from common import GRPC_PORT, NAME, PORT, scorer
from kserve import InferOutput, InferResponse, Model, ModelServer


class Bench(Model):
    def __init__(self):
        super().__init__(NAME)
        self.score, self.ready = scorer(), True

    async def predict(self, payload, headers=None, response_headers=None):
        if isinstance(payload, dict):
            return {"predictions": self.score(np.array(payload["instances"], np.float32)).tolist()}
        scores = self.score(payload.inputs[0].as_numpy().astype(np.float32, copy=False))
        output = InferOutput("score", list(scores.shape), "FP32")
        output.set_data_from_numpy(scores, binary_data=False)
        return InferResponse(payload.id or "1", NAME, [output])


ModelServer(http_port=PORT, grpc_port=GRPC_PORT, workers=1, enable_latency_logging=False).start(
    [Bench()]
)
