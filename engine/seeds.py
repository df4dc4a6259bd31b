"""Seeds for every random choice, derived from names rather than drawn in sequence.

A seed depends on the purpose of the choice alone, so any shard can be computed again, in any order, on any machine.
One seed for a whole batch would be a mistake: vLLM then gives every prompt the same noise, and the K answers to
different prompts become copies of one draw.
"""

from __future__ import annotations

import hashlib


def derive_seed(*names: object) -> int:
    """Return a seed in [0, 2**31) that depends on the names alone, e.g. (run seed, "sample", 2, prompt id)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") >> 1
