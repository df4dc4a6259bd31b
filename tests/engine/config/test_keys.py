"""The keys that a configuration may have, as `--help` shows them."""

from __future__ import annotations

from engine.config.keys import all_keys, describe_most_used, meaning


def test_every_key_says_what_it_means() -> None:
    keys = {f"{key.path} [{key.variant}]": key for key in all_keys() if not key.path.startswith("algorithm.")}
    assert [name for name, key in keys.items() if not meaning(key)] == []


def test_the_short_help_has_the_default_and_the_meaning_of_the_most_used_keys() -> None:
    text = describe_most_used("dpo")
    assert "\nsampling.temperature    1.0           Sampling temperature" in text
    assert (
        "\nscorer.kind             null          pairrm or reward_model or rule or llm_blender or judge or ifeval."
        in text
    )
    assert "\nalgorithm.name          dpo " in text
    assert "beta = null" in text
