"""What other engines read, one small file a target: to serve a model, to watch over a project.

In: a version of the registry, or an environment with its pipelines and their goals.
Out: `export` and `files`: for Triton, KServe, Kubernetes; Prometheus, Alertmanager, Grafana.
Imports: `models`, `pipeline`, `serving`, the ground.
"""
