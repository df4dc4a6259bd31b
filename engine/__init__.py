"""The method: schemas, config, preference maths, algorithms, run store and loop.

Imports neither Ray nor vLLM nor DeepSpeed and needs no GPU; importing it is cheap.
"""

__version__ = "0.1.0"
