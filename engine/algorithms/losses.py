"""Losses of the DPO family: pure functions of tensors, one equation each, without a reduction over the batch.

Log-probabilities are natural logarithms, summed over the answer's tokens. In the equations w is the chosen and l
the rejected answer, lp the policy's log-probability of an answer, a and b the log-ratios lp - lp_ref of w and l,
D = a - b, n the number of tokens, sg the logistic function and e label_smoothing. The result has the dtype of the
inputs, which must be float32 or better: at eta = 1000 SPPO starts between 1e4 and 1.6e5, beyond float16. Torch is
imported where it is used, so that configs load without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """B pairs of a chosen and a rejected answer to the same prompt; every tensor is [B]."""

    chosen: Tensor
    """lp(w), nats."""
    rejected: Tensor
    reference_chosen: Tensor
    """lp_ref(w); carries no gradient."""
    reference_rejected: Tensor
    chosen_tokens: Tensor
    """n_w, at least 1."""
    rejected_tokens: Tensor
    chosen_win: Tensor
    """[0, 1]: P(chosen beats the policy), or P(chosen beats rejected); the loss says which it needs."""
    rejected_win: Tensor

    @property
    def a(self) -> Tensor:
        """Log-ratio of the chosen answer."""
        return self.chosen - self.reference_chosen

    @property
    def b(self) -> Tensor:
        """Log-ratio of the rejected answer."""
        return self.rejected - self.reference_rejected

    @property
    def difference(self) -> Tensor:
        """D = a - b."""
        return self.a - self.b


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) = -log sg(-x), without overflow at either end."""
    from torch.nn import functional

    return functional.softplus(x)


def relu(x: Tensor) -> Tensor:
    """max(0, x)."""
    return x.clamp(min=0.0)


def _smoothed(z: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - e) log sg(z) - e log sg(-z)."""
    return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


# ---- functions of D alone ----


def sigmoid(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-log sg(beta D). DPO (arXiv 2305.18290) equation 7; SPIN's (2401.01335) if l is an answer of the policy."""
    return softplus(-beta * pairs.difference)


def cdpo(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """-(1 - e) log sg(beta D) - e log sg(-beta D). Conservative DPO (Mitchell 2023); e in [0, 1/2]."""
    return _smoothed(beta * pairs.difference, label_smoothing)


def sigmoid_soft(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-p log sg(beta D) - (1 - p) log sg(-beta D), p = P(w beats l). CREAM (2410.12735) if p is its consistency."""
    z = beta * pairs.difference
    return pairs.chosen_win * softplus(-z) + (1 - pairs.chosen_win) * softplus(z)


def robust(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """(-(1 - e) log sg(beta D) + e log sg(-beta D)) / (1 - 2e). Robust DPO (2403.00409); unbounded below in D."""
    z = beta * pairs.difference
    return ((1 - label_smoothing) * softplus(-z) - label_smoothing * softplus(z)) / (1 - 2 * label_smoothing)


def hinge(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 - beta D). SLiC's hinge (2305.10425) on log-ratios, as in RSO (2309.06657)."""
    return relu(1 - beta * pairs.difference)


def ipo(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """(a / n_w - b / n_l - 1 / (2 beta))^2. IPO (2310.12036) equation 17, tau = beta, on means per token as in TRL."""
    return (pairs.a / pairs.chosen_tokens - pairs.b / pairs.rejected_tokens - 1 / (2 * beta)) ** 2


def ipo_sum(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """(D - 1 / (2 beta))^2. IPO equation 17 on sums over tokens, as in the SPPO code and others."""
    return (pairs.difference - 1 / (2 * beta)) ** 2


def exo_pair(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """sg(z) log(sg(z) / (1 - e)) + sg(-z) log(sg(-z) / e), z = beta D. EXO (2402.00856) equation 16; e > 0."""
    z = beta * pairs.difference
    right = z.sigmoid() * (-softplus(-z) - math.log(1 - label_smoothing))
    return right + (-z).sigmoid() * (-softplus(z) - math.log(label_smoothing))


def discopop(pairs: Pairs, *, beta: float = 0.1, tau: float = 0.05) -> Tensor:
    """-log sg(z) (1 - q) + e^-z q, q = sg(z / tau), z = beta D. DiscoPOP (2406.08414) equation 5; tau < 1.

    Not convex: for tau below 0.1 it rises in D at D = 0, so that the first steps narrow D.
    """
    z = beta * pairs.difference
    # e^-z overflows only where q vanishes: one exponential of the sum instead of their product.
    return softplus(-z) * (-z / tau).sigmoid() + (-z - softplus(-z / tau)).exp()


def margin_sigmoid(pairs: Pairs, *, beta: float = 0.1, delta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """(1 - e) max(0, -log sg(beta D) - d) + e max(0, -log sg(-beta D) - d). arXiv 2508.08466; no gradient beyond d."""
    z = beta * pairs.difference
    return (1 - label_smoothing) * relu(softplus(-z) - delta) + label_smoothing * relu(softplus(z) - delta)


# ---- functions of both log-ratios ----


def nca_pair(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-log sg(beta a) - 1/2 log sg(-beta a) - 1/2 log sg(-beta b). NCA (2402.05369)."""
    a, b = beta * pairs.a, beta * pairs.b
    return softplus(-a) + 0.5 * softplus(a) + 0.5 * softplus(b)


def bco_pair(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-log sg(beta a) - log sg(-beta b). BCO (2404.04656) without its reward shift, as in TRL since 0.29."""
    return softplus(-beta * pairs.a) + softplus(beta * pairs.b)


def bco_pair_shifted(pairs: Pairs, *, beta: float = 0.1, delta: float | None = None) -> Tensor:
    """-log sg(beta a - d) - log sg(-(beta b - d)). BCO (2404.04656) equation 10, d its reward shift.

    delta: d; None takes the mean of both rewards over this batch, without gradient. The paper keeps a running mean.
    """
    a, b = beta * pairs.a, beta * pairs.b
    shift = ((a + b) / 2).mean().detach() if delta is None else delta
    return softplus(shift - a) + softplus(b - shift)


def apo_zero(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """1 - sg(beta a) + sg(beta b). APO-zero (2408.06266), shifted up by 1 as in TRL."""
    return 1 - (beta * pairs.a).sigmoid() + (beta * pairs.b).sigmoid()


def apo_down(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """sg(beta a) + 1 - sg(beta D). APO-down (2408.06266): lowers both answers, the rejected one further."""
    return (beta * pairs.a).sigmoid() + 1 - (beta * pairs.difference).sigmoid()


def apo_hinge(pairs: Pairs, *, beta: float = 0.1, margin: float = 1.0) -> Tensor:
    """max(0, m - beta a) + max(0, m + beta b), m = margin. APO-hinge-zero (2508.08466), beta once as in its code."""
    return relu(margin - beta * pairs.a) + relu(margin + beta * pairs.b)


def apo_hinge_double_beta(pairs: Pairs, *, beta: float = 0.1, margin: float = 1.0) -> Tensor:
    """max(0, m - beta^2 a) + max(0, m + beta^2 b). Equations 6, 10 and 11 of 2508.08466 read literally."""
    return apo_hinge(pairs, beta=beta * beta, margin=margin)


def apo_hinge_softplus(pairs: Pairs, *, beta: float = 0.1, margin: float = 1.0) -> Tensor:
    """log(1 + e^(m - beta a)) + log(1 + e^(m + beta b)). The smooth form of apo_hinge (2508.08466)."""
    return softplus(margin - beta * pairs.a) + softplus(margin + beta * pairs.b)


# ---- SPPO ----


def squared_error(log_ratio: Tensor, win_rate: Tensor, baseline: Tensor | float, eta: float) -> Tensor:
    """[..., n] (log_ratio - eta (win_rate - baseline))^2 of each answer.

    SPPO (arXiv 2405.00675): equation 4.7 with baseline 1/2; equation 4.5 with baseline log Z / eta.
    log_ratio: nats. win_rate, baseline: in [0, 1]. eta: 1 / beta of the released code, which uses 1000.
    """
    return (log_ratio - eta * (win_rate - baseline)) ** 2


def sppo(pairs: Pairs, *, eta: float = 1000.0) -> Tensor:
    """((a - eta (P_w - 1/2))^2 + (b - eta (P_l - 1/2))^2) / 2. `loss_type=sppo` of the released code.

    P_w = chosen_win and P_l = rejected_win are win rates against the policy.
    """
    chosen = squared_error(pairs.a, pairs.chosen_win, 0.5, eta)
    return (chosen + squared_error(pairs.b, pairs.rejected_win, 0.5, eta)) / 2


def sppo_scaled(pairs: Pairs, *, eta: float = 1000.0) -> Tensor:
    """sppo / eta^2: the same optimum, in units of the reward (log_ratio / eta) instead of nats."""
    return sppo(pairs, eta=eta) / eta**2


def sppo_single(pairs: Pairs, *, eta: float = 1000.0) -> Tensor:
    """((a - eta (p - 1/2))^2 + (b + eta (p - 1/2))^2) / 2. `loss_type=sppo_single` of the released code.

    p = chosen_win is P(w beats l).
    """
    chosen = squared_error(pairs.a, pairs.chosen_win, 0.5, eta)
    return (chosen + squared_error(pairs.b, 1 - pairs.chosen_win, 0.5, eta)) / 2


def sppo_hard(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2, as in TRL: twice `sppo` at win rates 1 and 0, eta = 1 / beta."""
    return (pairs.a - 0.5 / beta) ** 2 + (pairs.b + 0.5 / beta) ** 2


# ---- losses that sort the batch: their value depends on which pairs share a micro-batch ----


def aot(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """cDPO on sorted differences u = lp(w) - lp(l) and v = lp_ref(w) - lp_ref(l). AOT, paired (2406.05882).

    Row i of the result is the i-th quantile, not the i-th pair.
    """
    u, v = pairs.chosen - pairs.rejected, pairs.reference_chosen - pairs.reference_rejected
    return _smoothed(beta * (u.sort().values - v.sort().values), label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """cDPO on sorted a minus sorted b. AOT, unpaired (2406.05882); `aot_pair` in TRL before 0.28."""
    return _smoothed(beta * (pairs.a.sort().values - pairs.b.sort().values), label_smoothing)


# ---- losses with lengths or likelihoods, some without a reference ----


def sigmoid_norm(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-log sg(beta (a / n_w - b / n_l)). Length-normalised DPO (Tulu 3, arXiv 2411.15124)."""
    return softplus(-beta * (pairs.a / pairs.chosen_tokens - pairs.b / pairs.rejected_tokens))


def simpo(pairs: Pairs, *, beta: float = 2.0, gamma: float = 0.5) -> Tensor:
    """-log sg(beta (lp(w) / n_w - lp(l) / n_l) - gamma). SimPO (2405.14734) equation 6; gamma / beta in its code."""
    return softplus(gamma - beta * (pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens))


def sft(pairs: Pairs) -> Tensor:
    """-lp(w) / n_w: mean negative log-likelihood per token of the chosen answer."""
    return -pairs.chosen / pairs.chosen_tokens


def cpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """-log sg(beta (lp(w) - lp(l))) + alpha NLL(w). CPO (2401.08417); the NLL is per answer, TRL's over the batch."""
    return softplus(-beta * (pairs.chosen - pairs.rejected)) + alpha * sft(pairs)


def orpo(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """NLL(w) - beta log sg(log odds(w) - log odds(l)). ORPO (2403.07691) equation 6; odds of the mean token.

    The NLL is over the answer's tokens, as in the paper; TRL's is over prompt and answer.
    """
    good, bad = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    log_odds = (good - bad) - (_log1mexp(good) - _log1mexp(bad))
    return sft(pairs) + beta * softplus(-log_odds)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, precise at both ends; x is clamped to at most -eps of its dtype."""
    import torch

    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    # torch.where computes both branches: each gets an argument at which its value and gradient are finite.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def rpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """-log sg(beta D) + alpha NLL(w). Iterative RPO (Iterative Reasoning PO, 2404.19733) equation 1."""
    return sigmoid(pairs, beta=beta) + alpha * sft(pairs)


# ---- losses of other inputs than pairs ----


def kto(
    log_ratio: Tensor,
    desirable: Tensor,
    z0: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w_d (1 - sg(beta (a - z0))) where desirable, w_u (1 - sg(beta (z0 - b))) elsewhere. KTO (2402.01306) eq. 8.

    log_ratio: any shape, nats. desirable: bool of that shape. z0: at least 0, without gradient, an estimate of the
    policy's divergence from the reference on answers to other prompts.
    """
    import torch

    value = beta * (log_ratio - z0)
    good, bad = desirable_weight * (-value).sigmoid(), undesirable_weight * value.sigmoid()
    return torch.where(desirable, good, bad)


def bradley_terry_rm(chosen: Tensor, rejected: Tensor, *, margin: float = 0.0, centre: float = 0.0) -> Tensor:
    """-log sg(r_w - r_l - margin) + centre (r_w + r_l)^2 of reward models' outputs [B] (2307.09288; 2312.09244)."""
    return softplus(margin - (chosen - rejected)) + centre * (chosen + rejected) ** 2


PairLoss = Callable[..., "Tensor"]
"""(Pairs, and parameters such as beta by name) -> [B]."""

LOSSES: dict[str, PairLoss] = {
    loss.__name__: loss
    for loss in (
        *(sigmoid, cdpo, sigmoid_soft, robust, hinge, ipo, ipo_sum, exo_pair, discopop, margin_sigmoid),
        *(nca_pair, bco_pair, bco_pair_shifted, apo_zero, apo_down),
        *(apo_hinge, apo_hinge_double_beta, apo_hinge_softplus),
        *(sppo, sppo_scaled, sppo_single, sppo_hard),
        *(aot, aot_unpaired),
        *(sigmoid_norm, simpo, sft, cpo, orpo, rpo),
    )
}
"""Every loss of a pair by its name: TRL's where TRL has the loss, the paper's elsewhere (docs/dpo.md)."""
