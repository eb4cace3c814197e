"""Asks before money is spent."""

from collections.abc import Callable

from training.captioning.cost import Estimate


def ask_consent(
    estimate: Estimate,
    *,
    spent_usd: float,
    max_cost_usd: float | None,
    is_agreed: bool,
    confirm: Callable[[], bool] | None,
) -> None:
    """Return where a job may begin: it stays below a given limit, or somebody agreed.

    Args:
        estimate: What is still to be paid.
        spent_usd: What earlier runs of the job paid.
        max_cost_usd: The limit for all its runs together; None for none.
        is_agreed: Whether the command itself says yes.
        confirm: Asks a person; None where nobody is there to be asked.

    Raises:
        ValueError: It may not begin; the message says what would let it.
    """
    if max_cost_usd is not None:
        at_most_usd = spent_usd + estimate.at_most_usd
        if at_most_usd > max_cost_usd:
            earlier = f", ${spent_usd:,.2f} of it spent already" if spent_usd else ""
            raise ValueError(
                f"the job may cost ${at_most_usd:,.2f}{earlier}, over --max-cost {max_cost_usd:g}; "
                "caption fewer shards, allow shorter answers, or raise the limit"
            )
        return
    if is_agreed or estimate.samples == 0:
        return
    if confirm is None:
        raise ValueError(
            "nobody is there to agree to the cost: give --yes, or a limit by --max-cost"
        )
    if not confirm():
        raise ValueError("nothing was sent")
