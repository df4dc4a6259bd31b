"""Scorers turn completions into pair logits, name what decided, and say which prompt they could not score."""

from __future__ import annotations

import json
import random
import string
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer, DebertaV2Model, DebertaV2Tokenizer

from actors.scorers import builtin
from actors.scorers.base import plain_text
from actors.scorers.builtin import build_scorer, find_function
from actors.scorers.pairrm.inputs import Room
from actors.scorers.pairrm.model import PairRM
from actors.scorers.pairrm.training import new_pairrm
from engine.config.scorer import BlenderConfig, PairRMConfig, RuleConfig
from engine.errors import ConfigError, ModelError, RoleError, SchemaError
from engine.schema import COMPLETIONS, NO_DATASET_COMPLETIONS, SCORES

WORDS = ["what", "is", "a", "good", "answer", "the", "cat", "runs", "to", "question"]
ROOM = Room(source=24, answer=16)
NEEDS_LLM_BLENDER = pytest.mark.skipif(find_spec("llm_blender") is None, reason="llm-blender is not installed")
torch.set_num_threads(1)


def completions(answers: list[list[str]], contents: list[str] | None = None) -> pa.Table:
    """One row per list of answers, with a chat template's rendering around each prompt."""
    contents = contents or [f"question {row}" for row in range(len(answers))]
    rows = [
        {
            "prompt_id": f"p{row}",
            "messages": [{"role": "user", "content": content}],
            "prompt_text": f"<user> {content} <assistant>",
            "prompt_token_ids": [1, 2],
            **NO_DATASET_COMPLETIONS,
            "completions": texts,
            "completion_token_ids": [[3] for _ in texts],
            "completion_logps": [-1.0 for _ in texts],
            "finish_reasons": ["stop" for _ in texts],
            "seeds": list(range(len(texts))),
            "weights": "abc",
            "num_from_policy": len(answers),
        }
        for row, (texts, content) in enumerate(zip(answers, contents, strict=True))
    ]
    return pa.Table.from_pylist(rows, COMPLETIONS)


def tiny_pairrm() -> PairRM:
    vocab = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)]
    vocab += [("▁" + word, -3.0) for word in WORDS]
    vocab += [(c, -6.0) for c in dict.fromkeys(string.printable.strip() + "▁")]
    model = new_pairrm(DebertaV2Tokenizer(vocab=vocab), hidden_size=16, num_heads=2, room=ROOM, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pairrm")
    tiny_pairrm().save(folder)
    return str(folder)


def started(config) -> builtin.Scorer:
    scorer = build_scorer(config)
    scorer.start()
    return scorer


def sentence(rng: random.Random, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, high)))


# --- rules


def by_length(messages, answers, factor=1.0):
    return [factor * len(answer) for answer in answers]


def cyclic(messages, answers):
    return [[0, 1, -1], [-1, 0, 1], [1, -1, 0]]


def echo(messages, answers, result):
    return result


def divides_by_zero(messages, answers):
    return 1 / 0


def sees_the_conversation(messages, answers):
    assert messages == [{"role": "user", "content": "question 0"}]
    return np.array([1.0, 2.0])


def rule(function: str, **arguments) -> RuleConfig:
    return RuleConfig(function=f"{__name__}:{function}", arguments=arguments)


def test_a_rules_scores_become_differences():
    scored = started(rule("by_length")).score(completions([["a", "abc", "ab"], ["", "x", "x"]]))
    assert scored.schema.equals(SCORES, check_metadata=True)
    assert scored["pair_logits"].to_pylist() == [
        [[0, -2, -1], [2, 0, 1], [1, -1, 0]],
        [[0, -1, -1], [1, 0, 0], [1, 0, 0]],
    ]
    assert scored["num_truncated"].to_pylist() == [0, 0]
    assert scored["completions"].to_pylist() == [["a", "abc", "ab"], ["", "x", "x"]]


def test_a_rules_matrix_is_taken_as_it_is():
    scored = started(rule("cyclic")).score(completions([["a", "b", "c"]]))
    assert scored["pair_logits"].to_pylist() == [[[0, 1, -1], [-1, 0, 1], [1, -1, 0]]]


def test_a_rule_reads_the_conversation_and_may_return_numpy():
    scored = started(rule("sees_the_conversation")).score(completions([["a", "b"]]))
    assert scored["pair_logits"].to_pylist() == [[[0, -1], [1, 0]]]


def test_a_rules_id_names_the_function_and_changes_with_its_arguments():
    plain, doubled = started(rule("by_length")), started(rule("by_length", factor=2.0))
    assert plain.id == f"rule:{__name__}:by_length"
    assert doubled.id.startswith(plain.id + ":")
    assert doubled.score(completions([["a", "ab"]]))["scorer"].to_pylist() == [doubled.id]


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ([1.0], r"returned \[1.0\] of shape \(1,\); expected 2 scores or 2 x 2 pair logits"),
        ([[0.0, 1.0]], r"of shape \(1, 2\)"),
        (0.5, r"returned 0.5 of shape \(\)"),
        ([1.0, float("nan")], r"returned \[1.0, nan\], which is not finite"),
        ([1.0, float("inf")], r"returned \[1.0, inf\], which is not finite"),
        ([1e308, -1e308], "which is not finite"),
        ([[0.5, 0.9], [0.1, 0.5]], "diagonal is not 0; pair logits are log-odds, not probabilities"),
        (None, "returned None"),
        (["good", "bad"], r"returned \['good', 'bad'\], which are not numbers"),
        ([[0.0], [0.0, 1.0]], "which are not numbers"),
    ],
)
def test_what_a_rule_must_not_return_is_shown_with_function_and_prompt(result, complaint):
    with pytest.raises(RoleError, match=complaint) as error:
        started(rule("echo", result=result)).score(completions([["a", "b"]]))
    assert f"rule {__name__}:echo, prompt_id 'p0'" in str(error.value)


def test_an_exception_in_a_rule_names_function_and_prompt():
    with pytest.raises(RoleError, match=r"divides_by_zero, prompt_id 'p0': raised ZeroDivisionError: division by zero"):
        started(rule("divides_by_zero")).score(completions([["a", "b"]]))


@pytest.mark.parametrize(
    ("dotted", "complaint"),
    [
        (f"{__name__}:by_lenght", "has no function 'by_lenght'; nearest: by_length"),
        ("actors.scorersx:build", r"No module named 'actors.scorersx'; nearest: actors.scorers"),
        ("actorz.scorers:build", r"No module named 'actorz'; nearest: .*actors"),
        ("string:whitespace", "has no function 'whitespace'"),
    ],
)
def test_a_function_that_is_not_there_is_a_config_error_with_the_nearest_names(dotted, complaint):
    with pytest.raises(ConfigError, match=complaint):
        find_function(dotted)


def test_a_module_that_fails_to_import_says_how(tmp_path, monkeypatch):
    (tmp_path / "broken_rule_module.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing broken_rule_module raised RuntimeError: no licence"):
        find_function("broken_rule_module:score")


# --- any scorer


def test_another_table_is_refused():
    with pytest.raises(SchemaError, match="completions"):
        started(rule("by_length")).score(completions([["a", "b"]]).drop_columns(["completions"]))


def test_an_empty_shard_is_scored():
    assert started(rule("by_length")).score(COMPLETIONS.empty_table()).num_rows == 0


def test_a_lone_message_is_read_as_its_words_and_a_conversation_line_by_line():
    user = {"role": "user", "content": "hi"}
    assert plain_text([user]) == "hi"
    assert plain_text([{"role": "system", "content": "be kind"}, user]) == "system: be kind\nuser: hi"


def test_importing_and_building_scorers_loads_no_torch():
    code = (
        "import sys; from actors.scorers.builtin import build_scorer; from engine.config.scorer import PairRMConfig;"
        "build_scorer(PairRMConfig(path='nowhere')); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- PairRM


def test_pairrm_scores_a_shard_and_counts_what_it_could_not_read(checkpoint):
    long = " ".join(["cat"] * 40)
    scored = started(PairRMConfig(path=checkpoint)).score(completions([["cat", "runs", "cat"], ["a", "good", long]]))
    assert scored["num_truncated"].to_pylist() == [0, 4]
    logits = np.array(scored["pair_logits"].to_pylist())
    assert logits.shape == (2, 3, 3) and logits[0, 0, 2] == 0 and logits[0, 0, 1] == logits[0, 2, 1] != 0


def test_pairrms_id_follows_weights_and_settings(checkpoint, tmp_path):
    ours = started(PairRMConfig(path=checkpoint)).id
    assert ours.startswith("pairrm:") and started(PairRMConfig(path=checkpoint, batch_tokens=99)).id == ours
    others = [
        PairRMConfig(path=checkpoint, source="templated"),
        PairRMConfig(path=checkpoint, dtype="bfloat16"),
        PairRMConfig(path=checkpoint, answer_max_tokens=10),
    ]
    model = tiny_pairrm()
    torch.nn.init.zeros_(model.head_layer[1].bias)
    model.save(tmp_path)
    assert len({ours, *(started(config).id for config in [*others, PairRMConfig(path=str(tmp_path))])}) == 5


def test_the_source_is_the_users_words_or_the_templates_rendering(checkpoint):
    table = completions([["cat", "runs"]], contents=["good question"])
    rendered = completions([["cat", "runs"]], contents=["<user> good question <assistant>"])

    def logits(source: str, rows: pa.Table) -> list:
        return started(PairRMConfig(path=checkpoint, source=source)).score(rows)["pair_logits"].to_pylist()

    assert logits("templated", table) == logits("plain", rendered) != logits("plain", table)


# --- llm_blender, the reference implementation


def split_in_two_folders(folder):
    """The layout of llm-blender/PairRM: the ranker's folder names another one as its base."""
    model = tiny_pairrm()
    model.save(folder / "merged")
    merged = json.loads((folder / "merged" / "config.json").read_text())
    vocab = json.loads((folder / "merged" / "tokenizer.json").read_text())["model"]["vocab"]
    DebertaV2Tokenizer(vocab=[tuple(piece) for piece in vocab]).save_pretrained(folder / "base")
    config = model.pretrained_model.config.__class__.from_dict(model.pretrained_model.config.to_dict())
    config.vocab_size = len(AutoTokenizer.from_pretrained(folder / "base"))
    DebertaV2Model(config).save_pretrained(folder / "base")
    kept = ("ranker_type", "n_tasks", "drop_out", "source_maxlength", "candidate_maxlength")
    ranker = {key: merged[key] for key in kept} | {"model_type": "deberta", "model_name": str(folder / "base")}
    (folder / "ranker").mkdir()
    (folder / "ranker" / "config.json").write_text(json.dumps(ranker))
    weights = (folder / "merged" / "model.safetensors").read_bytes()
    (folder / "ranker" / "model.safetensors").write_bytes(weights)
    return {"a": str(folder / "ranker"), "b": str(folder / "merged")}


def texts_of_many_lengths(count: int, num_answers: int) -> pa.Table:
    rng = random.Random(3)
    answers = [[sentence(rng, 30) for _ in range(num_answers)] for _ in range(count)]
    return completions(answers, contents=[sentence(rng, 40) for _ in range(count)])


@pytest.mark.real
@NEEDS_LLM_BLENDER
@pytest.mark.parametrize("layout", ["a", "b"])
def test_our_logits_and_ranks_are_llm_blenders(layout, tmp_path):
    path = split_in_two_folders(tmp_path)[layout]
    table = texts_of_many_lengths(count=12, num_answers=4)
    ours = started(PairRMConfig(path=path)).score(table)
    blender = started(BlenderConfig(path=path, batch_size=1))
    theirs = blender.score(table)
    own, other = (np.array(scored["pair_logits"].to_pylist()) for scored in (ours, theirs))
    assert np.abs(other).max() > 0.05
    np.testing.assert_allclose(own, other, atol=1e-4)
    assert ours["num_truncated"].to_pylist() == theirs["num_truncated"].to_pylist()
    assert 0 < sum(ours["num_truncated"].to_pylist()) < 12 * 12, "some texts are cut and some are not"
    prompts = [messages[0]["content"] for messages in table["messages"].to_pylist()]
    ranks = blender._blender.rank(prompts, table["completions"].to_pylist(), batch_size=1, disable_tqdm=True)
    aggregated = (own - own.transpose(0, 2, 1)).mean(axis=2)
    assert ((-aggregated).argsort(axis=1).argsort(axis=1) + 1).tolist() == np.array(ranks).tolist()


@pytest.mark.real
@NEEDS_LLM_BLENDER
def test_the_hub_class_of_pairrm_hf_reads_what_we_save(checkpoint):
    builtin._import_llm_blender()
    from llm_blender.blender.blender_utils import tokenize_pair
    from llm_blender.pair_ranker.pairrm import DebertaV2PairRM

    model = DebertaV2PairRM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    table = texts_of_many_lengths(count=6, num_answers=2)
    sources = [messages[0]["content"] for messages in table["messages"].to_pylist()]
    left, right = zip(*table["completions"].to_pylist(), strict=True)
    with torch.inference_mode():
        theirs = model(**tokenize_pair(tokenizer, sources, left, right, ROOM.source, ROOM.answer)).logits
    ours = np.array(started(PairRMConfig(path=checkpoint)).score(table)["pair_logits"].to_pylist())[:, 0, 1]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.real
@NEEDS_LLM_BLENDER
def test_llm_blender_names_the_prompts_on_which_it_fails(checkpoint):
    blender = started(BlenderConfig(path=checkpoint))
    with pytest.raises(RoleError, match=r"llm_blender failed on prompt_ids \['p0'\]"):
        blender.score(completions([["cat <|candidate|> runs", "cat"]]))


def test_llm_blender_gets_no_pickle_to_load(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"scorer\.path = .*expected a PairRM folder on this machine"):
        started(BlenderConfig(path=str(tmp_path)))
    tiny_pairrm().save(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        started(BlenderConfig(path=str(tmp_path)))
