"""Faults to plant into rules: thresholds and objectives that are a little off."""

import re
from collections.abc import Callable, Iterator, Set
from functools import partial
from typing import Any, Final, NamedTuple

from tests.monitoring.rule_file import Group, alerts_of

THRESHOLD: Final = re.compile(r"(?<=[<>=] )[\d.]+(?![\d.smhd])")
OBJECTIVE: Final = re.compile(r"(?<=vector\()[\d.]+(?=\))")
# How far a threshold is off: this share, and of a small whole number one.
SHARE: Final = 0.25
SMALL: Final = 3


def thresholds(alert: dict[str, Any]) -> list[str]:
    """The different numbers that an alert compares with, in order."""
    return list(dict.fromkeys(THRESHOLD.findall(alert["expr"])))


class Fault(NamedTuple):
    """What is wrong, how to make it so, and the alerts whose tests must notice."""

    name: str
    plant: Callable[[list[Group]], None]
    alerts: Set[str]


def faults(groups: list[Group]) -> Iterator[Fault]:
    """Each threshold higher and lower, the first of all alerts together, then the second, ...

    And both objectives.
    """
    alerts = alerts_of(groups)
    for place in range(max(len(thresholds(alert)) for alert in alerts.values())):
        concerned = {name for name, alert in alerts.items() if place < len(thresholds(alert))}
        for sign in (1, -1):
            yield Fault(f"threshold {place} {sign:+}", partial(_move, place, sign), concerned)
    budgets = {name for name in alerts if "Budget" in name}
    for sign in (1, -1):
        yield Fault(f"objectives {sign:+}", partial(_move_objectives, sign), budgets)


def _move(place: int, sign: int, groups: list[Group]) -> None:
    for alert in alerts_of(groups).values():
        numbers = thresholds(alert)
        if place < len(numbers):
            number = re.compile(rf"(?<=[<>=] ){re.escape(numbers[place])}(?![\d.smhd])")
            alert["expr"] = number.sub(_moved(float(numbers[place]), sign), alert["expr"])


def _moved(number: float, sign: int) -> str:
    is_small = number.is_integer() and number <= SMALL
    return f"{number + sign if is_small else number * (1 + sign * SHARE):g}"


def _move_objectives(sign: int, groups: list[Group]) -> None:
    for group in groups:
        for rule in group["rules"]:
            rule["expr"] = OBJECTIVE.sub(
                lambda m: f"{1 - (1 - float(m[0])) * (1 + sign * SHARE):.6f}", rule["expr"]
            )
