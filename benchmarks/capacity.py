"""Number of replicas for a load, from measured costs, with each step shown.

Run: python -m benchmarks.capacity --rate 500 --side 448 --p99-ms 200 [--costs student]
     python -m benchmarks.capacity --measure MODEL --sides 112,224,448 --costs FILE

The second measures the costs of a model on this machine, in CPU seconds on one thread, which are
those of a lane with a core for itself. docs/capacity.md explains the steps.
"""

import argparse
import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.load import photo_like_jpeg
from model.image_codec import ImageLimits, decode_image
from model.package import open_package
from model.preprocess import prepare_image
from model.runtime.load import load_runtime
from model.runtime.machine import this_hardware

MEASURED: Final = Path(__file__).parent / "measured"
BATCHES: Final = (1, 2, 4)
TEXT_BATCHES: Final = (1, 4, 16)
TEXT_TOKENS: Final = 8
MEASURE_S: Final = 3.0
LANES: Final = (1, 2, 4, 8, 16)
# Allowed p99 of the wait, in multiples of one image's time.
WAITS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)


class PlanError(ValueError):
    """No number of replicas meets the demand, or a cost is missing."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost line of one shape: a batch of n takes `intercept_s + slope_s * n`."""

    label: str
    patches: int
    intercept_s: float
    slope_s: float

    def seconds(self, count: int) -> float:
        """Seconds of a batch."""
        return self.intercept_s + self.slope_s * count

    @property
    def side(self) -> int:
        """Side of the square image in pixels."""
        return int(self.label.rpartition("x")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Measured costs of one package on one machine.

    Attributes:
        images: Costs of square images, smallest first.
        text: Cost of short texts.
        outside_s: CPU seconds of an image outside the lanes: decode and resize.
    """

    model: str
    machine: str
    date: str
    how: str
    runtime: str
    images: tuple[Cost, ...]
    text: Cost
    outside_s: float

    @classmethod
    def read(cls, path: Path) -> "Costs":
        """Read a file that `--measure` wrote."""
        document = json.loads(path.read_text(encoding="utf-8"))
        images = tuple(Cost(**cost) for cost in document.pop("images"))
        return cls(images=images, text=Cost(**document.pop("text")), **document)

    def image_s(self, side: int) -> float:
        """Seconds of one square image on a lane; interpolated between two measured sides.

        Costs grow like `a * patches + b * patches^2`, because attention compares all pairs of
        patches.

        Raises:
            PlanError: The side is outside the measured range.
        """
        below = [cost for cost in self.images if cost.side <= side]
        above = [cost for cost in self.images if cost.side >= side]
        if not below or not above:
            measured = ", ".join(str(cost.side) for cost in self.images)
            raise PlanError(f"{side} px is outside the measured range {measured}")
        small, large = below[-1], above[0]
        if small.side == side:
            return small.seconds(1)
        patches = small.patches * (side / small.side) ** 2
        per_small, per_large = small.seconds(1) / small.patches, large.seconds(1) / large.patches
        quadratic = (per_large - per_small) / (large.patches - small.patches)
        return patches * (per_small + quadratic * (patches - small.patches))


def wait_s(servers: int, load: float, quantile: float, service_cv2: float) -> float:
    """Quantile of the wait in one queue before equal servers, in mean services.

    Erlang C for M/M/c with Allen and Cunneen's correction for other service times.

    Args:
        servers: Number of servers.
        load: Arrivals a second times the mean service in seconds, below `servers`.
        quantile: Such as 0.99.
        service_cv2: Squared coefficient of variation of the service; 0 for a constant time.

    Source: A. O. Allen, "Probability, Statistics and Queueing Theory", 1990.
    """
    if load >= servers:
        return math.inf
    # Erlang B by its recursion, which neither factorials nor powers can overflow.
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    busy = load / servers
    must_wait = blocked / (1 - busy + busy * blocked)
    if must_wait <= 1 - quantile:
        return 0.0
    mean_of_waits = (1 + service_cv2) / 2 / (servers * (1 - busy))
    return mean_of_waits * math.log(must_wait / (1 - quantile))


def highest_utilisation(servers: int, wait: float, service_cv2: float = 0.0) -> float:
    """Highest utilisation at which the p99 of the wait stays within so many mean services."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if wait_s(servers, middle * servers, 0.99, service_cv2) <= wait:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Required load and latency.

    Attributes:
        rate: Requests per second at the peak, one image each.
        side: Side of the images in pixels.
        limit_s: Latency that 99 % of the requests must keep.
        new_text_share: Share of requests with uncached texts.
        texts: Uncached texts per such request.
        lanes: Lanes of a replica, one CPU each.
        zones: Zones with equally many replicas, one of which may fail; 1 for no reserve.
        margin: Safety margin on the load; 0.1 adds a tenth.
    """

    rate: float
    side: int
    limit_s: float
    new_text_share: float = 0.0
    texts: int = 0
    lanes: int = 4
    zones: int = 1
    margin: float = 0.0


def plan(demand: Demand, costs: Costs) -> tuple[int, list[str]]:
    """Calculate the replicas for a demand.

    Returns:
        The replicas, those for a zone that fails included, and a line for each step.

    Raises:
        PlanError: One image alone exceeds the limit, or a number is not positive.
    """
    if min(demand.rate, demand.limit_s, demand.lanes, demand.zones) <= 0:
        raise PlanError("rate, limit, lanes and zones must be positive")
    lane_s = costs.image_s(demand.side)
    image_s = lane_s + costs.outside_s
    share = demand.new_text_share
    new_s = costs.text.seconds(demand.texts) if demand.texts and share else 0.0
    request_s = image_s + share * new_s
    # Texts run in parallel with the image, so the caller sees the longer of the two.
    waiting_s = demand.limit_s - max(image_s, new_s)
    if waiting_s <= 0:
        raise PlanError(
            f"a request takes {image_s:.3f} s without any waiting, more than the limit of "
            f"{demand.limit_s:.3f} s: ask for smaller images, a smaller model, or more time"
        )
    # A balancer that chooses at random gives each replica a queue of its own, so the bound holds
    # for the lanes of one replica, not for all lanes as one pool.
    variation2 = share * (1 - share) * new_s**2 / request_s**2
    busy = highest_utilisation(demand.lanes, waiting_s / request_s, variation2)
    lanes = demand.rate * (1 + demand.margin) * request_s
    replicas = max(1, math.ceil(lanes / (busy * demand.lanes)))
    lines = [
        f"{costs.model}, {costs.runtime}; {costs.machine}; {costs.date}; {costs.how}",
        f"an image   {1000 * lane_s:.1f} ms on a lane and {1000 * costs.outside_s:.1f} ms outside "
        f"it = {1000 * image_s:.1f} ms",
        f"new texts  {share:.0%} of requests have {demand.texts}, {1000 * share * new_s:.1f} ms a "
        "request on average",
        f"a request  {1000 * request_s:.1f} ms of a lane",
        f"waiting    p99 of {1000 * demand.limit_s:.0f} ms leaves {1000 * waiting_s:.1f} ms, "
        f"{waiting_s / request_s:.2f} requests",
        f"busy       so {demand.lanes} lanes may be busy {busy:.0%} of the time",
        f"lanes      {demand.rate:g}/s x {1 + demand.margin:g} x {request_s:.4f} s = {lanes:.1f} "
        f"lanes busy, / {busy:.3f} = {lanes / busy:.1f} lanes",
        f"replicas   / {demand.lanes} = {replicas} replicas of {demand.lanes} lanes",
    ]
    if demand.zones == 1:
        return replicas, lines
    # The remaining zones must carry the load.
    in_all = math.ceil(replicas / (demand.zones - 1)) * demand.zones
    lines.append(
        f"zones      {demand.zones}, of which one may fail: ceil({replicas} / {demand.zones - 1}) "
        f"x {demand.zones} = {in_all} replicas, {in_all * demand.lanes} CPUs"
    )
    return in_all, lines


def headroom() -> list[str]:
    """Table of the utilisation at which p99 of the wait reaches so many images, by lanes."""
    rows = ["| lanes | " + " | ".join(f"{wait:g} images" for wait in WAITS) + " |"]
    rows.append("| --- " * (1 + len(WAITS)) + "|")
    for lanes in LANES:
        shares = [f"{highest_utilisation(lanes, wait):.0%}" for wait in WAITS]
        rows.append(f"| {lanes} | " + " | ".join(shares) + " |")
    return rows


def least_cpu_s(run: Callable[[], object]) -> float:
    """Minimum CPU seconds over several runs, at least two; other load can only add time."""
    run()
    best, began, count = math.inf, time.monotonic(), 0
    while count < 2 or (time.monotonic() - began < MEASURE_S and count < 50):
        started = time.process_time()
        run()
        best, count = min(best, time.process_time() - started), count + 1
    return best


def fit(label: str, patches: int, seconds: dict[int, float]) -> Cost:
    """Fit the cost line of a shape to the seconds by batch size."""
    slope_s, intercept_s = np.polyfit(list(seconds), list(seconds.values()), 1)
    if intercept_s < 0:
        slope_s, intercept_s = min(s / count for count, s in seconds.items()), 0.0
    return Cost(label, patches, float(intercept_s), float(slope_s))


def measure(model: str, sides: Sequence[int]) -> Costs:
    """Measure all costs that planning needs for one package on this machine."""
    package = open_package(model)
    manifest, runtime = package.manifest, load_runtime(package)

    def image(side: int) -> Cost:
        seconds = {}
        for count in BATCHES:
            pixels_B3HW = np.full((count, 3, side, side), 0.5, np.float32)
            seconds[count] = least_cpu_s(partial(runtime.encode_images, pixels_B3HW))
        return fit(f"image {side}x{side}", (side // manifest.patch_size) ** 2, seconds)

    def texts(count: int) -> float:
        ids_BL = np.full((count, TEXT_TOKENS), 5, np.int64)
        return least_cpu_s(partial(runtime.encode_texts, ids_BL, np.ones_like(ids_BL)))

    encoded, native = photo_like_jpeg(0), (manifest.native_size, manifest.native_size)
    limits = ImageLimits(max_bytes=1 << 24, max_pixels=1 << 26)
    return Costs(
        model=manifest.name,
        machine=f"{this_hardware().cpu_name}, Python {platform.python_version()}",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        how="CPU seconds on one thread, minimum of several runs",
        runtime=f"{runtime.name} {runtime.precision}",
        images=tuple(image(side) for side in sides),
        text=fit(f"text {TEXT_TOKENS}", TEXT_TOKENS, {n: texts(n) for n in TEXT_BATCHES}),
        outside_s=least_cpu_s(lambda: prepare_image(decode_image(encoded, limits), native)),
    )


def milliseconds(text: str) -> float:
    """Seconds of an option in milliseconds."""
    return float(text) / 1000


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(sorted(path.stem for path in MEASURED.glob("*.json")))
    parser.add_argument("--rate", type=float, default=0.0, help="images per second at the peak")
    parser.add_argument("--side", type=int, default=448, help="side of the images in pixels")
    parser.add_argument("--p99-ms", type=milliseconds, default=0.2, dest="limit_s", help="at p99")
    parser.add_argument("--costs", default="b14", help=f"a JSON file, or one of {known}")
    parser.add_argument("--lanes", type=int, default=4, help="lanes per replica, one CPU each")
    parser.add_argument("--new-text-share", type=float, default=0.0, help="requests with new texts")
    parser.add_argument("--texts", type=int, default=0, help="new texts in each such request")
    parser.add_argument("--zones", type=int, default=1, help="one of which may fail; 1: no reserve")
    parser.add_argument("--margin", type=float, default=0.0, help="0.2 adds a fifth to the load")
    parser.add_argument("--measure", metavar="MODEL", help="write its costs into --costs")
    parser.add_argument("--sides", default="112,224,448", help="with --measure, in pixels")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure costs, or plan for one demand. Returns 1 if no plan exists."""
    options = parse(arguments)
    if options.measure:
        costs = measure(options.measure, sorted(map(int, options.sides.split(","))))
        Path(options.costs).write_text(json.dumps(asdict(costs), indent=2) + "\n", encoding="utf-8")
        return 0
    named = MEASURED / f"{options.costs}.json"
    asked = {field.name: getattr(options, field.name) for field in fields(Demand)}
    try:
        _, lines = plan(
            Demand(**asked), Costs.read(named if named.exists() else Path(options.costs))
        )
    except (PlanError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    print("\nallowed utilisation of the lanes, by the allowed p99 of the wait:\n")
    print("\n".join(headroom()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
