"""Load PairRM checkpoints in the layouts of llm-blender/PairRM and llm-blender/PairRM-hf.

Reads safetensors only. A checkpoint that does not fit is refused, never scored with. `PairRM.save` writes what this
module reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from actors.hub import local_folder
from actors.scorers.pairrm.inputs import PairInputs, Room, add_markers
from actors.scorers.pairrm.model import WEIGHTS, PairRM
from engine.errors import ModelError

if TYPE_CHECKING:
    from transformers import DebertaV2Config, PreTrainedTokenizerBase

CONFIG_FILES = ("*.json", "spm.model")
TOKENIZER_FILES = ("tokenizer.json", "spm.model", "tokenizer_config.json")
CONVERT = (
    'convert it once, where you trust the file: python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.clone() for k, v in torch.load('pytorch_model.bin', weights_only=True).items()}, "
    "'model.safetensors')\""
)


def load_pairrm(
    path: str | Path,
    base_path: str | None = None,
    source_max_tokens: int | None = None,
    answer_max_tokens: int | None = None,
) -> PairRM:
    """Load a checkpoint in float32 on the CPU from a folder or hub id.

    Layouts: (a) llm-blender/PairRM, whose config.json has only the ranker's settings, so that tokenizer and
    backbone config come from `base_path` or its `model_name`; (b) the same merged with the backbone's
    config and tokenizer; (c) llm-blender/PairRM-hf. Limits on tokens that are None are the checkpoint's own. Raises
    ModelError naming files, keys or tensors that are missing or do not fit.
    """
    folder = _checkpoint_folder(path)
    config = _read_json(folder / "config.json")
    if "cand1_prefix_id" not in config and config.get("ranker_type") != "pairranker":
        raise ModelError(f"{folder / 'config.json'} is no PairRM: neither cand1_prefix_id nor ranker_type 'pairranker'")
    complete = "hidden_size" in config and _has_tokenizer(folder)
    base = folder if complete else _base_folder(folder, config, base_path)
    backbone = config if "hidden_size" in config else _read_json(base / "config.json")
    tokenizer = _load_tokenizer(folder if _has_tokenizer(folder) else base)
    tensors = _read_tensors(folder)
    room = Room(
        source_max_tokens or config.get("source_maxlength") or Room.source,
        answer_max_tokens or config.get("candidate_maxlength") or Room.answer,
    )
    model = PairRM(
        _backbone_config(backbone, tensors, tokenizer, folder),
        tokenizer,
        room,
        num_tasks=config.get("n_tasks", 1),
        dropout=config.get("drop_out", 0.05),
    )
    _check_special_ids(model.inputs, config, folder)
    _assign(model, tensors, folder)
    return model.eval()


def weights_file(path: str | Path) -> Path:
    """The checkpoint's weights, downloaded where `path` is a hub id."""
    return _checkpoint_folder(path) / WEIGHTS


def _checkpoint_folder(path: str | Path) -> Path:
    folder = local_folder(path, key="scorer.path", files=(*CONFIG_FILES, WEIGHTS))
    _check_has_config(folder)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "pytorch_model.bin").is_file()
        only = ", only pytorch_model.bin, a pickle that could run code" if pickled else ""
        raise ModelError(f"{folder} holds no {WEIGHTS}{only}; {CONVERT}")
    return folder


def _base_folder(folder: Path, config: dict, base_path: str | None) -> Path:
    """Tokenizer and config of the backbone, for a checkpoint without them."""
    base = base_path or config.get("model_name")
    if not base:
        raise ModelError(f"{folder} lacks tokenizer or backbone config and names no base; set scorer.base_path")
    try:
        base_folder = local_folder(base, key="scorer.base_path", files=CONFIG_FILES)
        _check_has_config(base_folder)
    except ModelError as error:
        raise ModelError(f"{folder} needs the tokenizer and config of {base!r}: {error}") from error
    return base_folder


def _check_has_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; expected a checkpoint in a layout of llm-blender/PairRM")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}") from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    add_markers(tokenizer)
    return tokenizer


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"{folder / WEIGHTS} is damaged: {error}") from error
    # A constant that older transformers wrote out.
    tensors.pop("pretrained_model.embeddings.position_ids", None)
    return tensors


def _backbone_config(
    config: dict, tensors: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> DebertaV2Config:
    """The backbone's config with as many embeddings as the checkpoint holds.

    Where the ids of the markers follow from the tokenizer's length alone, another length means other ids:
    the scores would be noise, hence the equality.
    """
    from transformers import DebertaV2Config

    if config.get("model_type") != "deberta-v2":
        raise ModelError(f"{folder}: backbone of model_type {config.get('model_type')!r}; expected 'deberta-v2'")
    embeddings = tensors.get("pretrained_model.embeddings.word_embeddings.weight")
    rows = len(tokenizer) if embeddings is None else len(embeddings)
    if rows < len(tokenizer) or (rows > len(tokenizer) and "cand1_prefix_id" not in config):
        raise ModelError(
            f"{folder}: {rows} word embeddings for a tokenizer of {len(tokenizer)} tokens (PairRM's four included); "
            "the tokenizer is not the one that the checkpoint was trained with"
        )
    return DebertaV2Config.from_dict({**config, "vocab_size": rows})


def _check_special_ids(inputs: PairInputs, config: dict, folder: Path) -> None:
    given = {name: config[name] for name in inputs.special_ids if name in config}
    wrong = [
        f"{name} {value} != {inputs.special_ids[name]}"
        for name, value in given.items()
        if value != inputs.special_ids[name]
    ]
    if wrong:
        raise ModelError(f"{folder}: special tokens of config.json and tokenizer differ: {', '.join(wrong)}")


def _assign(model: PairRM, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load every tensor, or raise ModelError naming all that are missing, unexpected or of another shape."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if problems:
        raise ModelError(f"{folder / WEIGHTS} does not fit its config: " + "; ".join(problems))
    model.load_state_dict(tensors)
