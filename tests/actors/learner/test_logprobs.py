"""Chunked log-probabilities equal those from full logits, in value and in gradient."""

from __future__ import annotations

import pytest
import torch

from actors.learner.policy import IGNORE, answer_token_logps, summed_logprobs

N, LENGTH, WIDTH, VOCABULARY = 3, 11, 8, 17


def a_batch() -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    """Hidden states, labels of three answers (0, 4 and 6 tokens) and a head."""
    torch.manual_seed(5)
    hidden = torch.randn(N, LENGTH, WIDTH, requires_grad=True)
    labels = torch.full((N, LENGTH), IGNORE)
    labels[1, 3:7] = torch.randint(VOCABULARY, (4,))
    labels[2, 5:11] = torch.randint(VOCABULARY, (6,))
    return hidden, labels, torch.nn.Linear(WIDTH, VOCABULARY)


def from_full_logits(
    hidden: torch.Tensor, labels: torch.Tensor, head: torch.nn.Linear, cap: float | None
) -> torch.Tensor:
    """The plain computation: all logits, log-softmax, the state before each token, masked sum."""
    logits = head(hidden) if cap is None else cap * torch.tanh(head(hidden) / cap)
    logps = logits.log_softmax(-1)
    sums = []
    for n in range(N):
        inside = [t for t in range(LENGTH) if labels[n, t] != IGNORE]
        sums.append(sum((logps[n, t - 1, labels[n, t]] for t in inside), torch.zeros(())))
    return torch.stack(sums)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 1024])
def test_chunks_of_any_size_give_the_values_and_gradients_of_full_logits(chunk, cap):
    hidden, labels, head = a_batch()
    weights = torch.tensor([0.7, -1.3, 2.1])
    leaves = [hidden, head.weight, head.bias]
    expected = from_full_logits(hidden, labels, head, cap)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), leaves)

    found = summed_logprobs(hidden, labels, head, chunk, cap)
    gradients = torch.autograd.grad((found * weights).sum(), leaves)

    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_reference_pass_without_gradient_gives_the_same_bits_as_the_training_pass():
    hidden, labels, head = a_batch()
    trained = summed_logprobs(hidden, labels, head, 4)
    with torch.no_grad():
        reference = summed_logprobs(hidden, labels, head, 4)
    assert torch.equal(trained, reference)


def test_never_more_than_a_chunk_of_positions_has_logits_at_one_time():
    hidden, labels, head = a_batch()
    seen = []

    def watched(states: torch.Tensor) -> torch.Tensor:
        seen.append(len(states))
        return head(states)

    summed_logprobs(hidden, labels, watched, 4).sum().backward()
    # Ten answer tokens in chunks of four, once forward and once more backward; prompts and padding never.
    assert sorted(seen) == [2, 2, 4, 4, 4, 4]


def test_per_token_values_stand_at_the_position_before_their_token_and_are_zero_elsewhere():
    hidden, labels, head = a_batch()
    values = answer_token_logps(hidden, labels, head, 4)
    expected = head(hidden).log_softmax(-1)
    assert values.shape == (N, LENGTH - 1)
    torch.testing.assert_close(values[1, 2], expected[1, 2, labels[1, 3]])
    assert values[0].abs().sum() == 0
    assert values.nonzero().tolist() == [[1, t] for t in range(2, 6)] + [[2, t] for t in range(4, 10)]


def test_a_batch_of_empty_answers_gives_zeros_and_a_zero_gradient_rather_than_none():
    hidden, labels, head = a_batch()
    sums = summed_logprobs(hidden, torch.full_like(labels, IGNORE), head, 4)
    sums.sum().backward()
    assert sums.tolist() == [0.0, 0.0, 0.0]
    assert head.weight.grad is not None and head.weight.grad.abs().sum() == 0


def test_a_bfloat16_head_is_summed_in_float32_and_float64():
    hidden, labels, head = a_batch()
    low = summed_logprobs(hidden.bfloat16(), labels, head.bfloat16(), 4)
    assert low.dtype == torch.float64
    exact = head(hidden.bfloat16()).float().log_softmax(-1)
    expected = sum(exact[1, t - 1, labels[1, t]].double() for t in range(3, 7))
    torch.testing.assert_close(low[1], expected, rtol=1e-6, atol=1e-6)
