"""PairRM (arXiv 2306.02561): a DeBERTa-v3 that reads a prompt with two answers and says which is better.

A batched module for the checkpoints of llm-blender/PairRM and llm-blender/PairRM-hf, which
actors/scorers/pairrm/checkpoint.py loads.

On CPUs the encoder runs without padding and without gathers, exact up to rounding. transformers' implementation
builds, per layer, [B * heads, n, n] tables of relative positions by gathering with 64-bit indices; with more than
one row per batch they leave the cache, and memory traffic dominates. Two facts remove them: relative positions
depend on i - j alone, so a product with the 2n - 1 possible positions holds every bias as a skewed view; and
everything but attention works on single tokens, so rows need no padding.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from actors.scorers.base import PairScores
from actors.scorers.pairrm.inputs import Candidates, Comparison, PaddedBatch, PairInputs, Parts, Room
from engine.errors import ModelError, RoleError

if TYPE_CHECKING:
    from transformers import DebertaV2Config, DebertaV2Model, PreTrainedTokenizerBase
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention


log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"


class PairRM(nn.Module):
    """DeBERTa-v2 backbone and a head that gives each answer a score; a comparison's logit is left - right.

    Parameter names are those of the public checkpoints. The head always computes in float32.
    """

    def __init__(
        self,
        config: DebertaV2Config,
        tokenizer: PreTrainedTokenizerBase,
        room: Room | None = None,
        num_tasks: int = 1,
        dropout: float = 0.05,
    ):
        from transformers import DebertaV2Model

        super().__init__()
        self.inputs = PairInputs(tokenizer, room)
        self.num_tasks, self.dropout = num_tasks, dropout
        self.pretrained_model = DebertaV2Model(config)
        hidden = config.hidden_size
        self.head_layer = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * hidden, hidden),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_tasks),
        )
        _check_positions(config, self.inputs)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Return [B] float32 logits, > 0 where the left answer is better."""
        hidden = self._packed(batch) if self._packs() else self._padded(batch)
        source, left, right = hidden.float().unbind(dim=1)
        scores = [self.head_layer(torch.cat([source, answer], dim=-1)) for answer in (left, right)]
        return (scores[0] - scores[1]).mean(dim=-1)

    def _packs(self) -> bool:
        """Whether to pack. On a GPU many small products are slower; training needs transformers' own modules."""
        inference = not self.training and not torch.is_grad_enabled()
        return inference and self.device.type == "cpu" and supports(self.pretrained_model.config)

    def _packed(self, batch: PaddedBatch) -> Tensor:
        """[B, 3, hidden] last states at the markers."""
        lengths = batch.attention_mask.sum(axis=1)
        starts = np.cumsum(lengths) - lengths
        rows = [torch.from_numpy(ids[:length]) for ids, length in zip(batch.input_ids, lengths, strict=True)]
        return encode_packed(self.pretrained_model, rows)[torch.from_numpy(batch.positions + starts[:, None])]

    def _padded(self, batch: PaddedBatch) -> Tensor:
        """[B, 3, hidden] last states at the markers."""
        arrays = (batch.input_ids, batch.attention_mask, batch.positions)
        ids, mask, positions = (torch.from_numpy(array).to(self.device) for array in arrays)
        # DebertaV2Model itself keeps the hidden states of every layer; only the last is read here.
        embedded = self.pretrained_model.embeddings(input_ids=ids, mask=mask)
        hidden = self.pretrained_model.encoder(embedded, mask, output_hidden_states=False).last_hidden_state
        return hidden[torch.arange(len(ids), device=self.device)[:, None], positions]

    def compute_in(self, dtype: str) -> PairRM:
        """Cast the backbone to "float32" or "bfloat16", in place."""
        self.pretrained_model.to(getattr(torch, dtype))
        return self

    def save(self, folder: str | Path) -> None:
        """Write a folder that this module, `DebertaV2PairRM.from_pretrained` and llm_blender's loadranker read."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.inputs.tokenizer.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS, {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self._config_dict(), indent=2) + "\n", encoding="utf-8")

    def _config_dict(self) -> dict[str, Any]:
        return {
            **self.pretrained_model.config.to_dict(),
            **self.inputs.special_ids,
            "architectures": ["DebertaV2PairRM"],
            "n_tasks": self.num_tasks,
            "drop_out": self.dropout,
            "ranker_type": "pairranker",
            "source_maxlength": self.inputs.room.source,
            "candidate_maxlength": self.inputs.room.answer,
        }


def score_candidates(model: PairRM, prompts: Sequence[Candidates], batch_tokens: int) -> list[PairScores]:
    """Compare the answers of each prompt in both orders.

    Equal answers of a prompt are compared once and have logit 0 between each other. batch_tokens: upper bound on the
    tokens of a forward pass, padding included; comparisons of all prompts with similar lengths share a pass. Out of
    memory halves the bound and continues. Raises RoleError naming the prompts where a single comparison does not fit
    into memory or a logit is not finite.
    """
    parts = model.inputs.encode(prompts)
    comparisons = [Comparison(number, *order) for number, part in enumerate(parts) for order in part.orders()]
    logits = [np.zeros((len(part.answers), len(part.answers))) for part in parts]
    model.eval()
    for batch, values in _forward_all(model, prompts, parts, comparisons, batch_tokens):
        for c, value in zip(batch, values, strict=True):
            logits[c.prompt][c.left, c.right] = value
    return [
        PairScores(matrix[np.ix_(part.index, part.index)], part.num_cut())
        for matrix, part in zip(logits, parts, strict=True)
    ]


def _forward_all(
    model: PairRM,
    prompts: Sequence[Candidates],
    parts: list[Parts],
    comparisons: list[Comparison],
    batch_tokens: int,
) -> Iterator[tuple[list[Comparison], list[float]]]:
    """Yield batches with their logits, longest comparisons first, so that memory runs out early or never."""
    lengths = {c: model.inputs.length(parts[c.prompt], c) for c in comparisons}
    waiting = sorted(comparisons, key=lengths.__getitem__)
    while waiting:
        longest = lengths[waiting[-1]]
        size = max(1, min(len(waiting), batch_tokens // longest))
        batch = waiting[-size:]
        values = _forward(model, parts, batch)
        if values is None:
            if size == 1:
                raise RoleError(
                    f"PairRM ran out of memory on one comparison of {longest} tokens {_prompt_ids(prompts, batch)}"
                )
            batch_tokens = size * longest // 2
            log.warning("PairRM ran out of memory; continuing with batch_tokens = %d", batch_tokens)
            continue
        if not np.isfinite(values).all():
            raise RoleError(f"PairRM gave logits that are not finite {_prompt_ids(prompts, batch)}; try dtype float32")
        yield batch, values
        del waiting[-size:]


def _prompt_ids(prompts: Sequence[Candidates], batch: Sequence[Comparison]) -> str:
    return f"(prompt_ids {sorted({prompts[c.prompt].prompt_id for c in batch})})"


@torch.inference_mode()
def _forward(model: PairRM, parts: list[Parts], batch: list[Comparison]) -> list[float] | None:
    """Logits of one batch, or None when memory ran out."""
    try:
        return model(model.inputs.pad(parts, batch)).tolist()
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:
        # The CPU allocator has no exception class of its own.
        if "DefaultCPUAllocator" not in str(error):
            raise
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _check_positions(config: DebertaV2Config, inputs: PairInputs) -> None:
    """DeBERTa-v3 has relative positions only; a table of absolute ones would end before a long comparison does."""
    longest = inputs.room.source + 2 * inputs.room.answer
    if config.position_biased_input and longest > config.max_position_embeddings:
        raise ModelError(
            f"the backbone has {config.max_position_embeddings} absolute positions, comparisons {longest} tokens; "
            "lower scorer.source_max_tokens and scorer.answer_max_tokens"
        )


def supports(config: DebertaV2Config) -> bool:
    """Whether `encode_packed` can compute this kind of DeBERTa: that of DeBERTa-v3."""
    kinds = set(config.pos_att_type or [])
    return (
        config.relative_attention
        and not config.position_biased_input
        and config.type_vocab_size == 0
        and getattr(config, "share_att_key", False)
        and kinds == {"c2p", "p2c"}
        and getattr(config, "conv_kernel_size", 0) == 0
    )


def encode_packed(model: DebertaV2Model, rows: list[Tensor]) -> Tensor:
    """Return [T, hidden], the last hidden states of all tokens of `rows` ([tokens] each), one row after the other."""
    bounds = [0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()]
    hidden = model.embeddings(input_ids=torch.cat(rows)[None])[0]
    relative = model.encoder.get_rel_embedding()
    positions = _position_rows(model.encoder, max(len(row) for row in rows), hidden.device)
    for layer in model.encoder.layer:
        context = _self_attention(layer.attention.self, hidden, relative, positions, bounds)
        attended = layer.attention.output(context, hidden)
        hidden = layer.output(layer.intermediate(attended), attended)
    return hidden


def _position_rows(encoder: DebertaV2Encoder, longest: int, device: torch.device) -> Tensor:
    """[2 * longest - 1] row of the relative embeddings for each j - i, from -(longest - 1) upwards."""
    distance = torch.arange(longest - 1, -longest, -1, device=device)  # i - j
    span = encoder.max_relative_positions
    if encoder.position_buckets > 0:
        span = encoder.position_buckets
        distance = make_log_bucket_position(distance, span, encoder.max_relative_positions)
    return (distance.long() + span).clamp(0, 2 * span - 1)


def _self_attention(
    attention: DisentangledSelfAttention, hidden: Tensor, relative: Tensor, positions: Tensor, bounds: list[int]
) -> Tensor:
    """[T, hidden] context: disentangled attention (arXiv 2006.03654, equation 4) within each row."""
    heads, size = attention.num_attention_heads, attention.attention_head_size

    def by_head(x: Tensor) -> Tensor:
        return x.view(len(x), heads, size).transpose(0, 1)

    scale = 1 / math.sqrt(3 * size)  # content-content, content-position and position-content
    query, key = by_head(attention.query_proj(hidden) * scale), by_head(attention.key_proj(hidden))
    value = by_head(attention.value_proj(hidden))
    position_query = by_head(attention.query_proj(relative) * scale)[:, positions]
    position_key = by_head(attention.key_proj(relative))[:, positions]
    middle = len(positions) // 2
    context = torch.empty_like(value)
    for start, end in pairwise(bounds):
        near = slice(middle - (end - start) + 1, middle + (end - start))
        q, k = query[:, start:end], key[:, start:end]
        scores = torch.baddbmm(_skew(q @ position_key[:, near].mT), q, k.mT)
        # Seen from the key, position j - i is the mirror image of i - j.
        scores += _skew(k @ position_query[:, near].flip(1).mT).mT
        torch.bmm(scores.softmax(dim=-1), value[:, start:end], out=context[:, start:end])
    return context.transpose(0, 1).reshape(len(hidden), -1)


def _skew(products: Tensor) -> Tensor:
    """[heads, n, n] view of [heads, n, 2n - 1]: entry (i, j) is column j - i + n - 1 of row i."""
    heads, n, width = products.shape
    return products.as_strided((heads, n, n), (n * width, width - 1, 1), n - 1)
