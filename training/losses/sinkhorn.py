"""Sinkhorn-Knopp: assignments in which every prototype gets an equal share of the tokens.

Shapes: N tokens, K prototypes.
"""

from collections.abc import Callable

from torch import Tensor


def _own_rank(log_totals_K: Tensor) -> Tensor:
    return log_totals_K


def sinkhorn_knopp(
    logits_NK: Tensor,
    *,
    num_iterations: int = 3,
    over_ranks: Callable[[Tensor], Tensor] = _own_rank,
) -> Tensor:
    """Scale exp(logits) so that prototypes share the tokens equally and each token sums to 1.

    Works with logarithms, so that low temperatures neither overflow nor lose a token.

    Args:
        logits_NK: Cosines divided by the teacher temperature.
        num_iterations: Alternations; 3 is SwAV's and DINOv2's number.
        over_ranks: Turns this rank's log of totals [K] into the log of the totals over all ranks.

    Returns:
        float32 [N, K]; rows sum to 1 exactly, columns to N / K the closer the more iterations.

    Source: SwAV, arXiv:2006.09882, section 3.1; over DINO heads, DINOv2, arXiv:2304.07193.
    """
    log_NK = logits_NK.float()
    for _ in range(num_iterations):
        log_NK = log_NK - over_ranks(log_NK.logsumexp(0))
        log_NK = log_NK.log_softmax(-1)
    return log_NK.softmax(-1)
