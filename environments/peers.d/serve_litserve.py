"LitServe: one worker, which takes what has queued as a batch"

import litserve
import numpy as np
from common import PORT, scorer


class Bench(litserve.LitAPI):
    def setup(self, device):
        self.score = scorer()

    def decode_request(self, request):
        return np.array(request["instances"], np.float32)

    def predict(self, x):
        return self.score(x)

    def encode_response(self, scores):
        return {"predictions": scores.tolist()}


if __name__ == "__main__":
    litserve.LitServer(Bench(), accelerator="cpu", workers_per_device=1, timeout=30).run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
    )
