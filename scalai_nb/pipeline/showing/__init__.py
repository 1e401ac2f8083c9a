"""What a report and a page show of a pipeline: its goals with lights, its notebooks as lessons.

In: contracts, records of runs, the histories of models, executed notebooks; nothing is written.
Out: `Light` and its card, a notebook as HTML, its main picture, what changed between two versions.
Imports: `models`, the pipeline's steps, runs and outputs, and the ground.
"""
