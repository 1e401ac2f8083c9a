"""Registered models as a service: requests come in over HTTP and gRPC, scores go out in time.

In: `routes.json` (which versions are served) and requests of clients.
Out: scores, a log of predictions and feedback, and metrics (`App`, `HttpRequest`, `Refusal`).
Imports: models, tracking, learn, data, files; wire and app know each other by `HttpRequest`.
"""
