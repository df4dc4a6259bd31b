"""The stand-ins are a real policy in miniature, and as strict as what they stand in for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.fakes import END, LETTERS, FakeChat, FakeGenerator, FakeLearner, letter_logps, make_fake_policy, utility
from engine.algorithms.sppo import SPPO
from engine.config.run import LearnerConfig, SamplingConfig
from engine.errors import SchemaError, WeightsError
from engine.schema import NO_DATASET_COMPLETIONS, PROMPTS, REF_LOGPS, SELECTED
from engine.store.weights import weights_digest

CONFIG = LearnerConfig.model_validate({"batch_size": 2, "zero_stage": 0, "optimizer": {"lr": 0.1}})


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return make_fake_policy(tmp_path / "policy", [0.5, -0.25, 0.0, 1.0, 0.0, 0.0, -1.0, 0.0])


def prompts(count: int = 3) -> pa.Table:
    rendered = [FakeChat().render([{"role": "user", "content": f"q{i}"}]) for i in range(count)]
    values = {
        "prompt_id": [f"p{i}" for i in range(count)],
        "messages": [[{"role": "user", "content": f"q{i}"}] for i in range(count)],
        "prompt_text": [text for text, _ in rendered],
        "prompt_token_ids": [ids for _, ids in rendered],
        **{name: [[]] * len(rendered) for name in NO_DATASET_COMPLETIONS},
    }
    return pa.Table.from_pydict(values, PROMPTS)


def serving(policy: Path, seed: int = 0, **sampling: int) -> FakeGenerator:
    generator = FakeGenerator(SamplingConfig(**{"num_samples": 3, **sampling}), seed)
    generator.deliver(str(policy), weights_digest(policy), [[1]], [[0, 1]], probe_of(policy))
    return generator


def probe_of(policy: Path) -> list[list[float]]:
    """What the learner knows of the probe answer [0, 1]."""
    return [letter_logps(policy)[[0, 1]].tolist()]


def rows(answers: list[list[list[int]]]) -> pa.Table:
    count = len(answers)
    values = {
        "prompt_id": [f"p{i}" for i in range(count)],
        "prompt_token_ids": [[1]] * count,
        "completion_index": [[0, 1]] * count,
        "completion_token_ids": answers,
        "win_rate": [[0.9, 0.1]] * count,
        "baseline": [0.5] * count,
    }
    return pa.Table.from_pydict(values, SELECTED)


def with_ref_logps(learner: FakeLearner, answers: list[list[list[int]]]) -> pa.Table:
    table = rows(answers)
    return table.append_column("ref_logps", pa.array(learner.ref_logps(table))).cast(REF_LOGPS)


def test_the_rule_counts_one_letter():
    assert utility([], ["", "a", "banana"]) == [0.0, 1.0, 3.0]


def test_answers_carry_their_log_probabilities_and_end_as_they_say(policy):
    logps = letter_logps(policy)
    assert np.exp(logps).sum() == pytest.approx(1.0)
    for row in serving(policy, max_new_tokens=4).generate(prompts(20), 1).to_pylist():
        for text, ids, logp, reason in zip(
            row["completions"], row["completion_token_ids"], row["completion_logps"], row["finish_reasons"], strict=True
        ):
            assert len(ids) <= 4
            assert (reason == "stop") == (ids[-1:] == [END])
            assert text == "".join(LETTERS[i] for i in ids if i != END)
            assert logp == pytest.approx(sum(logps[i] for i in ids if i != END))


def test_an_answer_depends_on_its_seed_alone(policy):
    whole = serving(policy).generate(prompts(3), 1)
    assert serving(policy).generate(prompts(3).slice(1, 1), 1).equals(whole.slice(1, 1))
    for other in (serving(policy).generate(prompts(3), 2), serving(policy, seed=1).generate(prompts(3), 1)):
        assert not set(np.ravel(other["seeds"].to_pylist())) & set(np.ravel(whole["seeds"].to_pylist()))


def test_a_generator_without_weights_or_asleep_answers_nothing(policy):
    with pytest.raises(WeightsError, match="has no weights: deliver them"):
        FakeGenerator(SamplingConfig(), 0).generate(prompts(), 1)
    generator = serving(policy)
    generator.sleep()
    with pytest.raises(WeightsError, match="has no weights: deliver them"):
        generator.generate(prompts(), 1)


def test_a_generator_refuses_other_weights_than_announced_and_other_tables_than_declared(policy):
    with pytest.raises(WeightsError, match="f" * 12):
        serving(policy).deliver(str(policy), "f" * 64, [[1]], [[0, 1]], probe_of(policy))
    with pytest.raises(WeightsError, match="differ from the learner's"):
        serving(policy).deliver(str(policy), weights_digest(policy), [[1]], [[1, 0]], probe_of(policy))
    with pytest.raises(SchemaError, match="fake generator: missing columns"):
        serving(policy).generate(prompts().drop_columns(["messages"]), 1)


def test_the_learner_knows_the_log_probabilities_that_the_generator_reported(policy):
    answers = serving(policy).generate(prompts(), 1).to_pylist()
    learner = FakeLearner(CONFIG, SPPO(), 0)
    learner.open(str(policy))
    table = rows([row["completion_token_ids"][:2] for row in answers])
    expected = [row["completion_logps"][:2] for row in answers]
    assert np.array(learner.ref_logps(table)) == pytest.approx(np.array(expected), abs=1e-12)


def test_its_gradient_is_that_of_the_loss(policy):
    """Central differences of the summed log-probability."""
    learner = FakeLearner(CONFIG, SPPO(), 0)
    learner.open(str(policy))
    answer, step = [[0, 0, 3, END]], 1e-6
    slope = learner._logps(answer)[1][0]
    for letter in range(len(LETTERS)):
        values = []
        for sign in (1, -1):
            learner._logits[letter] += sign * step
            values.append(learner._logps(answer)[0][0])
            learner._logits[letter] -= sign * step
        assert slope[letter] == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6)


def test_a_learner_that_continues_from_a_checkpoint_arrives_at_the_same_bytes(policy, tmp_path):
    def begun() -> FakeLearner:
        learner = FakeLearner(CONFIG, SPPO(eta=10.0), 0)
        learner.open(str(policy))
        answers = [[[0, END], [1, END]], [[0, 0, END], [2, END]], [[0, 3, END], [6, END]]]
        assert learner.begin([with_ref_logps(learner, answers)], 1) == {"num_steps": 2, "num_rows": 3}
        return learner

    for name in ("whole", "checkpoint", "resumed"):
        (tmp_path / name).mkdir()
    whole = begun()
    metrics = whole.advance(2)
    whole.save_weights(str(tmp_path / "whole"), 2, [], [])
    first = begun()
    first.save_checkpoint(str(tmp_path / "checkpoint"), 1)
    second = begun()
    second.load_checkpoint(str(tmp_path / "checkpoint"))
    assert second.advance(2) == metrics[1:]
    second.save_weights(str(tmp_path / "resumed"), 2, [], [])
    assert weights_digest(tmp_path / "whole") == weights_digest(tmp_path / "resumed") != weights_digest(policy)
    assert letter_logps(tmp_path / "whole")[0] > letter_logps(policy)[0], "the winners have more of the first letter"
