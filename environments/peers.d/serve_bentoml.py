"BentoML: a service with one worker"

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
from common import PORT, scorer


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Bench:
    def __init__(self):
        self.score = scorer()

    @bentoml.api
    async def predict(self, instances: list[list[float]]) -> dict:
        return {"predictions": self.score(np.array(instances, np.float32)).tolist()}


if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    os.execv(
        command := str(Path(sys.executable).with_name("bentoml")),
        [command, "serve", "serve_bentoml:Bench", "--host", "127.0.0.1", "--port", str(PORT)],
    )
