"""Seeds for every random choice, derived from names rather than drawn in sequence.

A seed depends on what it is for and on nothing else, so any shard can be computed again, alone, in
any order, on any machine. One seed for a whole batch would be a trap: vLLM gives every prompt the
same noise then, and the K answers of different prompts become copies of one draw.
"""

from __future__ import annotations

import hashlib


def derive_seed(*names: object) -> int:
    """Return a seed in [0, 2**31) that depends on the names alone, e.g. (run seed, "sample", 2, prompt id)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") >> 1
