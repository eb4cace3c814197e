"""The shipped rules on a faster clock: durations divided by one number, thresholds as they are."""

import math
import re
from copy import deepcopy
from typing import Any, Final

# An hour of the rules is a minute of the test.
FACTOR: Final = 60
# With one scrape per second a range must hold several samples, also on a busy machine.
MIN_RANGE_S: Final = 6
PARTS: Final = re.compile(r"(\d+)(ms|[smhdwy])")
UNITS_S: Final = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
DURATION: Final = r"((?:\d+(?:ms|[smhdwy]))+)"
RANGE: Final = re.compile(rf"\[{DURATION}(?::{DURATION}?)?\]")
OFFSET: Final = re.compile(rf"\boffset\s+{DURATION}")


def shorten(groups: list[Any]) -> list[Any]:
    """The same groups of rules: evaluated each second, ranges, offsets and `for` divided."""
    shortened = deepcopy(groups)
    for group in shortened:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["expr"] = shorten_expression(str(rule["expr"]))
            for name in ("for", "keep_firing_for"):
                if name in rule:
                    rule[name] = divided(rule[name], at_least_s=0)
    return shortened


def shorten_routing(config: dict[str, Any]) -> dict[str, Any]:
    """Divide the wait and repeat intervals of Alertmanager's configuration."""
    shortened = deepcopy(config)
    for route in (shortened["route"], *shortened["route"]["routes"]):
        for name in ("group_wait", "group_interval", "repeat_interval"):
            if name in route:
                route[name] = divided(route[name], at_least_s=1)
    return shortened


def shorten_expression(expression: str) -> str:
    """Divide all ranges and offsets of an expression."""

    def shorter(match: re.Match[str]) -> str:
        length = divided(match[1], at_least_s=MIN_RANGE_S)
        return f"[{length}:1s]" if ":" in match[0] else f"[{length}]"

    ranges = RANGE.sub(shorter, expression)
    return OFFSET.sub(lambda match: f"offset {divided(match[1], at_least_s=1)}", ranges)


def divided(duration: str, *, at_least_s: int) -> str:
    """Divide a duration by `FACTOR`, in whole seconds."""
    seconds = sum(int(number) * UNITS_S[unit] for number, unit in PARTS.findall(duration))
    return f"{max(at_least_s, math.ceil(seconds / FACTOR))}s"
