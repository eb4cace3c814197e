"""Outcomes are a caption or a failure, and survive being written down."""

import json

import pytest

from training.captioning.journal import Failure, Outcome, Usage, total_usage


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(key="a", caption="ein B\u00e4r", usage=Usage(input_tokens=3, output_tokens=2)),
        Outcome(key="b", failure=Failure(kind="empty", message="nothing", is_transient=True)),
    ],
)
def test_it_is_read_as_it_was_written(outcome: Outcome) -> None:
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_it_is_one_of_the_two() -> None:
    with pytest.raises(ValueError, match="either"):
        Outcome(key="a")
    with pytest.raises(ValueError, match="either"):
        Outcome(key="a", caption="x", failure=Failure(kind="empty", message=""))


def test_usage_adds_up() -> None:
    outcomes = [
        Outcome(key=str(i), caption="x", usage=Usage(input_tokens=i, output_tokens=2 * i))
        for i in range(4)
    ]
    assert total_usage(outcomes) == Usage(input_tokens=6, output_tokens=12)
