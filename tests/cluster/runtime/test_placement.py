"""What the roles need of a cluster, and the sentence that names what is missing."""

from __future__ import annotations

import pytest

from cluster.plan.machines import Need, share, shortages

ROLES = {
    "generator": Need(8, cpus=4, gpus=1),
    "scorer": Need(4, cpus=2, gpus=0.5),
    "learner": Need(8, cpus=4, gpus=1, strategy="PACK"),
}


def test_the_shared_bundles_of_colocated_roles_have_the_largest_need_of_each_resource():
    assert share(ROLES) == Need(8, cpus=4, gpus=1, strategy="PACK")
    assert share({"a": Need(2, 1, 4), "b": Need(5, 3, 0)}) == Need(5, 3, 4, "PACK")


def test_the_needs_of_disaggregated_roles_add_up():
    assert shortages(ROLES, colocated=False, available={"CPU": 72, "GPU": 18}) == []
    assert shortages(ROLES, colocated=False, available={"CPU": 72, "GPU": 17}) == [
        "18 GPUs needed (generator 8, scorer 2, learner 8), 17 available"
    ]


def test_the_needs_of_colocated_roles_do_not_add_up():
    assert shortages(ROLES, colocated=True, available={"CPU": 32, "GPU": 8}) == []
    assert shortages(ROLES, colocated=True, available={"CPU": 31, "GPU": 8}) == [
        "32 CPUs needed (8 bundles of 4 shared by all roles: generator 32, scorer 8, learner 32), 31 available"
    ]


def test_every_resource_that_is_short_is_named():
    lines = shortages(ROLES, colocated=False, available={})
    assert [line.split()[1] for line in lines] == ["CPUs", "GPUs"]


@pytest.mark.parametrize("parts", [3, 7, 10])
def test_fractions_that_add_up_to_one_fit_into_one(parts):
    """0.1 ten times is not 1.0 in floating point."""
    roles = {str(i): Need(1, cpus=1 / parts, gpus=0) for i in range(parts)}
    assert shortages(roles, colocated=False, available={"CPU": 1}) == []


def test_roles_without_needs_fit_any_cluster():
    assert shortages({"rule": Need(3, cpus=0, gpus=0)}, colocated=False, available={}) == []
