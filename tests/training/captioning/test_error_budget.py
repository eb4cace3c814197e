"""A job stops when too much fails, not at the first failure."""

import pytest

from training.captioning.job import ErrorBudget
from training.captioning.journal import Failure, JobStopped, Outcome


def good(count: int) -> list[Outcome]:
    return [Outcome(key=f"g{i}", caption="x") for i in range(count)]


def bad(count: int, kind: str = "empty") -> list[Outcome]:
    return [Outcome(key=f"b{i}", failure=Failure(kind=kind, message="why")) for i in range(count)]


def test_some_failures_are_free() -> None:
    budget = ErrorBudget(max_share=0, free_failures=3)
    budget.spend(bad(3))
    with pytest.raises(JobStopped):
        budget.spend(bad(1))


def test_beyond_them_the_share_counts() -> None:
    budget = ErrorBudget(max_share=0.1, free_failures=0)
    budget.spend(good(30))
    budget.spend(bad(3))
    with pytest.raises(JobStopped, match=r"4 of 34 .*4 empty.*b0.*why"):
        budget.spend(bad(1))


def test_the_message_counts_the_kinds() -> None:
    with pytest.raises(JobStopped, match="2 blocked, 1 empty"):
        ErrorBudget(max_share=0, free_failures=0).spend(bad(1) + bad(2, "blocked"))


def test_good_samples_never_stop_a_job() -> None:
    ErrorBudget(max_share=0, free_failures=0).spend(good(5))


@pytest.mark.parametrize(("share", "free"), [(-0.1, 0), (1.1, 0), (0.5, -1)])
def test_wrong_settings_are_refused(share: float, free: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        ErrorBudget(max_share=share, free_failures=free)
