"""Seeds come from names, so that any piece of a run can be computed again alone."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from engine.seeds import derive_seed


@given(st.lists(st.one_of(st.text(), st.integers())))
def test_a_seed_fits_every_generator(names):
    assert 0 <= derive_seed(*names) < 2**31


def test_the_seeds_of_a_run_never_change_from_one_version_of_kumite_to_the_next():
    """First 31 bits of sha256("42\\x1fsample\\x1f1\\x1fabc\\x1f0"), by sha256sum."""
    text = b"42\x1fsample\x1f1\x1fabc\x1f0"
    script = "import hashlib,sys; print(int(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:8], 16) // 2)"
    done = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True, check=True)
    assert derive_seed(42, "sample", 1, "abc", 0) == int(done.stdout)


def test_every_name_counts_and_so_does_where_one_ends():
    names = [
        (0, "sample", 1, "p"),
        (1, "sample", 1, "p"),
        (0, "heldout_prompts", 1, "p"),
        (0, "sample", 2, "p"),
        ("0sample", 1),
    ]
    assert len({derive_seed(*each) for each in names}) == len(names)
    assert derive_seed("ab", "c") != derive_seed("a", "bc")


def test_the_answers_of_many_prompts_have_seeds_of_their_own():
    """Among 5,000 draws from 2^31, 0.006 collisions are expected."""
    seeds = {derive_seed(0, "sample", 1, f"prompt {p}", i) for p in range(1000) for i in range(5)}
    assert len(seeds) == 5000


def test_a_lone_surrogate_is_a_valid_name():
    assert derive_seed("\ud800") != derive_seed("\ud801")
