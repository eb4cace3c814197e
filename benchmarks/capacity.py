"""Number of replicas for a load, from measured costs, with each step shown.

Run: python -m benchmarks.capacity --rate 500 --side 448 --p99-ms 200 --curves FILE
     python -m benchmarks.capacity ... --server http://localhost:8000 --metrics http://localhost:8002

Costs come from a running server, which measures them at its start, or from a file of `python -m
benchmarks.batch_costs`. docs/capacity.md explains each step.
"""

import argparse
import json
import math
import re
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from service.lanes.latency_model import LatencyCurve

# Batch costs of one machine, from a file or from a running server.

ANSWER_LIMIT_S: Final = 10.0
SAMPLE: Final = re.compile(r"(\w+)\{([^}]*)\} (\S+)")
LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
MEASURED: Final = Path(__file__).parent / "measured"


class CurvesError(ValueError):
    """Costs are missing or invalid."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost line of one shape: a batch of n takes `intercept_s + slope_s * n`."""

    label: str
    patches: int
    intercept_s: float
    slope_s: float

    def __post_init__(self) -> None:
        if self.patches <= 0 or self.slope_s < 0 or self.intercept_s < 0 or self.alone_s <= 0:
            raise CurvesError(f"{self.label}: invalid costs: {self}")

    @property
    def curve(self) -> LatencyCurve:
        """For batches."""
        return LatencyCurve(self.intercept_s, self.slope_s)

    @property
    def alone_s(self) -> float:
        """Seconds of a batch of one."""
        return self.intercept_s + self.slope_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Measured costs of one package on one machine.

    Attributes:
        model: Name of the model.
        machine: Machine of the measurement.
        date: Date of the measurement, YYYY-MM-DD.
        how: Clock that was used.
        runtime: Runtime and precision.
        images: Costs of square images, smallest first.
        text: Cost of short texts.
        outside_s: CPU seconds of an image outside the lanes: decode, resize, answer.
    """

    model: str
    machine: str
    date: str
    how: str
    runtime: str
    images: tuple[Cost, ...]
    text: Cost
    outside_s: float = 0.0

    def to_json(self) -> str:
        """For a file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file written by `to_json`.

        Raises:
            CurvesError: The content is not a file of costs.
        """
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            images = tuple(Cost(**cost) for cost in document.pop("images"))
            text = Cost(**document.pop("text"))
            return cls(images=images, text=text, **document)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise CurvesError(f"{path} holds invalid costs: {error}") from None

    def image(self, side: int) -> Cost:
        """Cost of square images of a side; interpolated between two measured sides.

        Costs grow like `a * patches + b * patches^2`, because attention compares all pairs of
        patches.

        Raises:
            CurvesError: The side is outside the measured range.
        """
        by_side = {_side(cost.label): cost for cost in self.images}
        if side in by_side:
            return by_side[side]
        below = [known for known in by_side if known < side]
        above = [known for known in by_side if known > side]
        if not below or not above:
            measured = ", ".join(str(known) for known in sorted(by_side))
            raise CurvesError(f"{side} px is outside the measured range {measured}")
        return _between(by_side[max(below)], by_side[min(above)], side)


def _side(label: str) -> int:
    return int(label.rpartition("x")[2])


def _between(small: Cost, large: Cost, side: int) -> Cost:
    """Interpolate the cost of one image, with the intercept share of the smaller side."""
    unit = small.patches / _side(small.label) ** 2
    n, first, second = unit * side**2, small.patches, large.patches
    per_first, per_second = small.alone_s / first, large.alone_s / second
    quadratic = (per_second - per_first) / (second - first)
    alone_s = n * (per_first + quadratic * (n - first))
    part = replace(small, label=f"image {side}x{side}", patches=round(n))
    factor = alone_s / small.alone_s
    return replace(part, intercept_s=small.intercept_s * factor, slope_s=small.slope_s * factor)


def read_server(http_url: str, metrics_url: str) -> Curves:
    """Read the costs that a running server measured for its default model.

    Raises:
        CurvesError: The server has no costs of square images or of texts.
        OSError: The server does not answer.
    """
    with urllib.request.urlopen(f"{http_url}/v1/models", timeout=ANSWER_LIMIT_S) as answer:
        model = json.load(answer)["data"][0]
    with urllib.request.urlopen(f"{metrics_url}/metrics", timeout=ANSWER_LIMIT_S) as answer:
        costs = _costs(answer.read().decode(), model["id"], model["patch_size"])
    images = [cost for label, cost in costs.items() if label.startswith("image ")]
    texts = [cost for label, cost in costs.items() if label.startswith("text ")]
    if not images or not texts:
        raise CurvesError(f"{http_url} has measured {len(images)} shapes and {len(texts)} texts")
    return Curves(
        model=model["id"],
        machine=f"the server at {http_url}",
        date="now",
        how="wall-clock seconds, as the server measures them",
        runtime=f"{model['runtime']} {model['precision']}",
        images=tuple(sorted(images, key=lambda cost: cost.patches)),
        text=texts[0],
    )


def _costs(text: str, model: str, patch: int) -> dict[str, Cost]:
    """Return costs of square images and of texts, by bucket label."""
    lines: dict[str, dict[str, float]] = {}
    for name, labels, value in SAMPLE.findall(text):
        found = dict(LABEL.findall(labels))
        if name.startswith("tipserve_batch_cost_") and found.get("model") == model:
            part = "intercept_s" if "intercept" in name else "slope_s"
            lines.setdefault(found["bucket"], {})[part] = float(value)
    costs = {}
    for label, parts in lines.items():
        kind, _, shape = label.partition(" ")
        sides = [int(side) for side in shape.split("x")]
        if kind == "text":
            costs[label] = Cost(label, sides[0], **parts)
        elif kind == "image" and sides[0] == sides[-1]:
            costs[label] = Cost(label, (sides[0] // patch) ** 2, **parts)
    return costs


# Waiting times in closed form: Erlang C for M/M/c, and Allen and Cunneen's correction for G/G/c.
#
# Sources: A. K. Erlang, 1917; A. O. Allen, "Probability, Statistics and Queueing Theory", 1990. The
# correction is exact for M/M/c and for the mean of M/G/1 and approximate for several servers. The
# exponential distribution of positive waits is exact for M/M/c only.


def erlang_c(servers: int, load: float) -> float:
    """Share of arrivals that wait, with Poisson arrivals and exponential service.

    Args:
        servers: At least 1.
        load: Arrivals a second times the mean service in seconds (Erlangs).

    Returns:
        1 if the load exceeds the servers.

    Raises:
        ValueError: No servers, or a negative load.
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
    """One queue in front of equal servers.

    Attributes:
        servers: Number of servers.
        rate: Arrivals per second.
        service_s: Mean service.
        service_cv2: Squared coefficient of variation of service; 0 for a constant time.
        arrival_cv2: The same for the time between arrivals; 1 for Poisson arrivals.
    """

    servers: int
    rate: float
    service_s: float
    service_cv2: float = 1.0
    arrival_cv2: float = 1.0

    @property
    def utilisation(self) -> float:
        """Busy share of the servers' time; above 1 the queue grows without bound."""
        return self.rate * self.service_s / self.servers

    @property
    def wait_probability(self) -> float:
        """Share of arrivals that wait."""
        return erlang_c(self.servers, self.rate * self.service_s)

    @property
    def mean_wait_s(self) -> float:
        """Mean wait over all arrivals; infinite if the servers are overloaded."""
        if self.utilisation >= 1:
            return math.inf
        spare = self.servers * (1 - self.utilisation)
        exponential_s = self.wait_probability * self.service_s / spare
        return exponential_s * (self.arrival_cv2 + self.service_cv2) / 2

    def wait_s(self, quantile: float) -> float:
        """Quantile of the wait over all arrivals."""
        must_wait = self.wait_probability
        if self.utilisation >= 1:
            return math.inf
        if must_wait <= 1 - quantile:
            return 0.0
        return self.mean_wait_s / must_wait * math.log(must_wait / (1 - quantile))


def highest_utilisation(
    servers: int, quantile: float, wait_in_services: float, service_cv2: float = 0.0
) -> float:
    """Highest utilisation at which a quantile of the wait stays within so many mean services."""
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


# Replicas for a load. Each step is kept, so that the command can print it.
#
# Lanes are the servers. An image occupies a lane for its time on the measured cost line and for its
# time outside the lane (decode, resize, answer). A request with uncached class names occupies a
# lane for its texts too. The closed form above bounds the utilisation of a lane, so that the wanted
# quantile of requests meets the limit. Replicas lost with a zone are added.


class PlanError(ValueError):
    """No number of replicas meets the demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Required load and latency.

    Attributes:
        rate: Requests per second at the peak, one image each.
        side: Side of the images in pixels.
        quantile: Share of requests that must be answered within `limit_s`.
        limit_s: Latency limit for that share.
        new_text_share: Share of requests with uncached texts.
        texts: Uncached texts per such request.
        lanes: Lanes of a replica, one CPU each.
        zones: Zones with equally many replicas, one of which may fail; 1 for no reserve.
        margin: Safety margin on the load; 0.1 adds a tenth.
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
    """Steps of the calculation."""

    image_s: float
    text_s: float
    request_s: float
    wait_s: float
    utilisation: float
    lanes_busy: float
    replicas: int
    replicas_with_zone: int


def plan(demand: Demand, curves: Curves) -> Plan:
    """Calculate the replicas for a demand.

    Raises:
        PlanError: One image alone exceeds the limit, or the numbers are invalid.
    """
    if min(demand.rate, demand.limit_s, demand.lanes, demand.zones) <= 0:
        raise PlanError("rate, limit, lanes and zones must be positive")
    image_s = curves.image(demand.side).alone_s + curves.outside_s
    new_s = curves.text.curve.seconds(demand.texts) if demand.texts else 0.0
    text_s = demand.new_text_share * new_s
    request_s = image_s + text_s
    # Texts run in parallel with the image, so the caller sees the longer of the two.
    wait_s = demand.limit_s - max(image_s, new_s if demand.new_text_share else 0.0)
    if wait_s <= 0:
        raise PlanError(
            f"a request takes {image_s:.3f} s without any waiting, more than the limit of "
            f"{demand.limit_s:.3f} s: ask for smaller images, a smaller model, or more time"
        )
    # A balancer that chooses at random gives each replica its own queue, so the bound holds for the
    # lanes of one replica, not for all lanes as one pool.
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
    """Squared coefficient of variation of service, over requests with and without new texts."""
    share = demand.new_text_share
    mean_s = image_s + share * new_s
    return share * (1 - share) * new_s**2 / mean_s**2


def _with_zone(replicas: int, zones: int) -> int:
    """Add replicas so that the remaining zones still carry the load."""
    if zones == 1:
        return replicas
    return math.ceil(replicas / (zones - 1)) * zones


# A server does not report the cost of an image outside its lanes. Measured for decoding and
# resizing from 640 x 480: 2.4 and 3.7 ms.
ASSUMED_OUTSIDE_MS = 3.0
LANES = (1, 2, 4, 8, 16)
# Allowed p99 of the wait, in multiples of one image's time.
WAITS = (0.25, 0.5, 1.0, 2.0, 4.0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(sorted(path.stem for path in MEASURED.glob("*.json")))
    parser.add_argument("--rate", type=float, required=True, help="images per second at the peak")
    parser.add_argument("--side", type=int, required=True, help="side of the images in pixels")
    parser.add_argument("--p99-ms", type=float, required=True, help="latency limit at p99")
    parser.add_argument("--curves", default="b14", help=f"a JSON file, or one of {known}")
    parser.add_argument("--server", help="base URL of REST, instead of --curves")
    parser.add_argument("--metrics", help="base URL of the metrics; with --server")
    parser.add_argument(
        "--outside-ms", type=float, help="CPU ms of an image outside the lanes; with --server 3"
    )
    parser.add_argument("--lanes", type=int, default=4, help="lanes per replica, one CPU each")
    parser.add_argument(
        "--new-text-share", type=float, default=0.0, help="share of requests with new texts, 0 to 1"
    )
    parser.add_argument("--texts", type=int, default=0, help="new texts in each such request")
    parser.add_argument(
        "--zones", type=int, default=1, help="zones, one of which may fail; 1: no reserve"
    )
    parser.add_argument(
        "--margin", type=float, default=0.0, help="safety margin; 0.2 adds a fifth to the load"
    )
    options = parser.parse_args(arguments)
    if (options.server is None) != (options.metrics is None):
        parser.error("--server and --metrics must be given together")
    return options


def curves_of(options: argparse.Namespace) -> Curves:
    """Read the costs from the file or the server."""
    outside_ms = options.outside_ms
    if options.server:
        curves = read_server(options.server.rstrip("/"), options.metrics.rstrip("/"))
        outside_ms = ASSUMED_OUTSIDE_MS if outside_ms is None else outside_ms
    else:
        named = MEASURED / f"{options.curves}.json"
        curves = Curves.read(named if named.exists() else Path(options.curves))
    return curves if outside_ms is None else replace(curves, outside_s=outside_ms / 1000)


def show(demand: Demand, curves: Curves, worked_out: Plan) -> list[str]:
    """Return one line per step."""
    cost, ms = curves.image(demand.side), 1000.0
    before_zone = f"{worked_out.replicas} replicas of {demand.lanes} lanes"
    lines = [
        f"{curves.model}, {curves.runtime}; {curves.machine}; {curves.date}; {curves.how}",
        f"an image   {ms * cost.intercept_s:.1f} + {ms * cost.slope_s:.1f} ms on a lane and "
        f"{ms * curves.outside_s:.1f} ms outside it = {ms * worked_out.image_s:.1f} ms",
        f"new texts   {demand.new_text_share:.0%} of requests have {demand.texts}, "
        f"{ms * worked_out.text_s:.1f} ms a request on average",
        f"a request   {ms * worked_out.request_s:.1f} ms of a lane",
        f"waiting     p{100 * demand.quantile:g} of {ms * demand.limit_s:.0f} ms leaves "
        f"{ms * worked_out.wait_s:.1f} ms, {worked_out.wait_s / worked_out.request_s:.2f} requests",
        f"busy        so {demand.lanes} lanes may be busy {worked_out.utilisation:.0%} of the time",
        f"lanes       {demand.rate:g}/s x {1 + demand.margin:g} x {worked_out.request_s:.4f} s = "
        f"{worked_out.lanes_busy:.1f} lanes busy, / {worked_out.utilisation:.3f} = "
        f"{worked_out.lanes_busy / worked_out.utilisation:.1f} lanes",
        f"replicas    / {demand.lanes} = {before_zone}",
    ]
    if demand.zones > 1:
        in_all = worked_out.replicas_with_zone
        lines.append(
            f"zones       {demand.zones}, of which one may fail: "
            f"ceil({worked_out.replicas} / {demand.zones - 1}) x {demand.zones} = "
            f"{in_all} replicas, {in_all * demand.lanes} CPUs"
        )
    return lines


def headroom() -> list[str]:
    """Table of the utilisation at which p99 of the wait reaches so many images, by lanes."""
    rows = ["| lanes | " + " | ".join(f"{wait:g} images" for wait in WAITS) + " |"]
    rows.append("| --- " * (1 + len(WAITS)) + "|")
    for lanes in LANES:
        shares = [f"{highest_utilisation(lanes, 0.99, wait):.0%}" for wait in WAITS]
        rows.append(f"| {lanes} | " + " | ".join(shares) + " |")
    return rows


def main(arguments: Sequence[str]) -> int:
    """Plan for one demand. Returns 1 if no plan exists."""
    options = parse(arguments)
    demand = Demand(
        rate=options.rate,
        side=options.side,
        limit_s=options.p99_ms / 1000,
        new_text_share=options.new_text_share,
        texts=options.texts,
        lanes=options.lanes,
        zones=options.zones,
        margin=options.margin,
    )
    try:
        curves = curves_of(options)
        lines = show(demand, curves, plan(demand, curves))
    except (PlanError, CurvesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    print("\nallowed utilisation of the lanes, by the allowed p99 of the wait:\n")
    print("\n".join(headroom()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
