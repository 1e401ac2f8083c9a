"Triton as PyTriton bundles it: its HTTP and gRPC in front of a process of Python"

import numpy as np
from common import GRPC_PORT, METRICS_PORT, NAME, PORT, scorer
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

score = scorer()


@batch
def infer(input):
    return {"score": score(input)[:, None]}


with Triton(
    config=TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        grpc_address="127.0.0.1",
        grpc_port=GRPC_PORT,
        metrics_port=METRICS_PORT,
    )
) as triton:
    triton.bind(
        NAME,
        infer,
        [Tensor(name="input", dtype=np.float32, shape=(50,))],
        [Tensor(name="score", dtype=np.float32, shape=(1,))],
        config=ModelConfig(
            max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
        ),
    )
    triton.serve()
