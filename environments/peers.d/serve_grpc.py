"grpc.aio alone, with the least that answers a ModelInfer"

import asyncio

import grpc
import numpy as np
from common import GRPC_PORT, scorer
from tritonclient.grpc import service_pb2, service_pb2_grpc

score = scorer()


class Bench(service_pb2_grpc.GRPCInferenceServiceServicer):
    async def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelInfer(self, request, context):
        scores = score(
            np.frombuffer(request.raw_input_contents[0], np.float32).reshape(
                request.inputs[0].shape
            )
        )
        output = service_pb2.ModelInferResponse.InferOutputTensor(
            name="score", datatype="FP32", shape=scores.shape
        )
        return service_pb2.ModelInferResponse(
            model_name=request.model_name,
            id=request.id,
            outputs=[output],
            raw_output_contents=[scores.tobytes()],
        )


async def main():
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Bench(), server)
    server.add_insecure_port(f"127.0.0.1:{GRPC_PORT}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
