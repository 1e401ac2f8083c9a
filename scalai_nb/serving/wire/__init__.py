"""HTTP/1.1 on the event loop of a worker, and gRPC by grpcio at a port of its own.

In: bytes of clients, on a socket that all workers share; calls that grpcio brings.
Out: requests for the app, and its answers (`Server`, `GrpcServer`, `Accepting`).
Imports: serving.exchange, serving.protocols, serving.refusal.
"""
