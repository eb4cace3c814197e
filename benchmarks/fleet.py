"""Computes what a fleet needs: cores, pods, nodes, network, connections, series, and times.

`python -m benchmarks.fleet` prints the numbers of docs/fleet.md; every input is an option.
"""

import argparse
import sys
from collections.abc import Sequence
from math import ceil

# Of the manifests.
SURGE, UNAVAILABLE, SCALE_DOWN = 0.25, 0.10, 0.10
MAX_CONNECTIONS = 1024
SCRAPE_S = 15


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options; the defaults are the page's example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    for name, default, text in (
        ("rate", 100_000, "images a second"),
        ("image-ms", 9.8, "CPU ms of an image on a lane and outside it"),
        ("busy", 0.85, "share of the lanes' time that the p99 allows: docs/capacity.md"),
        ("lanes", 4, "lanes, and CPUs, of a replica"),
        ("gpu-rate", 1_750, "images a second of a GPU; an assumption of docs/capacity.md"),
        ("decode-ms", 3.7, "CPU ms beside the GPU"),
        ("node-cpus", 62, "CPUs of a node that pods may request"),
        ("image-bytes", 82_429, "bytes of an image"),
        ("answer-bytes", 3_200, "bytes of an answer"),
        ("start-s", 20, "seconds from a pod's creation to ready"),
        ("drain-s", 15, "seconds from a pod's deletion to its end, typically"),
        ("series", 1_000, "series of a replica"),
        ("clients", 2_000, "client processes of gRPC"),
        ("subset", 20, "replicas that each client connects to"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    return parser.parse_args(arguments)


def rounds_of_scaling(start: int, end: int) -> int:
    """Minutes from one number of replicas to another, by a tenth a minute and at least one."""
    minutes = 0
    while start > end:
        start = max(end, start - max(1, int(start * SCALE_DOWN)))
        minutes += 1
    return minutes


def show(options: argparse.Namespace) -> list[str]:
    """One line for each number, with its arithmetic."""
    cores = options.rate * options.image_ms / 1000
    lanes = cores / options.busy
    pods = ceil(lanes / options.lanes)
    per_node = options.node_cpus // options.lanes
    nodes = ceil(pods / per_node)
    gbit = 8e-9 * options.rate
    at_once = ceil(pods * SURGE) + int(pods * UNAVAILABLE)
    rollout_s = ceil(pods / at_once) * (options.start_s + options.drain_s)
    each = options.clients * options.subset / pods
    tenth = ceil(pods / 10)
    return [
        f"cores       {options.rate:,}/s x {options.image_ms} ms = {cores:,.0f} cores busy",
        f"pods        / {options.busy} busy / {options.lanes} lanes = {pods:,} pods",
        f"nodes       {per_node} pods on {options.node_cpus} CPUs: {nodes} nodes",
        f"or GPUs     / {options.gpu_rate:,}/s = {ceil(options.rate / options.gpu_rate)} GPUs, and "
        f"{options.rate * options.decode_ms / 1000:,.0f} cores to decode",
        f"network in  x {options.image_bytes:,} bytes = {gbit * options.image_bytes:,.1f} Gbit/s, "
        f"{gbit * options.image_bytes / nodes:.2f} a node",
        f"network out x {options.answer_bytes:,} bytes = {gbit * options.answer_bytes:,.1f} Gbit/s",
        f"rollout     {at_once} pods at once: {ceil(pods / at_once)} rounds, {rollout_s} s; "
        f"one by one {pods * options.start_s / 3600:.1f} h",
        f"scale down  {pods:,} to {tenth}: {rounds_of_scaling(pods, tenth)} minutes; "
        f"one a minute {(pods - tenth) / 60:.0f} h",
        f"gRPC        {options.clients:,} clients to every pod: {options.clients:,} connections "
        f"a pod, limit {MAX_CONNECTIONS:,}; {options.subset} each: {each:.0f} a pod",
        f"metrics     {pods:,} x {options.series:,} = {pods * options.series / 1e6:.1f} M series, "
        f"{pods * options.series / SCRAPE_S / 1000:.0f} k samples/s",
    ]


def main(arguments: Sequence[str]) -> int:
    """Print the lines."""
    print("\n".join(show(parse(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
