"""HTTP/1.1, HTTP/2 and gRPC on the event loop; to be replaced by a maintained server.

In: bytes of clients, on a socket that all workers share.
Out: exchanges for the app (`Server`, `HttpExchange`, `Stream`, `Grpc`, `Accepting`).
Imports: serving.exchange, serving.protocols, serving.refusal.
"""
