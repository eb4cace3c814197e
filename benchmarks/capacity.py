"""Replicas for a load, from measured costs, with the arithmetic shown.

Run: python -m benchmarks.capacity --rate 500 --side 448 --p99-ms 200 --curves FILE
     python -m benchmarks.capacity ... --server http://localhost:8000 --metrics http://localhost:8002

Costs come from a server that runs on the machine in question, which measures them at its start, or
from a file of `python -m benchmarks.autoscaling.measure`. docs/capacity.md explains each step.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.autoscaling.curves import MEASURED, Curves, CurvesError, read_server
from benchmarks.autoscaling.plan import Demand, Plan, PlanError, plan
from benchmarks.autoscaling.queueing import highest_utilisation

# A server does not tell what an image costs outside its lanes: decoded and scaled from 640 x 480,
# it was 2.4 and 3.7 ms where we measured.
ASSUMED_BESIDE_MS = 3.0
LANES = (1, 2, 4, 8, 16)
# What a wait of p99 may be, in times of one image.
WAITS = (0.25, 0.5, 1.0, 2.0, 4.0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(sorted(path.stem for path in MEASURED.glob("*.json")))
    parser.add_argument("--rate", type=float, required=True, help="images a second at the peak")
    parser.add_argument("--side", type=int, required=True, help="of the images, in pixels")
    parser.add_argument("--p99-ms", type=float, required=True, help="limit of 99 in 100 answers")
    parser.add_argument("--curves", default="b14", help=f"a JSON file, or one of {known}")
    parser.add_argument("--server", help="base of its REST addresses, instead of --curves")
    parser.add_argument("--metrics", help="base of its metrics' address; with --server")
    parser.add_argument(
        "--beside-ms", type=float, help="of CPU for an image outside the lanes; with --server 3"
    )
    parser.add_argument("--lanes", type=int, default=4, help="of each replica, on as many CPUs")
    parser.add_argument("--new-text-share", type=float, default=0.0, help="of requests, 0 to 1")
    parser.add_argument("--texts", type=int, default=0, help="new ones in each of those")
    parser.add_argument("--zones", type=int, default=1, help="one of which may end; 1: none may")
    parser.add_argument("--margin", type=float, default=0.0, help="0.2 is a fifth more load")
    options = parser.parse_args(arguments)
    if (options.server is None) != (options.metrics is None):
        parser.error("--server and --metrics go together")
    return options


def curves_of(options: argparse.Namespace) -> Curves:
    """From the file or the server."""
    beside_ms = options.beside_ms
    if options.server:
        curves = read_server(options.server.rstrip("/"), options.metrics.rstrip("/"))
        beside_ms = ASSUMED_BESIDE_MS if beside_ms is None else beside_ms
    else:
        named = MEASURED / f"{options.curves}.json"
        curves = Curves.read(named if named.exists() else Path(options.curves))
    return curves if beside_ms is None else replace(curves, beside_s=beside_ms / 1000)


def show(demand: Demand, curves: Curves, worked_out: Plan) -> list[str]:
    """Each step in a line."""
    cost, ms = curves.image(demand.side), 1000.0
    before_zone = f"{worked_out.replicas} replicas of {demand.lanes} lanes"
    lines = [
        f"{curves.model}, {curves.runtime}; {curves.machine}; {curves.date}; {curves.how}",
        f"an image   {ms * cost.intercept_s:.1f} + {ms * cost.slope_s:.1f} ms on a lane and "
        f"{ms * curves.beside_s:.1f} ms beside it = {ms * worked_out.image_s:.1f} ms",
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
            f"zones       {demand.zones}, of which one may end: "
            f"ceil({worked_out.replicas} / {demand.zones - 1}) x {demand.zones} = "
            f"{in_all} replicas, {in_all * demand.lanes} CPUs"
        )
    return lines


def headroom() -> list[str]:
    """The utilisation at which p99 of the wait is so many images long, by lanes of a replica."""
    rows = ["| lanes | " + " | ".join(f"{wait:g} images" for wait in WAITS) + " |"]
    rows.append("| --- " * (1 + len(WAITS)) + "|")
    for lanes in LANES:
        shares = [f"{highest_utilisation(lanes, 0.99, wait):.0%}" for wait in WAITS]
        rows.append(f"| {lanes} | " + " | ".join(shares) + " |")
    return rows


def main(arguments: Sequence[str]) -> int:
    """Work one demand out; 1 where it cannot be met."""
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
    print("\nhow busy lanes may be, by how long p99 of the wait may be:\n")
    print("\n".join(headroom()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
