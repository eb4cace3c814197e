"""Ranks of right answers, chance, and the metric for intervals."""

import numpy as np
import pytest

from model.scores.bootstrap import bootstrap
from model.scores.ranking import Ranking, found_within, rank


def test_the_rank_counts_the_wrong_answers_before_the_first_right_one() -> None:
    scores_QC = np.asarray([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.5, 0.1]], np.float32)
    right_QC = np.asarray([[1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
    ranking = rank(scores_QC, right_QC)
    assert ranking.rank_Q.tolist() == [0, 2, 1]
    assert ranking.num_right_Q.tolist() == [1, 1, 2]
    assert (ranking.num_candidates, len(ranking)) == (3, 3)
    assert ranking.found(1) == pytest.approx(100 / 3)
    assert ranking.found(2) == pytest.approx(200 / 3)
    assert ranking.found(3) == 100.0
    ranking = rank(np.zeros((4, 6), np.float32), np.eye(4, 6, dtype=bool))
    assert ranking.rank_Q.tolist() == [5, 5, 5, 5]
    assert ranking.found(5) == 0.0
    ranking = rank(np.asarray([[0.5, 0.5, 0.1]], np.float32), np.asarray([[True, True, False]]))
    assert ranking.rank_Q.tolist() == [0]
    with pytest.raises(ValueError, match="needs a right answer"):
        rank(np.zeros((2, 3), np.float32), np.asarray([[True, False, False], [False] * 3]))


def test_chance_is_what_shuffled_candidates_give() -> None:
    rng = np.random.default_rng(0)
    num_queries = 20_000
    right_QC = np.zeros((num_queries, 12), bool)
    right_QC[:, 0] = True
    right_QC[::2, 1:3] = True  # every other query has three
    ranking = rank(rng.random((num_queries, 12), dtype=np.float32), right_QC)
    for depth in (1, 5):
        assert ranking.found(depth) == pytest.approx(ranking.chance(depth), abs=1.0)
    # By hand, the first place: 1/12 and 3/12, each for half of the queries.
    assert ranking.chance(1) == pytest.approx(100 * (1 / 12 + 3 / 12) / 2)


def test_the_metric_weights_queries() -> None:
    ranking = Ranking(
        rank_Q=np.asarray([0, 4, 9]), num_right_Q=np.ones(3, np.int64), num_candidates=10
    )
    weights_RQ = np.asarray([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    assert found_within(1)(ranking, weights_RQ).tolist() == pytest.approx([100 / 3, 100, 0])
    assert found_within(5)(ranking, weights_RQ).tolist() == pytest.approx([200 / 3, 100, 100 / 3])
    interval = bootstrap(found_within(5), ranking)
    assert interval.value == pytest.approx(ranking.found(5))
    assert interval.low < interval.value < interval.high
