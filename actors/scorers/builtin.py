"""Scorers that turn K answers into a K x K table of pair logits: PairRM, a Python rule, llm_blender.

Reward models are in reward_model.py, LLM judges in judge/. Importing this module loads no torch.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import itertools
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.scorers.base import Logits, PairScores, Scorer, plain_text
from engine.config.scorer import BlenderConfig, IFEvalScorerConfig, PairRMConfig, RewardModelConfig, RuleConfig
from engine.errors import ConfigError, ModelError, RoleError

if TYPE_CHECKING:
    from actors.scorers.pairrm.inputs import Candidates, PairInputs


BuiltinConfig = PairRMConfig | RewardModelConfig | RuleConfig | BlenderConfig | IFEvalScorerConfig


def build_scorer(config: BuiltinConfig) -> Scorer:
    """Return the scorer that `config` describes, not yet started."""
    if isinstance(config, PairRMConfig):
        return PairRMScorer(config)
    if isinstance(config, RewardModelConfig):
        from actors.scorers.reward_model import RewardModelScorer

        return RewardModelScorer(config)
    if isinstance(config, RuleConfig):
        return RuleScorer(config)
    if isinstance(config, IFEvalScorerConfig):
        from actors.scorers.ifeval import IFEvalScorer

        return IFEvalScorer(config)
    return BlenderScorer(config)


class PairRMScorer(Scorer):
    """PairRM by actors/scorers/pairrm/model.py, on a GPU where there is one."""

    def __init__(self, config: PairRMConfig):
        self._config = config

    def start(self) -> None:
        import torch

        from actors.scorers.pairrm.checkpoint import load_pairrm, weights_file

        config = self._config
        model = load_pairrm(config.path, config.base_path, config.source_max_tokens, config.answer_max_tokens)
        self._model = model.compute_in(config.dtype).to("cuda" if torch.cuda.is_available() else "cpu")
        settings = {
            "dtype": config.dtype,
            "source": config.source,
            "room": [model.inputs.room.source, model.inputs.room.answer],
            "tokenizer": model.inputs.tokenizer.backend_tokenizer.to_str(),
        }
        self.id = f"pairrm:{_digest(weights_file(config.path), settings)}"

    def sleep(self) -> None:
        del self._model
        free_gpu()

    def _compare(self, rows: list[dict[str, Any]]) -> list[PairScores]:
        from actors.scorers.pairrm.model import score_candidates

        return score_candidates(self._model, _candidates(rows, self._config.source), self._config.batch_tokens)


class RuleScorer(Scorer):
    """A Python function (messages, answers, **arguments) -> K scores in nats or K x K pair logits.

    Scores s become logits s_i - s_j. A matrix is used as it is; its diagonal must be 0.
    """

    def __init__(self, config: RuleConfig):
        self._config = config

    def start(self) -> None:
        self._function = find_function(self._config.function)
        arguments = self._config.arguments
        self.id = f"rule:{self._config.function}" + (f":{_digest(None, arguments)}" if arguments else "")

    def _compare(self, rows: list[dict[str, Any]]) -> list[PairScores]:
        return [PairScores(self._logits(row["prompt_id"], row["messages"], row["completions"]), 0) for row in rows]

    def _logits(self, prompt_id: str, messages: list[dict[str, str]], answers: list[str]) -> Logits:
        where = f"rule {self._config.function}, prompt_id {prompt_id!r}"
        try:
            result = self._function(messages, answers, **self._config.arguments)
        except Exception as error:
            raise RoleError(f"{where}: raised {type(error).__name__}: {error}") from error
        try:
            values = np.asarray(result, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise RoleError(f"{where}: returned {_excerpt(result)}, which are not numbers: {error}") from error
        return _checked_logits(values, len(answers), f"{where}: returned {_excerpt(result)}")


def _checked_logits(values: Logits, num_answers: int, returned: str) -> Logits:
    """[K, K] from [K] scores or [K, K] logits; RoleError, beginning with the text `returned`, for anything else."""
    expected = f"expected {num_answers} scores or {num_answers} x {num_answers} pair logits, all finite"
    if values.shape not in {(num_answers,), (num_answers, num_answers)}:
        raise RoleError(f"{returned} of shape {values.shape}; {expected}")
    with np.errstate(invalid="ignore", over="ignore"):
        logits = values[:, None] - values[None, :] if values.ndim == 1 else values
    if not np.isfinite(logits).all():
        raise RoleError(f"{returned}, which is not finite; {expected}")
    if np.diagonal(logits).any():
        raise RoleError(f"{returned}, whose diagonal is not 0; pair logits are log-odds, not probabilities")
    return logits


class BlenderScorer(Scorer):
    """PairRM through llm_blender's own code, for comparison with PairRMScorer.

    With batch_size > 1 a prompt's scores depend on the others in its batch. Equal answers are compared like any
    others. A text that spells out a special token makes it fail.
    """

    def __init__(self, config: BlenderConfig):
        self._config = config

    def start(self) -> None:
        import torch

        from actors.scorers.pairrm.inputs import PairInputs, Room

        folder = Path(self._config.path)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise ModelError(
                f"scorer.path = {folder}: expected a PairRM folder on this machine with config.json and "
                f"model.safetensors"
            )
        if (folder / "pytorch_model.bin").exists():
            raise ModelError(
                f"scorer.path = {folder}: pytorch_model.bin lies beside model.safetensors, and llm_blender would "
                f"unpickle it; remove it"
            )
        self._blender = _import_llm_blender().Blender()
        self._blender.loadranker(str(folder), device="cuda" if torch.cuda.is_available() else "cpu")
        ranker = self._blender.ranker_config
        room = Room(ranker.source_maxlength, ranker.candidate_maxlength)
        self._inputs: PairInputs = PairInputs(self._blender.ranker_tokenizer, room)
        settings = self._config.model_dump(include={"source", "batch_size"})
        self.id = f"llm_blender:{_digest(folder / 'model.safetensors', settings)}"

    def sleep(self) -> None:
        del self._blender
        free_gpu()

    def _compare(self, rows: list[dict[str, Any]]) -> list[PairScores]:
        prompts = _candidates(rows, self._config.source)
        return [scores for batch in self._batches(prompts) for scores in self._compare_batch(batch)]

    def _batches(self, prompts: list[Candidates]) -> Iterator[list[Candidates]]:
        """Batches of neighbours with equally many answers: llm_blender stacks them."""
        for _, group in itertools.groupby(prompts, key=lambda prompt: len(prompt.answers)):
            members = list(group)
            for start in range(0, len(members), self._config.batch_size):
                yield members[start : start + self._config.batch_size]

    def _compare_batch(self, prompts: list[Candidates]) -> list[PairScores]:
        import torch

        examples = [{"source": prompt.source, "candidates": list(prompt.answers)} for prompt in prompts]
        try:
            with torch.inference_mode():
                batch = {k: v for k, v in self._blender.ranker_collator(examples).items() if v is not None}
                batch = {name: tensor.to(self._blender.ranker_config.device) for name, tensor in batch.items()}
                logits = self._blender.ranker._full_predict(**batch)["logits"].double().cpu().numpy()
        except Exception as error:
            ids = [prompt.prompt_id for prompt in prompts]
            raise RoleError(f"llm_blender failed on prompt_ids {ids}: {type(error).__name__}: {error}") from error
        parts = self._inputs.encode(prompts, shared_room=True)
        return [PairScores(matrix, part.num_cut(every=True)) for matrix, part in zip(logits, parts, strict=True)]


def _import_llm_blender() -> Any:
    """Import llm_blender 0.0.2 and restore the two names that transformers 5 no longer has."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers.utils import hub

    if not hasattr(hub, "TRANSFORMERS_CACHE"):
        vars(hub)["TRANSFORMERS_CACHE"] = HF_HUB_CACHE
    try:
        llm_blender = importlib.import_module("llm_blender")
        collator = importlib.import_module("llm_blender.pair_ranker.collator")
    except ImportError as error:
        raise ConfigError(
            [f"scorer.kind = llm_blender: {error}; pip install llm-blender, or use kind pairrm"]
        ) from error

    def encode_texts(texts: list[str], tokenizer: Any, max_length: int | None = None) -> tuple[Any, Any]:
        # llm_blender's own function without batch_encode_plus, which transformers 5 no longer has.
        options = {"max_length": max_length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
        encoded = tokenizer(texts, **options)
        return encoded["input_ids"], encoded["attention_mask"]

    vars(collator)["encode_texts"] = encode_texts
    return llm_blender


def find_function(dotted: str) -> Callable[..., Any]:
    """Import `package.module:function`. Raises ConfigError with the nearest names where there is no such function."""
    module_name, _, name = dotted.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        near = _nearest(error.name or module_name, _siblings(error.name or module_name))
        raise ConfigError([f"scorer.function = {dotted}: {error}{near}"]) from error
    except Exception as error:
        problem = f"scorer.function = {dotted}: importing {module_name} raised {type(error).__name__}: {error}"
        raise ConfigError([problem]) from error
    function = getattr(module, name, None)
    if not callable(function):
        near = _nearest(name, (key for key, value in vars(module).items() if callable(value)))
        raise ConfigError([f"scorer.function = {dotted}: {module_name} has no function {name!r}{near}"])
    return function


def _siblings(module_name: str) -> list[str]:
    """Full names of the modules beside the missing `module_name`."""
    parent, dot, _ = module_name.rpartition(".")
    path = getattr(importlib.import_module(parent), "__path__", []) if parent else None
    return [parent + dot + module.name for module in pkgutil.iter_modules(path)]


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3)
    return f"; nearest: {', '.join(near)}" if near else ""


def _candidates(rows: list[dict[str, Any]], source: str) -> list[Candidates]:
    from actors.scorers.pairrm.inputs import Candidates

    return [
        Candidates(
            row["prompt_id"],
            row["prompt_text"] if source == "templated" else plain_text(row["messages"]),
            row["completions"],
        )
        for row in rows
    ]


def _digest(file: Path | None, settings: dict[str, Any]) -> str:
    """Twelve hex digits of the SHA-256 of `settings` and of the file's bytes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    if file is not None:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


def _excerpt(result: Any) -> str:
    """What a rule returned, at most 200 characters of it."""
    text = repr(result)
    return text if len(text) <= 200 else text[:200] + "..."


def free_gpu() -> None:
    """Return memory that nothing uses any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
