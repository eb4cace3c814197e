"""No money is spent that nobody agreed to."""

from collections.abc import Callable

import pytest

from training.captioning.cost import CostEstimate, Price
from training.captioning.job import ask_consent
from training.captioning.journal import Usage


def ask(
    *,
    samples: int = 5,
    spent_usd: float = 0,
    max_cost_usd: float | None = None,
    is_agreed: bool = False,
    confirm: Callable[[], bool] | None = None,
) -> None:
    """Ask about a job that costs 1 dollar, at most 10."""
    estimate = CostEstimate(
        samples=samples,
        expected=Usage(output_tokens=1),
        at_most=Usage(output_tokens=10),
        price=Price(input_usd=0, output_usd=1e6, as_of=""),
    )
    ask_consent(
        estimate,
        spent_usd=spent_usd,
        max_cost_usd=max_cost_usd,
        is_agreed=is_agreed,
        confirm=confirm,
    )


def never() -> bool:
    raise AssertionError("nobody should be asked")


def test_a_limit_above_the_worst_case_is_consent() -> None:
    ask(max_cost_usd=10, confirm=never)


def test_a_limit_below_the_worst_case_refuses_even_who_agreed() -> None:
    with pytest.raises(ValueError, match=r"\$10\.00, over --max-cost 9"):
        ask(max_cost_usd=9, is_agreed=True, confirm=never)


def test_earlier_runs_count() -> None:
    with pytest.raises(ValueError, match=r"\$12\.00, \$2\.00 is already spent"):
        ask(max_cost_usd=11, spent_usd=2)


def test_without_a_limit_a_person_is_asked() -> None:
    ask(confirm=lambda: True)
    with pytest.raises(ValueError, match="nothing was sent"):
        ask(confirm=lambda: False)


def test_with_nobody_there_the_command_must_say_it() -> None:
    with pytest.raises(ValueError, match="--yes"):
        ask()
    ask(is_agreed=True, confirm=never)


def test_nothing_to_do_needs_no_consent() -> None:
    ask(samples=0)
