"""What a service predicted and what came true: from the request to the lake, nothing lost.

In: batches and feedback of workers (`Journal`), without values that are about persons.
Out: datasets `NAME-predictions` and `NAME-feedback` (`compact`), and quality (`joined`, `quality`).
Imports: the ground, data, evaluation, serving.metrics, serving.scoring.
"""
