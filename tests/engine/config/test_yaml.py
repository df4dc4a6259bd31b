"""YAML 1.2's scalars, places of values, and refusals of crafted files."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.config import load
from engine.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-7", 5e-7),
        ("1e6", 1e6),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("-1.", -1.0),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("+3", 3),
        ("~", None),
        ("", None),
        ("True", True),
        ("false", False),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'5e-7'", "5e-7"),
        ("=", "="),
        ("e5", "e5"),
        (".", "."),
        ("[1, no]", [1, "no"]),
        ("{on: 1, 5: 2}", {"on": 1, "5": 2}),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    read = load.parse_yaml(text, "x").plain()
    assert read == value
    assert type(read) is type(value)


def test_infinities_and_nan_are_numbers():
    assert load.parse_yaml("[.inf, -.INF, +.Inf]", "x").plain() == [math.inf, -math.inf, math.inf]
    assert math.isnan(load.parse_yaml(".nan", "x").plain())


def test_every_value_knows_its_line():
    layer = load.parse_yaml("a: 1\nb:\n  c:\n    - 5\n    - 6\n", "f.yaml")
    assert layer.place(("a",)) == "f.yaml:1"
    assert layer.place(("b", "c")) == "f.yaml:3"
    assert layer.place(("b", "c", 1)) == "f.yaml:5"
    assert layer.place(("b", "absent", "deeper")) == "f.yaml:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: the key 'a' is here twice; first at f.yaml:1"),
        ("a: !!python/object/apply:os.system ['true']", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !env HOME", "the tag '!env' is not allowed"),
        ("[1]: 2", "a key must be text"),
        ("a: !!int twelve", "'twelve' is not a value of type int"),
        ("a: b: c", "f.yaml:1: not YAML"),
        ("a: [1", "not YAML"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: not YAML: but found another document"),
        ("a: \x07", "not YAML"),
        ("[" * 100 + "]" * 100, "nested more than 32 deep"),
        ("&a [*a]", "aliases that contain themselves"),
        ("a: " + "x" * load.MAX_BYTES, "larger than 1048576 bytes"),
        ("a: " + "9" * 5000, "is not a value of type int"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_place(text, message):
    with pytest.raises(ConfigError) as caught:
        load.parse_yaml(text, "f.yaml")
    assert message in str(caught.value)


def test_aliases_that_multiply_are_stopped_before_memory_is_full():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]  # 10 ** 9 values
    with pytest.raises(ConfigError, match="more than 50000 values"):
        load.parse_yaml("\n".join(lines), "bomb.yaml")


def test_all_repeated_keys_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        load.parse_yaml("a: 1\na: 2\nb: {c: 1, c: 2}\n", "f.yaml")
    assert len(caught.value.problems) == 2


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_dumped_reads_back_the_same(value):
    assert load.parse_yaml(load.dump_yaml(value), "x").plain() == value


@given(st.sampled_from(["1e6", "5e-7", "0o17", "no", "1:30", "null", "~", "1_0", "", "-", "0x1"]))
def test_dumped_text_stays_text_for_readers_of_yaml_1_1_too(text):
    assert yaml.safe_load(load.dump_yaml({"a": text})) == {"a": text}
