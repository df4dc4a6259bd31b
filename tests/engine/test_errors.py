"""Errors keep their words on their way between processes."""

from __future__ import annotations

import pickle

import pytest

from engine import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.KumiteError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_from_another_process_as_it_was_raised(kind: type[errors.KumiteError]) -> None:
    error = kind(["a: is wrong", "b: is wrong too"]) if kind is errors.ConfigError else kind("a: is wrong")
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is kind and str(arrived) == str(error)
