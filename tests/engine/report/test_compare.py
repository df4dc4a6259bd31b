"""Several runs on one page: seeds are grouped, what varies is found, and only comparable runs are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.run import RunConfig
from engine.report.compare import compare, grids, groups, incomparable, varied_keys
from engine.report.compare_page import content, write_comparison
from engine.report.run_data import RunData, read_run
from tests.engine.report.pages import ATTACKS, Page
from tests.runs import PROMPTS, fake_config, finished

pytestmark = pytest.mark.usefixtures("memory_is_durable_enough")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, memory_is_durable_enough: None) -> list[RunData]:
    """Two values of eta x two learning rates, and two more seeds of the first of them."""
    folder = tmp_path_factory.mktemp("sweep")
    cells = [(eta, lr, 0) for eta in (1.0, 1000.0) for lr in (0.0, 0.3)] + [(1.0, 0.0, 1), (1.0, 0.0, 2)]
    return [read_run(finished(small(folder, f"e{eta:g}-l{lr:g}-{seed}", eta, lr, seed))) for eta, lr, seed in cells]


def small(
    folder: Path, name: str, eta: float = 1.0, lr: float = 0.0, seed: int = 0, scorer: str = "utility"
) -> RunConfig:
    """One iteration over four prompts; `scorer` is the evaluator, a function of actors.fakes or of this module."""
    module = "actors.fakes" if scorer == "utility" else __name__
    return fake_config(
        folder,
        name=name,
        seed=seed,
        iterations=1,
        shard_size=4,
        prompts={**PROMPTS, "limit": 4},
        algorithm={"name": "sppo", "eta": eta},
        learner={"batch_size": 2, "zero_stage": 0, "optimizer": {"name": "adamw", "lr": lr}},
        evaluation={"prompts": PROMPTS, "scorer": {"kind": "rule", "function": f"{module}:{scorer}"}},
    )


def test_what_varies_is_found_apart_from_seed_name_and_folder(sweep: list[RunData]):
    assert varied_keys(sweep) == ["algorithm.eta", "learner.optimizer.lr"]
    found = groups(sweep)
    assert [len(group.runs) for group in found] == [3, 1, 1, 1]
    assert found[0].name == "eta = 1.0, lr = 0.0"
    assert found[1].name == "e1-l0.3-0"


def test_a_group_of_seeds_has_a_t_interval_and_one_run_that_of_its_prompts(sweep: list[RunData]):
    several, one, *_ = groups(sweep)
    seeds = [run.summary.iterations[0].win_rate_start for run in several.runs]
    rate = several.final()
    assert rate is not None and all(seeds)
    assert rate.value == pytest.approx(sum(seed.value for seed in seeds if seed) / 3)
    assert one.final() == one.runs[0].summary.iterations[0].win_rate_start


def test_two_varied_keys_make_a_grid_with_numbers_in_order(sweep: list[RunData]):
    [grid] = grids(groups(list(reversed(sweep))))
    assert {grid.row_key: grid.rows, grid.column_key: grid.columns} == {
        "algorithm.eta": (1.0, 1000.0), "learner.optimizer.lr": (0.0, 0.3)}  # fmt: skip
    assert len(grid.cells) == 4


def test_a_policy_that_does_not_learn_is_not_called_different_from_itself(sweep: list[RunData]):
    """Learning rate 0 with two values of eta: the same answers, so no difference; paired by prompt."""
    found = [group for group in groups(sweep) if group.values["learner.optimizer.lr"] == 0.0 and len(group.runs) == 1]
    [pair] = compare([*found, *groups(sweep[:1])])
    assert pair.difference is not None and pair.difference.is_paired
    assert (pair.difference.mean, pair.difference.p_value, pair.corrected) == (0.0, 1.0, 1.0)


def test_runs_whose_start_or_evaluator_differs_are_not_compared(sweep: list[RunData], tmp_path: Path):
    other = read_run(finished(small(tmp_path, "other", scorer="by_length")))
    one, two = groups(sweep[:1]), groups([other])
    assert "evaluators differ" in incomparable(one[0], two[0])
    [pair] = compare([*one, *two])
    assert (pair.difference, pair.corrected) == (None, None)
    page = content([sweep[0], other])
    assert any("not comparable: their evaluators differ" in cell for row in page["differences"][1] for cell in row)


def by_length(messages: list[dict[str, str]], answers: list[str]) -> list[float]:
    """Another evaluator."""
    return [float(len(answer)) for answer in answers]


def test_the_page_says_which_is_best_and_what_is_significant(sweep: list[RunData], tmp_path: Path):
    path = write_comparison(sweep, tmp_path / "new folder" / "page.html")
    text = Page(path.read_text()).text
    for words in (
        "6 runs compared", "is best: it wins", "Which differences are significant", "Holm's method", "Sweep",
        "t-interval over its seeds", "rows: algorithm.eta", "held-out prompts that all runs answered",
    ):  # fmt: skip
        assert words in text, words


def test_what_models_write_is_no_markup_on_this_page_either(poisoned: Path, tmp_path: Path):
    data = read_run(poisoned)
    page = Page(write_comparison([data, data], tmp_path / "page.html").read_text())
    assert page.tags().count("script") == 1 and not {"img", "iframe", "form", "base", "math"} & set(page.tags())
    assert any(attack in page.text for attack in ATTACKS[:4])
