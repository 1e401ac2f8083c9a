"""What clients speak: each protocol is two functions, `decode` and `encode`, around a `Request`.

In: an `HttpRequest` or a message of protobuf, or scores for one.
Out: `Request`, answers, `ROUTES` and their documentation.
Imports: serving.scoring, serving.exchange, serving.refusal, serving.metrics.
"""
