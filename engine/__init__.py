"""The method: schemas, config, preference maths, algorithms, run store and loop.

Knows nothing of Ray, vLLM, DeepSpeed or any GPU; importing it is cheap.
"""

__version__ = "0.1.0"
