"""A registered model for another serving engine, one small file a target.

In: a version of the registry.
Out: `export` and `files`: what Triton, KServe or Kubernetes reads.
Imports: `models`, `serving`, the ground.
"""
