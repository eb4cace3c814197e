"""`python -m training cost`: cost of the recipes for real hardware, before they run."""

import argparse
from collections.abc import Collection, Iterable

from training.cost import DEVICES, Cluster, estimate, plan_of, render
from training.recipes.scale import NUM_RANKS, SCALE_RECIPES

HELP = "Estimate operations, hours and memory of the recipes for real hardware; runs nothing."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--recipe",
        nargs="+",
        default=list(SCALE_RECIPES),
        metavar="NAME",
        help=f"recipes (default all): {', '.join(SCALE_RECIPES)}",
    )
    parser.add_argument(
        "--device", default="h100", help=f"{', '.join(DEVICES)} (default h100)", metavar="NAME"
    )
    parser.add_argument(
        "--gpus", type=int, default=NUM_RANKS, help=f"number of devices (default {NUM_RANKS})"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="assumed share of the device's peak speed (default 0.4)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the tables.

    Raises:
        ValueError: A recipe or a device is unknown, or a number is out of range.
    """
    _check("device", [options.device], DEVICES)
    _check("recipe", options.recipe, SCALE_RECIPES)
    device = DEVICES[options.device]
    cluster = Cluster(device=device, num_devices=options.gpus, mfu=options.mfu)
    plans = [plan_of(SCALE_RECIPES[name](), num_ranks=NUM_RANKS) for name in options.recipe]
    print(render([estimate(plan, cluster) for plan in plans], cluster))


def _check(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")
