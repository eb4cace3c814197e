"""How many replicas a load needs: each step of the sum by itself, so that it can be shown.

Lanes are the servers. An image takes a lane for its time on the measured line of costs and for
what it takes beside; a request with names that the cache does not know takes one for its texts too.
A lane may be busy only so much of its time that the asked share of requests waits no longer than
the limit leaves, by the closed form of `queueing.py`. What a zone's end takes away is added.
"""

import math
from dataclasses import dataclass

from benchmarks.autoscaling.curves import Curves
from benchmarks.autoscaling.queueing import highest_utilisation


class PlanError(ValueError):
    """No number of replicas does what is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked for.

    Attributes:
        rate: Requests a second, of one image each, at the peak.
        side: Of the images, in pixels.
        quantile: The share of requests that must be answered within `limit_s`.
        limit_s: As said.
        new_text_share: Share of requests with texts that no cache knows.
        texts: How many of them each has.
        lanes: Of a replica, on as many CPUs.
        zones: Over which replicas are spread evenly, and one of which may end; 1 for none.
        margin: For what a plan does not know; 0.1 is a tenth more load.
    """

    rate: float
    side: int
    limit_s: float
    quantile: float = 0.99
    new_text_share: float = 0.0
    texts: int = 0
    lanes: int = 4
    zones: int = 1
    margin: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of the sum."""

    image_s: float
    text_s: float
    request_s: float
    wait_s: float
    utilisation: float
    lanes_busy: float
    replicas: int
    replicas_with_zone: int


def plan(demand: Demand, curves: Curves) -> Plan:
    """Work it out.

    Raises:
        PlanError: An image alone takes longer than the limit, or the numbers make no sense.
    """
    if min(demand.rate, demand.limit_s, demand.lanes, demand.zones) <= 0:
        raise PlanError("rate, limit, lanes and zones must be positive")
    image_s = curves.image(demand.side).alone_s + curves.beside_s
    new_s = curves.text.curve.seconds(demand.texts) if demand.texts else 0.0
    text_s = demand.new_text_share * new_s
    request_s = image_s + text_s
    # Texts are computed beside the image, so the longer of the two is what a caller sees.
    wait_s = demand.limit_s - max(image_s, new_s if demand.new_text_share else 0.0)
    if wait_s <= 0:
        raise PlanError(
            f"a request takes {image_s:.3f} s without any waiting, more than the limit of "
            f"{demand.limit_s:.3f} s: ask for smaller images, a smaller model, or more time"
        )
    # A balancer that chooses by chance gives every replica a queue of its own, so the bound is of
    # one replica's lanes and not of all.
    utilisation = highest_utilisation(
        demand.lanes, demand.quantile, wait_s / request_s, _variation2(image_s, new_s, demand)
    )
    lanes_busy = demand.rate * (1 + demand.margin) * request_s
    replicas = max(1, math.ceil(lanes_busy / (utilisation * demand.lanes)))
    return Plan(
        image_s=image_s,
        text_s=text_s,
        request_s=request_s,
        wait_s=wait_s,
        utilisation=utilisation,
        lanes_busy=lanes_busy,
        replicas=replicas,
        replicas_with_zone=_with_zone(replicas, demand.zones),
    )


def _variation2(image_s: float, new_s: float, demand: Demand) -> float:
    """Squared variation of what a request takes: some have texts, some have not."""
    share = demand.new_text_share
    mean_s = image_s + share * new_s
    return share * (1 - share) * new_s**2 / mean_s**2


def _with_zone(replicas: int, zones: int) -> int:
    """So many that the zones that are left still have them, spread evenly."""
    if zones == 1:
        return replicas
    return math.ceil(replicas / (zones - 1)) * zones
