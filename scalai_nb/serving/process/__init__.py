"""The processes of a service: a supervisor, workers that answer, and a keeper for the rest.

In: names of registered models (`Options`); the registry, whose aliases move (`following`).
Out: a service at a port (`serve`, `running`), its `routes.json`, `state.json` and metrics.
Imports: the ground, models.registry, serving.scoring, serving.log, serving.app, serving.wire.
"""
