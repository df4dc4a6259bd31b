"""DeBERTa-v2's encoder without padding and without gathers, for inference on CPUs. Exact up to rounding.

transformers' implementation builds, per layer, [B * heads, n, n] tables of relative positions by gathering
with 64-bit indices; at more than one row per batch they leave the cache and memory traffic rules. Two facts
remove them: relative positions depend on i - j alone, so a product with the 2n - 1 possible positions holds
every bias as a skewed view; and everything but attention works on single tokens, so rows need no padding.
Knows DeBERTa's modules; nothing of PairRM.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

if TYPE_CHECKING:
    from transformers import DebertaV2Config, DebertaV2Model
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention


def supports(config: DebertaV2Config) -> bool:
    """Whether `encode_packed` knows this shape of DeBERTa: that of DeBERTa-v3."""
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
