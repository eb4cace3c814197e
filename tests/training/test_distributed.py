"""Two real ranks over gloo compute what one process does on the whole batch."""

import json
import math
from typing import Any

import pytest
import torch

from tests.training.ranks import two_ranks
from tests.training.two_ranks import Shapes, TwoParts, centre_after, data, gradients, updated
from training import distributed

Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Results of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with two_ranks("tests.training.two_ranks", folder):
        pass
    return [json.loads((folder / f"rank-{rank}.json").read_text("utf-8")) for rank in range(2)]


def test_ranks_form_a_group_and_average(ranks: Seen) -> None:
    assert [rank["start"] for rank in ranks] == [[0, 2], [1, 2]]
    assert all(rank["is_over"] for rank in ranks)
    assert [rank["mean"] for rank in ranks] == [[0.5, 2.0]] * 2
    assert [rank["argument"] for rank in ranks] == [[0.0, 2.0], [1.0, 2.0]]
    assert [rank["found"] for rank in ranks] == [False, True]  # the first rank ran first


def test_gradients_and_centres_are_those_of_the_whole_batch(ranks: Seen) -> None:
    module = TwoParts()
    module.loss(data()).backward()
    assert ranks[0]["gradients"] == ranks[1]["gradients"]
    for name, expected in gradients(module).items():
        gradient = ranks[0]["gradients"][name]
        # A parameter without a gradient on any rank keeps none.
        assert gradient == (expected and pytest.approx(expected, rel=1e-5, abs=1e-7)), name
    # The second rank had no image for this part.
    assert any(ranks[1]["gradients"]["sometimes.weight"])
    assert set(ranks[1]["untouched"].values()) == {None}
    centre = pytest.approx(centre_after(data()), rel=1e-5)
    assert ranks[0]["centre"] == ranks[1]["centre"] == centre


def test_rows_of_all_ranks_are_gathered_in_order_with_their_gradients(ranks: Seen) -> None:
    for rank in ranks:
        assert rank["gathered"]["rows"] == [[0.0, 1.0], [2.0, 3.0], [7.0, 9.0]]
        assert rank["gathered"]["ids"] == [0, 1, 10]
        assert rank["gathered"]["sum"] == [3, 10]
        expected = [math.log(1 + math.e), math.log(2) - 2]
        assert rank["gathered"]["logsumexp"] == pytest.approx(expected, rel=1e-6)
    assert [rank["gathered"]["own"] for rank in ranks] == [[0, 2], [2, 3]]
    # Rank 0 weighs the rows by 1, 2 and 3, rank 1 by twice as much.
    assert ranks[0]["gathered"]["grad"] == [[3.0, 3.0], [6.0, 6.0]]
    assert ranks[1]["gathered"]["grad"] == [[9.0, 9.0]]
    assert ranks[0]["gathered"]["empty"] == [2, [0, 0], [], 0]
    assert ranks[1]["gathered"]["empty"] == [2, [0, 2], [[2.0], [2.0]], 0]


def test_sharded_updates_are_those_of_one_rank_and_exchange_once(ranks: Seen) -> None:
    expected = updated(Shapes())
    for rank in ranks:
        assert rank["updates"]["exchanges"] == 1  # for the norm
        assert rank["updates"]["parameters"].keys() == expected.keys()
        for name, values in rank["updates"]["parameters"].items():
            assert values == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def test_one_rank_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start() == (0, 1)
    module = TwoParts()
    module.loss(data()).backward()
    before = gradients(module)
    distributed.average_gradients(module)
    assert gradients(module) == before
    values = torch.ones(2)
    assert distributed.mean_over_ranks(values) is values
    assert distributed.logsumexp_over_ranks(values) is values
    assert distributed.sum_over_ranks([3, 4]) == [3, 4]
    (rows,), own = distributed.gather_rows(values)
    assert rows is values
    assert (own.start, own.stop) == (0, 2)
    with distributed.first_rank_first():
        pass
    distributed.stop()
