"""What the roles ask of a cluster, and the sentence that names what is missing."""

from __future__ import annotations

import pytest

from cluster.plan.machines import Need, share, shortages

ROLES = {
    "generator": Need(8, cpus=4, gpus=1),
    "scorer": Need(4, cpus=2, gpus=0.5),
    "learner": Need(8, cpus=4, gpus=1, strategy="PACK"),
}


def test_in_turns_one_set_of_bundles_serves_the_largest_wish_of_each_kind():
    assert share(ROLES) == Need(8, cpus=4, gpus=1, strategy="PACK")
    assert share({"a": Need(2, 1, 4), "b": Need(5, 3, 0)}) == Need(5, 3, 4, "PACK")


def test_side_by_side_the_wishes_add_up():
    assert shortages(ROLES, turns=False, available={"CPU": 72, "GPU": 18}) == []
    assert shortages(ROLES, turns=False, available={"CPU": 72, "GPU": 17}) == [
        "18 GPUs needed (generator 8, scorer 2, learner 8), 17 available"
    ]


def test_in_turns_they_do_not():
    assert shortages(ROLES, turns=True, available={"CPU": 32, "GPU": 8}) == []
    assert shortages(ROLES, turns=True, available={"CPU": 31, "GPU": 8}) == [
        "32 CPUs needed (8 bundles of 4 shared by all roles: generator 32, scorer 8, learner 32), 31 available"
    ]


def test_every_resource_that_is_short_is_named():
    lines = shortages(ROLES, turns=False, available={})
    assert [line.split()[1] for line in lines] == ["CPUs", "GPUs"]


@pytest.mark.parametrize("parts", [3, 7, 10])
def test_fractions_that_add_up_to_a_whole_fit_into_it(parts):
    """0.1 ten times is not 1.0 in floating point."""
    roles = {str(i): Need(1, cpus=1 / parts, gpus=0) for i in range(parts)}
    assert shortages(roles, turns=False, available={"CPU": 1}) == []


def test_roles_that_ask_for_nothing_fit_anywhere():
    assert shortages({"rule": Need(3, cpus=0, gpus=0)}, turns=False, available={}) == []
