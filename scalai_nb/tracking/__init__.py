"""Says what happened to the trackers, and keeps it until they listen.

In: a `Record` of a run, a step or a trial.
Out: files in a spool (`record`, `waiting`), sent by `deliver` to MLflow or Weights & Biases.
MLflow's SQLite file is read in `mlflow_file` alone.
Imports: errors, types, environment and files.
"""
