"""Make and train small PairRM models, where no public checkpoint has learned the preferences.

Trains on pairs of answers, each with the probability that the left one wins.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from actors.scorers.pairrm.inputs import Candidates, Comparison, Parts, Room, add_markers
from actors.scorers.pairrm.model import PairRM, score_candidates
from engine.errors import NonFiniteError
from engine.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DEBERTA_V3: dict[str, Any] = {
    "relative_attention": True,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
"""Values of DeBERTa-v3's config that differ from the defaults, without the sizes."""


class Pair(NamedTuple):
    """One judged pair of answers."""

    source: str
    left: str
    right: str
    left_wins: float
    """Probability in [0, 1] that left is better; 1.0 or 0.0 for a plain label."""


def new_pairrm(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    intermediate_size: int | None = None,
    position_buckets: int = 32,
    room: Room | None = None,
    dropout: float = 0.05,
    seed: int = 0,
) -> PairRM:
    """Return a fresh PairRM in the shape of DeBERTa-v3 around a copy of `tokenizer`, with the markers added.

    Deterministic by `seed`. `position_buckets` of relative positions in each direction (256 in DeBERTa-v3).
    """
    from transformers import DebertaV2Config

    tokenizer = copy.deepcopy(tokenizer)
    add_markers(tokenizer)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size or 4 * hidden_size,
        pad_token_id=tokenizer.pad_token_id or 0,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **(DEBERTA_V3 | {"position_buckets": position_buckets}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "new_pairrm"))
        return PairRM(config, tokenizer, room, dropout=dropout)


def train_pairrm(
    model: PairRM,
    pairs: Sequence[Pair],
    *,
    epochs: float = 1.0,
    steps: int | None = None,
    batch_size: int = 32,
    lr: float = 1e-3,
    warmup_ratio: float = 0.1,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    seed: int = 0,
) -> list[float]:
    """Train `model` in place with AdamW and return each step's loss; `steps` overrides `epochs`.

    Loss: -log sigmoid(sign * (left - right)) of arXiv 2306.02561, for a probability p its expectation. Each
    pair is shown in an order drawn anew each time. The learning rate warms up, then falls linearly to 0.
    The same seed on the same machine gives the same weights. Raises NonFiniteError, weights not updated.
    """
    steps = math.ceil(epochs * len(pairs) / batch_size) if steps is None else steps
    parts = model.inputs.encode(_candidates(pairs))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_linear(steps, warmup_ratio))
    batches = _batches(len(pairs), batch_size, seed)
    model.train()
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "pairrm dropout"))
        for step in range(steps):
            rows, swapped = next(batches)
            loss = _loss(model, parts, pairs, rows, swapped)
            if not torch.isfinite(loss):
                raise NonFiniteError(f"PairRM's loss is {loss.item()} in step {step}; lower lr = {lr}")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    model.eval()
    return losses


def pair_accuracy(model: PairRM, pairs: Sequence[Pair], batch_tokens: int = 16384) -> float:
    """Share of `pairs` in which both orders together prefer the likelier winner.

    Pairs with left_wins = 1/2 do not count; a logit of exactly 0 counts half. NaN where nothing counts.
    """
    judged = [pair for pair in pairs if pair.left_wins != 0.5]
    scores = score_candidates(model, _candidates(judged), batch_tokens)
    margins = np.array([score.logits[0, 1] - score.logits[1, 0] for score in scores])
    labels = np.array([math.copysign(1.0, pair.left_wins - 0.5) for pair in judged])
    return float(np.mean((1 + np.sign(margins * labels)) / 2)) if judged else math.nan


def _candidates(pairs: Sequence[Pair]) -> list[Candidates]:
    return [Candidates(str(row), pair.source, (pair.left, pair.right)) for row, pair in enumerate(pairs)]


def _warmup_linear(steps: int, warmup_ratio: float) -> Callable[[int], float]:
    warmup = math.ceil(steps * warmup_ratio)
    return lambda step: min((step + 1) / max(warmup, 1), (steps - step) / max(steps - warmup, 1))


def _batches(num_pairs: int, batch_size: int, seed: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Endless batches of row numbers and of whether each row's answers change places; every row once per epoch."""
    generator = np.random.default_rng(derive_seed(seed, "pairrm batches"))
    while True:
        order = generator.permutation(num_pairs)
        for start in range(0, num_pairs, batch_size):
            rows = order[start : start + batch_size].tolist()
            yield rows, (generator.random(len(rows)) < 0.5).tolist()


def _loss(model: PairRM, parts: list[Parts], pairs: Sequence[Pair], rows: list[int], swapped: list[bool]) -> Tensor:
    """Mean cross-entropy between sigmoid(logit) and the probability that the answer shown first wins."""
    orders = [parts[row].index[::-1] if swap else parts[row].index for row, swap in zip(rows, swapped, strict=True)]
    comparisons = [Comparison(row, left, right) for row, (left, right) in zip(rows, orders, strict=True)]
    logits = model(model.inputs.pad(parts, comparisons))
    wins = [1 - pairs[row].left_wins if swap else pairs[row].left_wins for row, swap in zip(rows, swapped, strict=True)]
    return F.binary_cross_entropy_with_logits(logits, torch.tensor(wins, device=logits.device))
