"""What bodies become when they are decoded is bounded before it exists.

In: bodies of requests, as they came.
Out: whether one is light (`is_light`); of a large one, what it holds (`Decoder`), by turns.
Imports: serving.refusal, serving.exchange.
"""
