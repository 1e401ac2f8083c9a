"""What a run consists of while it goes on: its record, its resources, an attempt at each step.

In: a plan, the environment.
Out: `Schedule`, `Attempt`, `RunRecorder`, `Resources`, the lock `exclusive`.
Imports: `pipeline.execution` and the files of `pipeline`, but for the runner; `compute`, `data`.
"""
