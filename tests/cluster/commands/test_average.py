"""`kumite average`: the mean of versions' weights, exact, complete, and never written over an existing folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.export import mean, merge_adapter, write_average
from cluster.commands.cli import main
from engine.config.load import dump
from engine.errors import WeightsError
from engine.store.run import RunStore
from tests.actors.learner.test_learner import load, write_llama
from tests.actors.learner.test_lora import MODEL, move, versions
from tests.runs import fake_config, play


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of the fake policy with versions 0 to 3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield play(fake_config(tmp_path_factory.mktemp("average"), iterations=3))


def logits(folder: Path) -> np.ndarray:
    return load_file(folder / "model.safetensors")["logits"].numpy()


@pytest.mark.parametrize(
    ("options", "versions"), [([], [1, 2, 3]), (["--versions", "2-3"], [2, 3]), (["--versions", "0-1"], [0, 1])]
)
def test_the_weights_are_the_mean_of_the_named_versions(finished, tmp_path, capsys, options, versions) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["average", str(finished), str(tmp_path / "mean"), *options]) == 0
    assert f"versions {versions[0]} to {versions[-1]}" in capsys.readouterr().out
    with RunStore(finished) as store:
        policies = [store.policy(version) for version in versions]
    expected = np.mean([logits(policy.folder) for policy in policies], axis=0)
    np.testing.assert_allclose(logits(tmp_path / "mean"), expected, rtol=1e-12)
    description = json.loads((tmp_path / "mean/average.json").read_text())
    assert description["versions"] == {str(v): p.digest for v, p in zip(versions, policies, strict=True)}
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mean"]


def test_nothing_is_overwritten(finished, tmp_path, capsys) -> None:
    (tmp_path / "mean").mkdir()
    assert main(["average", str(finished), str(tmp_path / "mean")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_versions_that_are_not_there_are_named(finished, tmp_path, capsys) -> None:
    assert main(["average", str(finished), str(tmp_path / "mean"), "--versions", "2-5"]) == 2
    assert "has no version 4, 5, only 0, 1, 2, 3" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("text", ["3-1", "2", "2-2", "a-b", "-1-2"])
def test_an_invalid_range_is_refused(finished, tmp_path, capsys, text) -> None:
    with pytest.raises(SystemExit):
        main(["average", str(finished), str(tmp_path / "mean"), f"--versions={text}"])
    assert "not a range of two or more versions, such as 1-3" in capsys.readouterr().err


def test_the_help_says_that_the_mean_is_not_the_mixture(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["average", "--help"])
    assert "NOT the mixture" in " ".join(capsys.readouterr().out.split())


def test_altered_weights_are_not_averaged(finished, tmp_path, capsys) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    weights = run / "weights/002/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["average", str(run), str(tmp_path / "mean")]) == 2
    assert "changed: model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_the_mean_of_low_precision_is_summed_in_float32_and_rounded_once() -> None:
    """In bfloat16, which has 8 bits, 256 + 1 + 1 + 1 + 1 stays 256."""
    ones = [torch.tensor([value], dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0, 1.0, 1.0)]
    assert mean(ones, "w").dtype == torch.bfloat16
    assert mean(ones, "w").item() == 52.0


def test_integer_tensors_must_be_equal_in_all_versions() -> None:
    one, other = torch.tensor([1]), torch.tensor([2])
    assert mean([one, one.clone()], "ids").tolist() == [1]
    with pytest.raises(WeightsError, match=r"ids: torch.int64 values differ"):
        mean([one, other], "ids")


def test_a_model_in_several_files_keeps_them_and_every_shape_and_format(tmp_path: Path) -> None:
    parts = {"model-1.safetensors": ["a", "scalar"], "model-2.safetensors": ["b", "empty"]}
    tensors = [
        {
            "a": torch.full((2, 3), value, dtype=torch.bfloat16),
            "scalar": torch.tensor(value),
            "b": torch.full((5,), value, dtype=torch.float16),
            "empty": torch.zeros(0, 4),
        }
        for value in (1.0, 2.0)
    ]
    for folder, state in zip("xy", tensors, strict=True):
        (tmp_path / folder).mkdir()
        for name, keys in parts.items():
            save_file({key: state[key] for key in keys}, tmp_path / folder / name, metadata={"format": "pt"})
        index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
        (tmp_path / folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (tmp_path / folder / "tokenizer.json").write_text(folder)
    write_average([tmp_path / "x", tmp_path / "y"], tmp_path / "mean")
    assert (tmp_path / "mean/tokenizer.json").read_text() == "y"
    found = {name: load_file(tmp_path / "mean" / name) for name in parts}
    assert {name: sorted(state) for name, state in found.items()} == {n: sorted(keys) for n, keys in parts.items()}
    for name, tensor in (found["model-1.safetensors"] | found["model-2.safetensors"]).items():
        expected = torch.full_like(tensors[0][name], 1.5)
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)


def test_adapters_are_merged_before_their_mean_is_taken(tmp_path: Path) -> None:
    """The mean of B A is not the mean of B times the mean of A."""
    base = write_llama(tmp_path / "base")
    run, files = tmp_path / "run", versions()
    config = fake_config(tmp_path, model={"path": str(base), "dtype": "float32"})
    with RunStore(run) as store:
        store.register_start(base, lambda folder, digest: [[-1.0]])
        for version in (1, 2):
            policy = files.load(base, None, 0)
            move(policy, version)
            files.save(policy, store.new_weights(version), keep=True)
            store.commit_weights(version, [[-1.0]])
            merge_adapter(MODEL, base, store.policy(version).folder, tmp_path / f"whole{version}")
    (run / "config.yaml").write_text(dump(config))
    assert main(["average", str(run), str(tmp_path / "mean")]) == 0
    write_average([tmp_path / "whole1", tmp_path / "whole2"], tmp_path / "expected")
    found, expected = (load(tmp_path / name).state_dict() for name in ("mean", "expected"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    start = load(base).state_dict()
    assert any(not torch.equal(found[name], start[name]) for name in start)
    assert (tmp_path / "mean/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))
