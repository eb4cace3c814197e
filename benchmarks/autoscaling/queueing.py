"""Waiting times in closed form: Erlang C for M/M/c, and Allen and Cunneen's correction for G/G/c.

Sources: A. K. Erlang, 1917; A. O. Allen, "Probability, Statistics and Queueing Theory", 1990. The
correction is exact for M/M/c and for the mean of M/G/1; for several servers it is an approximation,
and that the wait of those who wait is exponential is one for everything but M/M/c.
"""

import math
from dataclasses import dataclass


def erlang_c(servers: int, load: float) -> float:
    """The share of arrivals that must wait, with Poisson arrivals and exponential service.

    Args:
        servers: At least 1.
        load: Arrivals a second times the mean service in seconds (Erlangs).

    Returns:
        1 where the load is more than the servers can do.

    Raises:
        ValueError: There are no servers, or less than no load.
    """
    if servers < 1 or load < 0:
        raise ValueError(f"{servers} servers cannot have a load of {load}")
    if load >= servers:
        return 1.0
    # Erlang B by its recursion, which neither factorials nor powers can overflow.
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    utilisation = load / servers
    return blocked / (1 - utilisation + utilisation * blocked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One waiting line before equal servers.

    Attributes:
        servers: How many.
        rate: Arrivals a second.
        service_s: Mean service.
        service_cv2: Squared coefficient of variation of service; 0 where all take equally long.
        arrival_cv2: The same of the time between arrivals; 1 for a Poisson stream.
    """

    servers: int
    rate: float
    service_s: float
    service_cv2: float = 1.0
    arrival_cv2: float = 1.0

    @property
    def utilisation(self) -> float:
        """Share of the servers' time that is taken; more than 1 where they cannot keep up."""
        return self.rate * self.service_s / self.servers

    @property
    def wait_probability(self) -> float:
        """The share of arrivals that must wait."""
        return erlang_c(self.servers, self.rate * self.service_s)

    @property
    def mean_wait_s(self) -> float:
        """Of all arrivals; infinite where the servers cannot keep up."""
        if self.utilisation >= 1:
            return math.inf
        spare = self.servers * (1 - self.utilisation)
        exponential_s = self.wait_probability * self.service_s / spare
        return exponential_s * (self.arrival_cv2 + self.service_cv2) / 2

    def wait_s(self, quantile: float) -> float:
        """What this share of arrivals waits at most."""
        must_wait = self.wait_probability
        if self.utilisation >= 1:
            return math.inf
        if must_wait <= 1 - quantile:
            return 0.0
        return self.mean_wait_s / must_wait * math.log(must_wait / (1 - quantile))


def highest_utilisation(
    servers: int, quantile: float, wait_in_services: float, service_cv2: float = 0.0
) -> float:
    """The utilisation at which a quantile of the wait reaches so many mean services.

    The share of time that can be sold: what is left is the price of a bound on the wait.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        queue = Queue(
            servers=servers, rate=middle * servers, service_s=1.0, service_cv2=service_cv2
        )
        if queue.wait_s(quantile) <= wait_in_services:
            low = middle
        else:
            high = middle
    return low
