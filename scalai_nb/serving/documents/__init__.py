"""What a service says of itself: an OpenAPI document, and pages for people.

In: the table of routes and the models that are served.
Out: `/openapi.json`, `/docs`, `/metrics` and `/` (`pages`), and examples that work (`openapi`).
Imports: serving.protocols, serving.scoring, serving.metrics, serving.exchange.
"""
