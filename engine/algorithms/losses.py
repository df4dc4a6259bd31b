"""Elementary losses: pure functions of tensors, one equation each, no reduction over the batch.

All log-probabilities are natural and summed over the answer's tokens. In the equations lp is the policy's
log-probability of an answer, a and b are the log-ratios lp - lp_ref of the chosen and the rejected answer,
D = a - b, n the number of tokens, sg the logistic function; w is chosen, l rejected. The result has the dtype
of its inputs (float32 or better: at eta = 1000 SPPO starts between 1e4 and 1.6e5, beyond float16). Torch is
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
    """Under the reference; nothing flows back through it."""
    reference_rejected: Tensor
    chosen_tokens: Tensor
    """n_w, at least 1."""
    rejected_tokens: Tensor
    chosen_win: Tensor
    """In [0, 1]: P(chosen beats the policy), or P(chosen beats rejected), as the data has it."""
    rejected_win: Tensor

    @property
    def a(self) -> Tensor:
        return self.chosen - self.reference_chosen

    @property
    def b(self) -> Tensor:
        return self.rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        return self.a - self.b


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) = -log sg(-x), without overflow at either end."""
    from torch.nn import functional

    return functional.softplus(x)


def relu(x: Tensor) -> Tensor:
    """max(0, x)."""
    return x.clamp(min=0.0)


# ---- functions of the margin D alone ----


def dpo_sigmoid(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-log sg(beta D). DPO (arXiv 2305.18290) equation 7; SPIN (2401.01335) where l is the policy's own answer."""
    return softplus(-beta * pairs.margin)


def cdpo(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """-(1 - e) log sg(beta D) - e log sg(-beta D). Conservative DPO (Mitchell 2023); e in [0, 1/2]."""
    z = beta * pairs.margin
    return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


def dpo_soft(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-p log sg(beta D) - (1 - p) log sg(-beta D), p = chosen_win. CREAM (2410.12735) with p its consistency."""
    z = beta * pairs.margin
    return pairs.chosen_win * softplus(-z) + (1 - pairs.chosen_win) * softplus(z)


def robust(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """(-(1 - e) log sg(beta D) + e log sg(-beta D)) / (1 - 2e). Robust DPO (2403.00409); unbounded below in D."""
    z = beta * pairs.margin
    return ((1 - label_smoothing) * softplus(-z) - label_smoothing * softplus(z)) / (1 - 2 * label_smoothing)


def hinge(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 - beta D). SLiC's margin (2305.10425) on log-ratios, as in RSO (2309.06657)."""
    return relu(1 - beta * pairs.margin)


def ipo_sum(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """(D - 1 / (2 beta))^2. IPO (2310.12036) equation 17 with tau = beta."""
    return (pairs.margin - 1 / (2 * beta)) ** 2


def ipo_avg(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """(a / n_w - b / n_l - 1 / (2 beta))^2, the length-averaged form of TRL's DPOTrainer."""
    return (pairs.a / pairs.chosen_tokens - pairs.b / pairs.rejected_tokens - 1 / (2 * beta)) ** 2


def exo_pair(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """sg(z) log(sg(z) / (1 - e)) + sg(-z) log(sg(-z) / e), z = beta D. EXO (2402.00856) equation 16; e > 0."""
    z = beta * pairs.margin
    right = z.sigmoid() * (-softplus(-z) - math.log(1 - label_smoothing))
    return right + (-z).sigmoid() * (-softplus(z) - math.log(label_smoothing))


def discopop(pairs: Pairs, *, beta: float = 0.1, tau: float = 0.05) -> Tensor:
    """-log sg(z) (1 - m) + e^-z m, m = sg(z / tau), z = beta D. DiscoPOP (2406.08414); tau < 1.

    Not convex: for tau below 0.1 it rises in D at D = 0, so that the very first steps narrow the margin.
    """
    z = beta * pairs.margin
    # e^-z overflows only where m vanishes: one exponential of the sum instead of their product.
    return softplus(-z) * (-z / tau).sigmoid() + (-z - softplus(-z / tau)).exp()


def margin_sigmoid(pairs: Pairs, *, beta: float = 0.1, delta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """(1 - e) max(0, -log sg(beta D) - d) + e max(0, -log sg(-beta D) - d). arXiv 2508.08466; no gradient beyond d."""
    z = beta * pairs.margin
    return (1 - label_smoothing) * relu(softplus(-z) - delta) + label_smoothing * relu(softplus(z) - delta)


# ---- functions of both log-ratios ----


def nca_pair(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-log sg(beta a) - 1/2 log sg(-beta a) - 1/2 log sg(-beta b). NCA (2402.05369)."""
    a, b = beta * pairs.a, beta * pairs.b
    return softplus(-a) + 0.5 * softplus(a) + 0.5 * softplus(b)


def bco_pair(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """-log sg(beta a) - log sg(-beta b). BCO (2404.04656) without its reward shift, as in TRL from 0.29 on."""
    return softplus(-beta * pairs.a) + softplus(beta * pairs.b)


def bco_pair_shifted(pairs: Pairs, *, beta: float = 0.1, delta: float | None = None) -> Tensor:
    """-log sg(beta a - d) - log sg(-(beta b - d)). BCO (2404.04656) equation 10.

    d: None takes the mean of both rewards over this batch, without gradient; the paper keeps a running mean.
    """
    a, b = beta * pairs.a, beta * pairs.b
    shift = ((a + b) / 2).mean().detach() if delta is None else delta
    return softplus(shift - a) + softplus(b - shift)


def apo_zero(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """1 - sg(beta a) + sg(beta b). APO-zero (2408.06266), shifted up by 1 as in TRL."""
    return 1 - (beta * pairs.a).sigmoid() + (beta * pairs.b).sigmoid()


def apo_down(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """sg(beta a) + 1 - sg(beta D). APO-down (2408.06266): both go down, the rejected answer further."""
    return (beta * pairs.a).sigmoid() + 1 - (beta * pairs.margin).sigmoid()


def apo_hinge(pairs: Pairs, *, beta: float = 0.1, m: float = 1.0) -> Tensor:
    """max(0, m - beta a) + max(0, m + beta b). APO-hinge-zero (arXiv 2508.08466), beta once as in its code."""
    return relu(m - beta * pairs.a) + relu(m + beta * pairs.b)


def apo_hinge_double_beta(pairs: Pairs, *, beta: float = 0.1, m: float = 1.0) -> Tensor:
    """max(0, m - beta^2 a) + max(0, m + beta^2 b). The same, its equations 6, 10 and 11 taken literally."""
    return apo_hinge(pairs, beta=beta * beta, m=m)


def apo_hinge_softplus(pairs: Pairs, *, beta: float = 0.1, m: float = 1.0) -> Tensor:
    """log(1 + e^(m - beta a)) + log(1 + e^(m + beta b)). Its smooth form (2508.08466)."""
    return softplus(m - beta * pairs.a) + softplus(m + beta * pairs.b)


# ---- SPPO for pairs ----


def sppo(log_ratio: Tensor, win_rate: Tensor, baseline: Tensor | float, eta: float) -> Tensor:
    """[..., n] squared error of each answer: (log_ratio - eta * (win_rate - baseline))^2.

    SPPO (arXiv 2405.00675): equation 4.7 with baseline 1/2; equation 4.5 with log Z / eta.
    log_ratio: nats, any real. win_rate, baseline: in [0, 1]. eta: 1 / beta of the released code, 1000 there.
    """
    return (log_ratio - eta * (win_rate - baseline)) ** 2


def sppo_soft(pairs: Pairs, *, eta: float = 1000.0) -> Tensor:
    """((a - eta (P_w - 1/2))^2 + (b - eta (P_l - 1/2))^2) / 2. `loss_type sppo` of the released SPPO code."""
    return (sppo(pairs.a, pairs.chosen_win, 0.5, eta) + sppo(pairs.b, pairs.rejected_win, 0.5, eta)) / 2


def sppo_scaled(pairs: Pairs, *, eta: float = 1000.0) -> Tensor:
    """sppo_soft / eta^2: the same optimum at the scale of rewards instead of nats."""
    return sppo_soft(pairs, eta=eta) / eta**2


def sppo_single(pairs: Pairs, *, eta: float = 1000.0) -> Tensor:
    """((a - eta (p - 1/2))^2 + (b + eta (p - 1/2))^2) / 2, p = chosen_win taken as P(w beats l). Released code."""
    return (sppo(pairs.a, pairs.chosen_win, 0.5, eta) + sppo(pairs.b, 1 - pairs.chosen_win, 0.5, eta)) / 2


def sppo_hard(pairs: Pairs, *, beta: float = 0.1) -> Tensor:
    """(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2. TRL's sppo_hard: twice sppo_soft at win rates 1 and 0."""
    return (pairs.a - 0.5 / beta) ** 2 + (pairs.b + 0.5 / beta) ** 2


# ---- losses that sort the batch: the value depends on which pairs share a micro-batch ----


def aot(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """cDPO on sorted differences u = lp(w) - lp(l) and v = lp_ref(w) - lp_ref(l). AOT, paired (2406.05882).

    Row i of the result is the i-th quantile, not the i-th pair.
    """
    u, v = pairs.chosen - pairs.rejected, pairs.reference_chosen - pairs.reference_rejected
    return _smoothed(beta * (u.sort().values - v.sort().values), label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """The same on sorted a and sorted b (2406.05882); TRL before 0.28 called this one `aot_pair`."""
    return _smoothed(beta * (pairs.a.sort().values - pairs.b.sort().values), label_smoothing)


def _smoothed(z: Tensor, label_smoothing: float) -> Tensor:
    return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


# ---- lengths, likelihoods, and losses without a reference ----


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
    """log(1 - e^x) for x <= 0, precise at both ends; x is kept below 0 by the dtype's resolution."""
    import torch

    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    # Both branches are computed: each gets an argument at which it and its gradient are finite.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def dpo_plus_nll(pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """-log sg(beta D) + alpha NLL(w). Iterative Reasoning PO (2404.19733) equation 1."""
    return dpo_sigmoid(pairs, beta=beta) + alpha * sft(pairs)


# ---- losses of something else than pairs of log-probabilities ----


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

    log_ratio: any shape, nats. desirable: bool of that shape. z0: at least 0, no gradient; an estimate of the
    divergence from the reference, on answers to other prompts.
    """
    import torch

    value = beta * (log_ratio - z0)
    good, bad = desirable_weight * (-value).sigmoid(), undesirable_weight * value.sigmoid()
    return torch.where(desirable, good, bad)


def bradley_terry_rm(chosen: Tensor, rejected: Tensor, *, margin: float = 0.0, centre: float = 0.0) -> Tensor:
    """-log sg(r_w - r_l - margin) + centre (r_w + r_l)^2, of a reward model's rewards [B] (2307.09288; 2312.09244)."""
    return softplus(margin - (chosen - rejected)) + centre * (chosen + rejected) ** 2


PairLoss = Callable[..., "Tensor"]
"""(Pairs, *, beta and others by name) -> [B]."""

LOSSES: dict[str, PairLoss] = {
    "dpo_sigmoid": dpo_sigmoid,
    "dpo_cdpo_label_smoothing": cdpo,
    "dpo_soft": dpo_soft,
    "robust": robust,
    "hinge": hinge,
    "ipo_sum": ipo_sum,
    "ipo_avg": ipo_avg,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair_nodelta": bco_pair,
    "bco_pair_delta": bco_pair_shifted,
    "sppo_soft_official": sppo_soft,
    "sppo_scaled": sppo_scaled,
    "sppo_single_official": sppo_single,
    "sppo_hard_trl": sppo_hard,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "apo_hinge_zero_single_beta": apo_hinge,
    "apo_hinge_zero_literal_double_beta": apo_hinge_double_beta,
    "apo_hinge_softplus_single_beta": apo_hinge_softplus,
    "margin_sigmoid": margin_sigmoid,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
    "simpo": simpo,
    "sft": sft,
    "cpo_sigmoid": cpo,
    "orpo": orpo,
    "spin": dpo_sigmoid,
    "dpo_plus_nll_irpo": dpo_plus_nll,
}
"""Every loss of a pair, by the names of the field."""
