"""Adapter folders in the store: which base model they belong to; no other base is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.errors import ModelError, WeightsError
from engine.store import inspection
from engine.store.run import RunStore
from engine.store.weights import check_base, check_fits, read_adapter, refuse_adapter, weights_digest

WIDTH = 8


def make_base(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    values = np.random.default_rng(seed)
    names = ["model.embed_tokens", "model.layers.0.mlp.up_proj", "lm_head"]
    tensors = {f"{n}.weight": values.normal(size=(16, WIDTH)).astype(np.float32) for n in names}
    save_file({**tensors, "model.norm.weight": np.ones(WIDTH, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def make_adapter(folder: Path, base_digest: str, rank: int = 2, width: int = WIDTH) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    shapes = {f"{layer}.lora_A.weight": (rank, width), f"{layer}.lora_B.weight": (16, rank)}
    save_file({n: np.zeros(s, np.float32) for n, s in shapes.items()}, folder / "adapter_model.safetensors")
    config = {"r": rank, "lora_alpha": 4, "base_model_name_or_path": "the/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_base.json").write_text(json.dumps({"digest": base_digest}))
    return folder


def commit(store: RunStore, version: int, base_digest: str) -> None:
    make_adapter(store.new_weights(version), base_digest)
    store.commit_weights(version, [[-1.0]])


def test_an_adapter_is_committed_with_the_start_model_as_its_base_wherever_that_lies_now(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with RunStore(tmp_path / "run") as store:
        assert store.register_start(base, lambda folder, digest: [[-1.0]]).base is None
        commit(store, 1, weights_digest(base))
        policy = store.policy(1)
        assert policy and policy.base == base and policy.folder == tmp_path / "run/weights/001"
    moved = base.rename(tmp_path / "moved")
    with RunStore(tmp_path / "run") as store:
        store.register_start(moved, lambda folder, digest: [])
        again = store.policy(1)
        assert again and again.base == moved and again.digest == policy.digest
    assert inspection.damages(tmp_path / "run") == []


def test_an_adapter_of_another_base_is_not_committed(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run") as store:
        store.register_start(make_base(tmp_path / "base"), lambda folder, digest: [[-1.0]])
        with pytest.raises(WeightsError, match=r"belongs to the base model [0-9a-f]{12}, not to [0-9a-f]{12}"):
            commit(store, 1, weights_digest(make_base(tmp_path / "other", seed=1)))
        assert store.policy(1) is None


def test_the_digest_covers_the_name_of_the_base(tmp_path: Path) -> None:
    one, other = (weights_digest(make_adapter(tmp_path / d, d * 64)) for d in "ab")
    assert one != other


def test_a_damaged_adapter_is_set_aside(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with RunStore(tmp_path / "run") as store:
        store.register_start(base, lambda folder, digest: [[-1.0]])
        commit(store, 1, weights_digest(base))
    (tmp_path / "run/weights/001/adapter_config.json").unlink()
    with RunStore(tmp_path / "run") as store:
        assert store.policy(1) is None
        assert (tmp_path / "run/quarantine").is_dir()


def test_layers_of_another_size_are_named(tmp_path: Path) -> None:
    shapes = {"model.layers.0.mlp.up_proj.weight": (16, WIDTH)}
    check_fits(make_adapter(tmp_path / "fits", "a" * 64), shapes)
    narrow = make_adapter(tmp_path / "narrow", "a" * 64, width=4)
    with pytest.raises(WeightsError, match=r"up_proj changes a tensor of shape \[16, 4\], the base has \[16, 8\]"):
        check_fits(narrow, shapes)
    check_fits(narrow, {})  # known by other names in the files: left to the loader
    with pytest.raises(WeightsError, match=r"the base has \[\]"):
        check_fits(narrow, {}, complete=True)


def test_an_adapter_that_does_not_name_its_base_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", "a" * 64)
    assert (read_adapter(folder).rank, read_adapter(folder).alpha) == (2, 4.0)
    (folder / "adapter_base.json").unlink()
    with pytest.raises(WeightsError, match="not an adapter that a learner of Kumite saved"):
        check_base(folder, "a" * 64)


def test_an_adapter_as_start_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", "a" * 64)
    with pytest.raises(ModelError, match=r"model\.path = .*adapter is a PEFT adapter of the/base, .*merge it first"):
        refuse_adapter(folder, "model.path")
    refuse_adapter(make_base(tmp_path / "base"), "model.path")
