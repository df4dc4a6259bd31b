"""A weights folder has one digest, and every change of its files is noticed and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.errors import ModelError, WeightsError
from engine.store.weights import (
    check_same_tensors,
    stop_token_ids,
    tensor_shapes,
    verify_weights,
    weights_digest,
    write_checksums,
)

TENSORS = {"embed.weight": np.arange(12, dtype=np.float32).reshape(4, 3), "norm.weight": np.ones(3, np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def shard(folder: Path) -> None:
    """Replace the single file by two shards and their index."""
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(TENSORS, start=1)}
    for name, file in names.items():
        save_file({name: TENSORS[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_a_copy_under_another_name_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert weights_digest(copy) == weights_digest(folder)
    assert len(weights_digest(folder)) == 64


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_one_flipped_bit_in_any_file_that_matters_changes_the_digest(folder: Path, name: str) -> None:
    before = weights_digest(folder)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert weights_digest(folder) != before


def test_a_new_tokenizer_file_changes_the_digest_and_a_readme_does_not(folder: Path) -> None:
    before = weights_digest(folder)
    (folder / "README.md").write_text("a model")
    (folder / "trainer_state.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"pickle")
    assert weights_digest(folder) == before
    (folder / "added_tokens.json").write_text("{}")
    assert weights_digest(folder) != before


def test_two_files_that_swap_their_content_change_the_digest(folder: Path) -> None:
    before = weights_digest(folder)
    config, tokenizer = (folder / "config.json").read_bytes(), (folder / "tokenizer.json").read_bytes()
    (folder / "config.json").write_bytes(tokenizer)
    (folder / "tokenizer.json").write_bytes(config)
    assert weights_digest(folder) != before


def test_a_folder_with_pickled_weights_only_is_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors weights; save"):
        weights_digest(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin may hold pickled code"):
        weights_digest(folder)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        weights_digest(tmp_path / "nowhere")


def test_an_index_that_names_a_missing_shard_is_refused_by_the_shards_name(folder: Path) -> None:
    shard(folder)
    assert weights_digest(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        weights_digest(folder)


def test_an_index_that_is_not_json_is_refused(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map":')
    with pytest.raises(ModelError, match="not valid JSON"):
        weights_digest(folder)


def test_weights_with_checksums_verify_and_a_change_is_named(folder: Path) -> None:
    digest = write_checksums(folder)
    assert digest == weights_digest(folder)
    verify_weights(folder, digest)
    (folder / "chat_template.jinja").write_text("changed")
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_text("a b")
    with pytest.raises(
        WeightsError, match=r"changed: chat_template\.jinja; missing: tokenizer\.json; added: merges\.txt"
    ):
        verify_weights(folder, digest)


def test_weights_without_checksums_that_changed_are_refused_too(folder: Path) -> None:
    digest = weights_digest(folder)
    verify_weights(folder, digest)
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=rf"expected weights {digest}, found [0-9a-f]{{64}}; covered files: chat"):
        verify_weights(folder, digest)


def test_checksums_of_other_weights_are_not_used(folder: Path) -> None:
    write_checksums(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="covered files"):
        verify_weights(folder, "0" * 64)


def test_weights_whose_shard_was_lost_on_the_way_are_a_weights_error(folder: Path) -> None:
    shard(folder)
    digest = weights_digest(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"names model-00001-of-00002\.safetensors"):
        verify_weights(folder, digest)


def test_shapes_come_from_the_headers_of_one_file_or_of_all_shards(folder: Path) -> None:
    shapes = {"embed.weight": (4, 3), "norm.weight": (3,)}
    assert tensor_shapes(folder) == shapes
    shard(folder)
    save_file({"stale": TENSORS["norm.weight"]}, folder / "old.safetensors")
    assert tensor_shapes(folder) == shapes, "a file that the index does not name is not loaded"


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x10" + b"\0" * 7 + b"{", (3).to_bytes(8, "little") + b"[1]"])
def test_a_file_that_is_no_safetensors_is_refused_without_reading_it_whole(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file"):
        tensor_shapes(folder)


def test_a_file_that_was_cut_is_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file .*; copy the file again"):
        tensor_shapes(folder)


def test_missing_unexpected_and_reshaped_tensors_are_all_named_at_once(folder: Path) -> None:
    expected = {"embed.weight": (4, 4), "head.weight": (4, 3)}
    with pytest.raises(WeightsError) as caught:
        check_same_tensors(folder, expected)
    for words in (
        "head.weight is missing",
        "norm.weight is unexpected",
        "embed.weight has shape [4, 3] instead of [4, 4]",
    ):
        assert words in str(caught.value)


def test_a_tied_head_may_be_left_out_and_an_untied_one_may_not(folder: Path) -> None:
    expected = tensor_shapes(folder) | {"lm_head.weight": (4, 3), "layers.0.rotary_emb.inv_freq": (2,)}
    with pytest.raises(WeightsError, match=r"served: lm_head\.weight is missing\. Save"):
        check_same_tensors(folder, expected)
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    check_same_tensors(folder, expected)


def test_stop_tokens_come_from_the_generation_config_then_from_the_model_config(folder: Path) -> None:
    assert stop_token_ids(folder) == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert stop_token_ids(folder) == {2, 9}
    (folder / "generation_config.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    assert stop_token_ids(folder) == set()
