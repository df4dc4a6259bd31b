"""Tables keep to what is declared, and what does not is refused by name."""

from __future__ import annotations

import pyarrow as pa
import pytest

from engine import schema
from engine.errors import SchemaError
from engine.schema import (
    AGREEMENT,
    COMPLETIONS,
    HELDOUT_WIN_RATES,
    PROMPTS,
    REF_LOGPS,
    SCORES,
    SELECTED,
    append,
    conform,
)

WAYS = [(PROMPTS, COMPLETIONS), (COMPLETIONS, SCORES), (SELECTED, REF_LOGPS), (COMPLETIONS, HELDOUT_WIN_RATES)]
DECLARED = [PROMPTS, COMPLETIONS, SCORES, SELECTED, REF_LOGPS, AGREEMENT, HELDOUT_WIN_RATES]


def name_of(table: pa.Schema) -> str:
    return table.metadata[b"kumite_table"].decode()


def agreement_table(**columns: list) -> pa.Table:
    return pa.table({"prompt_id": ["a"], "agreements": [1.5], "comparable": pa.array([2], pa.int32())} | columns)


@pytest.mark.parametrize(("before", "after"), WAYS, ids=lambda table: name_of(table))
def test_a_stage_adds_columns_at_the_end_and_changes_none(before, after):
    assert len(after) > len(before)
    assert [after.field(i) for i in range(len(before))] == [before.field(i) for i in range(len(before))]


@pytest.mark.parametrize("declared", DECLARED, ids=name_of)
def test_every_table_says_what_it_is_and_names_no_column_twice(declared):
    assert declared.metadata[b"kumite_schema_version"] == str(schema.VERSION).encode()
    assert len(set(declared.names)) == len(declared.names)
    assert conform(declared.empty_table(), declared, "test").schema.equals(declared, check_metadata=True)


def test_the_tables_have_names_of_their_own():
    assert len({name_of(declared) for declared in DECLARED}) == len(DECLARED)


def test_columns_come_back_in_the_declared_order_and_type_with_the_tables_name():
    shuffled = pa.table({"comparable": pa.array([2], pa.int64()), "agreements": [1.5], "prompt_id": ["a"]})
    table = conform(shuffled, AGREEMENT, "test")
    assert table.schema.equals(AGREEMENT, check_metadata=True)
    assert table.to_pylist() == [{"prompt_id": "a", "agreements": 1.5, "comparable": 2}]


def test_missing_and_unexpected_columns_are_named_together_with_the_producer():
    table = agreement_table().rename_columns(["prompt_id", "agreement", "comparable"])
    with pytest.raises(
        SchemaError, match=r"scorer 3: missing columns \['agreements'\], unexpected columns \['agreement'"
    ):
        conform(table, AGREEMENT, "scorer 3")


def test_a_column_twice_is_refused():
    table = agreement_table().append_column("agreements", pa.array([0.5]))
    with pytest.raises(SchemaError, match="scorer 3"):
        conform(table, AGREEMENT, "scorer 3")


@pytest.mark.parametrize("agreements", [["many"], [[1.0]]])
def test_a_column_of_another_type_is_refused_with_what_was_expected(agreements):
    with pytest.raises(SchemaError, match=r"scorer 3: (?s:.*)expected (?s:.*)agreements: double"):
        conform(agreement_table(agreements=agreements), AGREEMENT, "scorer 3")


def test_a_number_that_does_not_fit_is_refused_rather_than_wrapped_around():
    with pytest.raises(SchemaError, match="scorer 3"):
        conform(agreement_table(comparable=[2**31]), AGREEMENT, "scorer 3")


def test_a_null_is_refused_with_its_column():
    with pytest.raises(SchemaError, match=r"scorer 3: columns \['agreements'\] hold nulls"):
        conform(agreement_table(agreements=pa.array([None], pa.float64())), AGREEMENT, "scorer 3")


def rows() -> pa.Table:
    values = {
        "prompt_id": ["a"],
        "prompt_token_ids": [[1]],
        "completion_index": [[0, 1]],
        "completion_token_ids": [[[2], [3]]],
        "win_rate": [[0.75, 0.25]],
        "baseline": [0.5],
        "weights": ["w"],
    }
    return pa.Table.from_pydict(values, SELECTED)


def test_append_adds_the_stages_columns():
    table = append(rows(), REF_LOGPS, "learner", ref_logps=[[-1.0, -2.0]])
    assert table.schema.equals(REF_LOGPS, check_metadata=True)
    assert table["ref_logps"].to_pylist() == [[-1.0, -2.0]]
    assert table.select(SELECTED.names).equals(rows())


def test_append_refuses_undeclared_columns_and_names_missing_ones():
    with pytest.raises(SchemaError, match="learner: unexpected column 'logps'"):
        append(rows(), REF_LOGPS, "learner", logps=[[-1.0, -2.0]])
    with pytest.raises(SchemaError, match=r"learner: missing columns \['ref_logps'\]"):
        append(rows(), REF_LOGPS, "learner")


@pytest.mark.parametrize("ref_logps", [[["low", "lower"]], [[-1.0], [-2.0]], [None]], ids=["type", "length", "null"])
def test_append_names_the_producer_of_values_that_do_not_fit(ref_logps):
    with pytest.raises(SchemaError, match="learner"):
        append(rows(), REF_LOGPS, "learner", ref_logps=ref_logps)


def test_a_null_inside_a_list_is_refused_too():
    with pytest.raises(SchemaError, match=r"learner: columns \['ref_logps'\] hold nulls"):
        append(rows(), REF_LOGPS, "learner", ref_logps=[[-1.0, None]])
