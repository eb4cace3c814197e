"""Stops a job in which too much goes wrong, before it has gone through all its images."""

from collections import Counter
from collections.abc import Iterable

from training.captioning.outcome import JobStopped, Outcome


class ErrorBudget:
    """Counts what fails in one run of a job.

    A share alone would stop at the first image if that one fails, so a number of failures is
    free.
    """

    def __init__(self, *, max_share: float, free_failures: int) -> None:
        if not 0 <= max_share <= 1 or free_failures < 0:
            raise ValueError("the failures' share must be in [0, 1], the free failures at least 0")
        self._max_share = max_share
        self._free_failures = free_failures
        self._samples = 0
        self._kinds: Counter[str] = Counter()

    def spend(self, outcomes: Iterable[Outcome]) -> None:
        """Count some outcomes.

        Raises:
            JobStopped: More failed than may.
        """
        last = None
        for outcome in outcomes:
            self._samples += 1
            if outcome.failure is not None:
                self._kinds[outcome.failure.kind] += 1
                last = outcome
        failed = self._kinds.total()
        if last is None or failed <= max(self._free_failures, self._max_share * self._samples):
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._kinds.most_common())
        assert last.failure is not None
        raise JobStopped(
            f"stopped, because {failed} of {self._samples} samples failed ({kinds}), more than "
            f"--max-failure-share {self._max_share:g} allows; the last one, {last.key}, said: "
            f"{last.failure.message}. Mend the cause or allow more, and start the same command "
            "again: it goes on from here"
        )
