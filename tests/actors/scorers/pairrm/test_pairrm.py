"""PairRM reads what it should, scores what it reads, and loads only what fits."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DebertaV2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from actors.scorers.pairrm.checkpoint import load_pairrm
from actors.scorers.pairrm.inputs import MARKERS, Candidates, Comparison, PairInputs, Room, add_markers
from actors.scorers.pairrm.model import PairRM, score_candidates
from actors.scorers.pairrm.training import Pair, new_pairrm, pair_accuracy, train_pairrm
from engine.errors import ConfigError, ModelError, NonFiniteError, RoleError

WORDS = ["good", "fine", "bad", "poor", "the", "a", "cat", "dog", "runs", "what", "is", "answer", "this", "question"]
ROOM = Room(source=24, answer=16)

# Models this small lose more to the hand-over between threads than a second core gives.
torch.set_num_threads(1)


def unigram_tokenizer() -> PreTrainedTokenizerBase:
    special = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)]
    characters = [(c, -6.0) for c in dict.fromkeys(string.printable.strip() + "▁")]
    return DebertaV2Tokenizer(vocab=special + [("▁" + word, -3.0) for word in WORDS] + characters)


def word_tokenizer() -> PreTrainedTokenizerBase:
    vocab = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]")


TOKENIZERS = pytest.mark.parametrize("make_tokenizer", [unigram_tokenizer, word_tokenizer])


def tiny_pairrm(make_tokenizer=unigram_tokenizer, room: Room = ROOM) -> PairRM:
    model = new_pairrm(make_tokenizer(), hidden_size=16, num_layers=2, num_heads=2, room=room, seed=1)
    with torch.no_grad():
        # A fresh model's logits are near 0, where everything agrees with everything.
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.eval()


def sentence(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def prompts_of_many_lengths(count: int = 6, num_answers: int = 3) -> list[Candidates]:
    """Some of the texts are longer than ROOM."""
    rng = random.Random(5)
    return [
        Candidates(f"p{i}", sentence(rng, 1, 40), [sentence(rng, 1, 40) for _ in range(num_answers)])
        for i in range(count)
    ]


def logits_of(model: PairRM, prompts: list[Candidates], batch_tokens: int = 4096) -> np.ndarray:
    return np.array([score.logits for score in score_candidates(model, prompts, batch_tokens)])


def count_rows(model: PairRM) -> list[int]:
    """Record the number of comparisons in each forward pass."""
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0].input_ids)))
    return rows


def split_in_two_folders(model: PairRM, folder: Path) -> tuple[Path, Path]:
    """Layout of llm-blender/PairRM: ranker settings and weights in one folder, tokenizer and backbone in another."""
    model.save(folder / "merged")
    merged = json.loads((folder / "merged" / "config.json").read_text())
    base, ranker = folder / "base", folder / "ranker"
    unigram_tokenizer().save_pretrained(base)
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps({**model.pretrained_model.config.to_dict(), "vocab_size": 7}))
    ranker.mkdir()
    kept = ("ranker_type", "n_tasks", "drop_out", "source_maxlength", "candidate_maxlength")
    settings_of_ranker = {key: merged[key] for key in kept} | {"model_type": "deberta", "model_name": str(base)}
    (ranker / "config.json").write_text(json.dumps(settings_of_ranker))
    (ranker / "model.safetensors").write_bytes((folder / "merged" / "model.safetensors").read_bytes())
    return ranker, base


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# --- what the model reads


@TOKENIZERS
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_text_can_forge_a_marker_or_a_separator(make_tokenizer, data):
    inputs = INPUTS[make_tokenizer.__name__]
    spice = st.sampled_from([*MARKERS, "[SEP]", "[CLS]", "[PAD]", "[EOS]", " ", "cat", "<|", "\n"])
    text = st.lists(st.one_of(spice, st.text(max_size=3)), max_size=8).map("".join)
    prompt = Candidates("p", data.draw(text), (data.draw(text), data.draw(text) + "!"))
    parts = inputs.encode([prompt])
    batch = inputs.pad(parts, [Comparison(0, 0, 1)])
    ids, positions = batch.input_ids[0], batch.positions[0]
    vocab = inputs.tokenizer.get_vocab()
    assert ids[positions].tolist() == [vocab["<|source|>"], vocab["<|candidate1|>"], vocab["<|candidate2|>"]]
    assert sum(int(i) in {vocab[marker] for marker in MARKERS} for i in ids) == 3
    assert (ids == inputs.special_ids["sep_token_id"]).sum() == 3
    assert len(ids) <= ROOM.source + 2 * ROOM.answer


def _inputs(make_tokenizer) -> PairInputs:
    tokenizer = make_tokenizer()
    add_markers(tokenizer)
    return PairInputs(tokenizer, ROOM)


INPUTS = {make.__name__: _inputs(make) for make in (unigram_tokenizer, word_tokenizer)}


def test_the_sequence_is_that_of_llm_blenders_tokenize_pair():
    inputs = INPUTS["unigram_tokenizer"]
    parts = inputs.encode([Candidates("p", "what is this", ["a cat", "the dog runs"])])
    ids = inputs.pad(parts, [Comparison(0, 0, 1)]).input_ids[0]
    encode = inputs.tokenizer.encode
    expected = encode("<|source|>what is this") + encode("<|candidate1|>a cat") + encode("<|candidate2|>the dog runs")
    assert ids.tolist() == expected


def test_room_that_the_prompt_leaves_is_shared_by_the_answers():
    inputs = INPUTS["unigram_tokenizer"]
    long = " ".join(["cat"] * 99)
    [short_prompt, long_prompt] = inputs.encode([Candidates("s", "what", [long]), Candidates("l", long, [long])])
    assert len(short_prompt.source) == 4 and len(short_prompt.answers[0]) == ROOM.answer + (ROOM.source - 4) // 2
    assert len(long_prompt.source) == ROOM.source and len(long_prompt.answers[0]) == ROOM.answer


def test_room_for_special_tokens_alone_is_a_config_error_that_names_both_keys():
    with pytest.raises(ConfigError, match=r"source_max_tokens = 3.*\n.*answer_max_tokens = 2"):
        PairInputs(INPUTS["unigram_tokenizer"].tokenizer, Room(source=3, answer=2))


def test_a_tokenizer_without_markers_is_refused():
    with pytest.raises(ModelError, match=r"<\|source\|>"):
        PairInputs(unigram_tokenizer())


# --- what the model answers


def test_scores_do_not_depend_on_what_shares_the_batch():
    model = tiny_pairrm()
    prompts = prompts_of_many_lengths()
    together = logits_of(model, prompts)
    alone = np.concatenate([logits_of(model, [prompt], batch_tokens=1) for prompt in prompts])
    assert np.abs(together).max() > 0.05
    np.testing.assert_allclose(together, alone, atol=2e-6)


@pytest.mark.parametrize("room", [ROOM, Room(source=500, answer=100)])
def test_packed_rows_score_as_transformers_own_padded_ones(room):
    """The second room makes distances beyond the 512 that relative positions distinguish."""
    model = tiny_pairrm(room=room)
    rng = random.Random(0)
    texts = [sentence(rng, 1, 9), sentence(rng, 99, 99)]
    parts = model.inputs.encode([Candidates("p", sentence(rng, 500, 500), texts), Candidates("q", "what", texts)])
    batch = model.inputs.pad(parts, [Comparison(p, *order) for p in (0, 1) for order in parts[p].orders()])
    padded = model(batch)
    assert padded.requires_grad and padded.abs().max() > 0.05
    with torch.inference_mode():
        packed = model(batch)
    torch.testing.assert_close(packed, padded.detach(), atol=3e-6, rtol=0)


def test_each_forward_pass_keeps_to_the_token_budget():
    model = tiny_pairrm()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(arguments[0].input_ids.size))
    logits_of(model, prompts_of_many_lengths(), batch_tokens=200)
    assert len(sizes) > 1 and max(sizes) <= 200


def test_the_row_is_the_answer_shown_first():
    model = tiny_pairrm()
    prompt = Candidates("p", "what is this", ["a good cat", "the bad dog runs"])
    [logits] = logits_of(model, [prompt])
    parts = model.inputs.encode([prompt])
    with torch.inference_mode():
        first = model(model.inputs.pad(parts, [Comparison(0, 0, 1)])).item()
    assert logits[0, 1] == pytest.approx(first, abs=1e-6)
    assert abs(logits[0, 1] + logits[1, 0]) > 1e-3, "PairRM is not antisymmetric: both orders must be run"
    assert logits[0, 0] == logits[1, 1] == 0


def test_equal_answers_are_compared_once_and_tie():
    model = tiny_pairrm()
    rows = count_rows(model)
    [logits] = logits_of(model, [Candidates("p", "what is this", ["cat", "dog runs", "cat", "cat"])])
    assert sum(rows) == 2
    assert logits[0, 2] == logits[2, 3] == 0
    assert logits[0, 1] == logits[2, 1] == logits[3, 1] != 0
    assert logits[1, 0] == logits[1, 2] == logits[1, 3] != 0


def test_one_answer_or_only_equal_ones_need_no_forward_pass():
    model = tiny_pairrm()
    rows = count_rows(model)
    scores = score_candidates(model, [Candidates("a", "x", ["cat"]), Candidates("b", "x", ["cat", "cat"])], 100)
    assert [score.logits.tolist() for score in scores] == [[[0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert rows == [] and score_candidates(model, [], 100) == []


def test_comparisons_in_which_a_text_is_cut_are_counted():
    model = tiny_pairrm()
    long = " ".join(["cat"] * 40)
    prompts = [
        Candidates("none", "what", ["cat", "dog", "runs"]),
        Candidates("one answer", "what", ["cat", long, "runs"]),
        Candidates("prompt", long, ["cat", "dog", "runs"]),
        Candidates("equal answers", "what", [long, long, "cat"]),
    ]
    assert [score.num_truncated for score in score_candidates(model, prompts, 4096)] == [0, 4, 6, 2]


def test_what_lies_behind_the_cut_changes_nothing():
    model = tiny_pairrm()
    long = " ".join(["cat"] * 40)
    [one] = logits_of(model, [Candidates("p", "what", [long, "dog"])])
    [other] = logits_of(model, [Candidates("p", "what", [long + " good good", "dog"])])
    assert one.tolist() == other.tolist()


def test_bfloat16_stays_close_to_float32():
    model = tiny_pairrm()
    exact = logits_of(model, prompts_of_many_lengths())
    rounded = logits_of(model.compute_in("bfloat16"), prompts_of_many_lengths())
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


class ShortOfMemory(PairRM):
    """Refuses batches of more than `capacity` tokens, as a full GPU does."""

    capacity = 100

    def forward(self, batch):
        if batch.input_ids.size > self.capacity:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(batch)


def test_running_out_of_memory_halves_the_batches_and_changes_no_score():
    model = tiny_pairrm()
    expected = logits_of(model, prompts_of_many_lengths())
    model.__class__ = ShortOfMemory
    rows = count_rows(model)
    np.testing.assert_allclose(logits_of(model, prompts_of_many_lengths()), expected, atol=2e-6)
    assert rows[0] == 36 and rows[1] == 18, "the first try held everything, the second half of it"


def test_a_comparison_that_never_fits_is_an_error_naming_its_prompt():
    model = tiny_pairrm()
    model.__class__ = ShortOfMemory
    model.capacity = 20
    long = " ".join(["cat"] * 40)
    with pytest.raises(RoleError, match=r"out of memory on one comparison of .* tokens \(prompt_ids \['big'\]\)"):
        logits_of(model, [Candidates("small", "a", ["cat", "dog"]), Candidates("big", long, [long, "dog"])])


def test_logits_that_are_not_finite_are_an_error_naming_the_prompt():
    model = tiny_pairrm()
    torch.nn.init.constant_(model.head_layer[4].weight, float("nan"))
    with pytest.raises(RoleError, match=r"not finite \(prompt_ids \['p7'\]\)"):
        logits_of(model, [Candidates("p7", "a", ["cat", "dog"])])


# --- checkpoints


@TOKENIZERS
def test_a_saved_model_loads_with_the_same_scores_and_settings(make_tokenizer, tmp_path):
    model = tiny_pairrm(make_tokenizer)
    model.save(tmp_path)
    loaded = load_pairrm(tmp_path)
    assert loaded.inputs.room == ROOM and loaded.dropout == model.dropout
    prompts = prompts_of_many_lengths()
    assert logits_of(loaded, prompts).tolist() == logits_of(model, prompts).tolist()


def test_the_three_layouts_of_a_checkpoint_give_equal_scores(tmp_path):
    model = tiny_pairrm()
    expected = logits_of(model, prompts_of_many_lengths()).tolist()
    two_folders, base = split_in_two_folders(model, tmp_path)
    hf, merged = tmp_path / "hf", tmp_path / "one_folder"
    model.save(hf)
    edit_config(hf, ranker_type=None, source_maxlength=None, candidate_maxlength=None)
    model.save(merged)
    edit_config(merged, **dict.fromkeys(model.inputs.special_ids))
    moved = tmp_path / "moved"
    base.rename(moved)
    loaded = {
        "a": load_pairrm(two_folders, base_path=str(moved)),
        "b": load_pairrm(merged),
        "c": load_pairrm(hf, source_max_tokens=ROOM.source, answer_max_tokens=ROOM.answer),
    }
    for layout, loaded_model in loaded.items():
        assert logits_of(loaded_model, prompts_of_many_lengths()).tolist() == expected, layout


def test_without_settings_of_its_own_a_checkpoint_gets_the_lengths_of_pairrm(tmp_path):
    tiny_pairrm().save(tmp_path)
    edit_config(tmp_path, source_maxlength=None, candidate_maxlength=None)
    assert load_pairrm(tmp_path).inputs.room == Room(source=1224, answer=412)


def test_a_folder_with_pickled_weights_only_is_refused_with_the_way_to_convert_them(tmp_path):
    model = tiny_pairrm()
    model.save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*save_file"):
        load_pairrm(tmp_path)


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    tiny_pairrm().save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["head_layer.9.weight"] = tensors.pop("head_layer.4.weight")
    tensors["head_layer.4.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as error:
        load_pairrm(tmp_path)
    for expected in (
        "missing head_layer.4.weight",
        "unexpected head_layer.9.weight",
        "head_layer.4.bias has shape (3,)",
    ):
        assert expected in str(error.value)


def test_position_ids_that_older_transformers_wrote_are_ignored(tmp_path):
    tiny_pairrm().save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"pretrained_model.embeddings.position_ids": torch.arange(512)[None]}, tmp_path / "model.safetensors"
    )
    load_pairrm(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    tiny_pairrm().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        load_pairrm(tmp_path)


def test_a_tokenizer_of_another_length_is_refused_because_its_ids_would_be_others(tmp_path):
    ranker, base = split_in_two_folders(tiny_pairrm(), tmp_path)
    grown = unigram_tokenizer()
    grown.add_tokens(["extra"])
    grown.save_pretrained(base)
    with pytest.raises(ModelError, match="not the one that the checkpoint was trained with"):
        load_pairrm(ranker)


def test_special_ids_that_differ_from_the_tokenizers_are_refused(tmp_path):
    tiny_pairrm().save(tmp_path)
    edit_config(tmp_path, cand1_prefix_id=3)
    with pytest.raises(ModelError, match="cand1_prefix_id 3 !="):
        load_pairrm(tmp_path)


def test_a_checkpoint_without_its_base_says_which_key_to_set(tmp_path):
    ranker, _ = split_in_two_folders(tiny_pairrm(), tmp_path)
    edit_config(ranker, model_name=None)
    with pytest.raises(ModelError, match=r"scorer\.base_path"):
        load_pairrm(ranker)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranker_type": "summareranker", "cand1_prefix_id": None}, "no PairRM"),
        ({"model_type": "roberta"}, "expected 'deberta-v2'"),
        ({"position_biased_input": True, "max_position_embeddings": 32}, "32 absolute positions, comparisons 56"),
    ],
)
def test_other_models_are_refused(changes, message, tmp_path):
    tiny_pairrm().save(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        load_pairrm(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_pairrm(tmp_path)


# --- training


def utility(text: str) -> float:
    words = text.split()
    return words.count("good") + 0.7 * words.count("fine") - words.count("bad") - 0.7 * words.count("poor")


def judged_pairs(count: int, seed: int) -> list[Pair]:
    """A preference that is visible in the answers alone."""
    rng = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < count:
        left, right = sentence(rng, 3, 8), sentence(rng, 3, 8)
        if utility(left) != utility(right):
            pairs.append(Pair(sentence(rng, 3, 8), left, right, float(utility(left) > utility(right))))
    return pairs


@pytest.mark.real
@TOKENIZERS
def test_training_finds_a_preference_that_the_answers_show(make_tokenizer):
    model = new_pairrm(make_tokenizer(), seed=0)
    held_out = judged_pairs(400, seed=2)
    assert pair_accuracy(model, held_out) < 0.75
    losses = train_pairrm(model, judged_pairs(2000, seed=1), epochs=3, seed=0)
    assert np.mean(losses[-20:]) < 0.35 < np.mean(losses[:5])
    assert pair_accuracy(model, held_out) > 0.9


@pytest.mark.real
def test_the_same_seed_trains_the_same_weights_and_leaves_torchs_own_randomness_alone():
    def weights(seed: int) -> dict[str, torch.Tensor]:
        model = new_pairrm(word_tokenizer(), hidden_size=16, num_heads=2, seed=seed)
        train_pairrm(model, judged_pairs(40, seed=1), steps=5, batch_size=8, seed=seed)
        return model.state_dict()

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = weights(3), weights(3), weights(4)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head_layer.1.weight"], other["head_layer.1.weight"])


@pytest.mark.real
def test_soft_labels_are_fitted_as_probabilities():
    model = new_pairrm(word_tokenizer(), hidden_size=16, num_heads=2, dropout=0.0, seed=0)
    pairs = [Pair("what", "good cat", "bad dog", 0.8)]
    train_pairrm(model, pairs, steps=150, batch_size=1, lr=3e-3)
    [logits] = logits_of(model, [Candidates("p", "what", ["good cat", "bad dog"])])
    both = 1 / (1 + np.exp(-(logits[0, 1] - logits[1, 0]) / 2))
    assert both == pytest.approx(0.8, abs=0.02)


def test_accuracy_counts_both_orders_and_leaves_out_undecided_pairs():
    model = tiny_pairrm()
    [logits] = logits_of(model, [Candidates("p", "what", ["good cat", "bad dog"])])
    left_is_preferred = float(logits[0, 1] > logits[1, 0])
    right = Pair("what", "good cat", "bad dog", left_is_preferred)
    wrong = right._replace(left_wins=1 - left_is_preferred)
    undecided = right._replace(left_wins=0.5)
    assert pair_accuracy(model, [right, right, right, wrong, undecided]) == 0.75
    assert pair_accuracy(model, [Pair("what", "cat", "cat", 1.0)]) == 0.5
    assert np.isnan(pair_accuracy(model, [undecided]))


def test_a_loss_that_is_not_finite_stops_before_the_update():
    model = tiny_pairrm()
    torch.nn.init.constant_(model.head_layer[4].weight, float("inf"))
    before = model.head_layer[1].weight.clone()
    with pytest.raises(NonFiniteError, match="step 0"):
        train_pairrm(model, judged_pairs(8, seed=1), steps=1)
    assert torch.equal(model.head_layer[1].weight, before)
