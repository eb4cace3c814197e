"""Ranks of the right answers among candidates, and metrics of them; independent of the task.

Shapes: R resamples of the queries, Q queries, C candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Results of many queries over the same candidates.

    `rank_Q` counts wrong candidates before the first right one, `num_right_Q` right ones.
    """

    rank_Q: NDArray[np.int64]
    num_right_Q: NDArray[np.int64]
    num_candidates: int

    def __len__(self) -> int:
        return len(self.rank_Q)

    def found(self, depth: int) -> float:
        """Share of queries with a right answer among the first `depth`, in percent."""
        return 100.0 * float((self.rank_Q < depth).mean())

    def chance(self, depth: int) -> float:
        """Expected share for candidates in random order, in percent.

        A query with m right ones of C misses them all with probability
        (1 - m / C) (1 - m / (C - 1)) ... over the first `depth` places.
        """
        missed_Q = np.ones(len(self))
        for place in range(min(depth, self.num_candidates)):
            missed_Q *= np.clip(1 - self.num_right_Q / (self.num_candidates - place), 0, 1)
        return 100.0 * float((1 - missed_Q).mean())


def found_within(depth: int) -> Callable[[Ranking, NDArray[np.float64]], NDArray[np.float64]]:
    """A metric for `bootstrap`: percent found [R], with queries weighted by each row."""

    def found(ranking: Ranking, weights_RQ: NDArray[np.float64]) -> NDArray[np.float64]:
        hit_Q = (ranking.rank_Q < depth).astype(np.float64)
        values_R: NDArray[np.float64] = 100.0 * (weights_RQ @ hit_Q) / weights_RQ.sum(1)
        return values_R

    return found


def rank(scores_QC: NDArray[np.float32], right_QC: NDArray[np.bool_]) -> Ranking:
    """Rank candidates by score, the highest first; ValueError for a query without a right answer.

    A wrong candidate that ties with the best right one comes before it, so that a model that
    answers everything alike finds nothing.
    """
    num_right_Q = right_QC.sum(1)
    if not num_right_Q.all():
        raise ValueError("every query needs a right answer among the candidates")
    best_Q = np.where(right_QC, scores_QC, -np.inf).max(1)
    before_QC = ~right_QC & (scores_QC >= best_Q[:, None])
    return Ranking(
        rank_Q=before_QC.sum(1), num_right_Q=num_right_Q, num_candidates=scores_QC.shape[1]
    )
