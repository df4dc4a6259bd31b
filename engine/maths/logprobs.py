"""Log-probabilities of answers from hidden states, without [batch, length, vocabulary] logits.

Pure functions of tensors. Knows nothing of models, tokenizers or ranks: the head is any callable
from hidden states to logits. At 128 k words of vocabulary the logits of one 512-token pair fill
half a GiB in float32, and their gradient as much again; here only `chunk` positions have logits
at one time, in the backward pass too, where they are computed again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORE = -100
"""Label of a position that is not part of an answer (prompt or padding)."""


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int, softcap: float | None = None
) -> Tensor:
    """[T] float32 log-probabilities, in nats, of `targets` [T] given the `hidden` [T, width] that predict them.

    `head` maps [t, width] to [t, vocabulary]; softmax and what follows are float32 whatever it
    computes in. `softcap` c bends logits to c * tanh(logits / c) (Gemma 2, arXiv 2408.00118).
    """

    def piece(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head(states).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return -functional.cross_entropy(logits, wanted, reduction="none")

    # T = 0 still makes one (empty) piece: the head stays in the graph, and its gradient is 0, not missing.
    pieces = []
    for start in range(0, max(1, len(targets)), chunk):
        states, wanted = hidden[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled():
            pieces.append(checkpoint(piece, states, wanted, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(piece(states, wanted))
    return torch.cat(pieces)


def answer_token_logprobs(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int, softcap: float | None = None
) -> Tensor:
    """[N, L - 1] float32: entry t is the log-probability of the token at position t + 1; 0 outside answers.

    hidden: [N, L, width], the decoder's last hidden states. labels: [N, L], the token id at every
    position of an answer, IGNORE elsewhere. This is the one place that shifts by one: the state at
    position t predicts the token at t + 1.
    """
    labels = labels[:, 1:]
    inside = labels != IGNORE
    values = token_logprobs(hidden[:, :-1][inside], labels[inside], head, chunk, softcap)
    # masked_scatter rather than index_add: the latter sums in a different order on every run on a GPU.
    return torch.zeros(labels.shape, dtype=values.dtype, device=values.device).masked_scatter(inside, values)


def summed_logprobs(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int, softcap: float | None = None
) -> Tensor:
    """[N] float64 log-probabilities, summed over each answer's tokens; arguments as in answer_token_logprobs.

    The sum is float64: a log-ratio is a small difference of two sums of some hundred nats.
    """
    return answer_token_logprobs(hidden, labels, head, chunk, softcap).sum(dim=-1, dtype=torch.float64)
