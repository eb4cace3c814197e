"""p99, refusals and replicas under a traffic step, with the autoscaler that is shipped.

Run: python -m benchmarks.autoscaling [--curves b14] [--side 448] [--step 4:20] [--part all]

A discrete-event simulation (SimPy) of replicas with lanes and batches as the service has them, of
Prometheus' scrapes and rates, and of what the HorizontalPodAutoscaler decides by the settings in
`deploy/kubernetes/components/keda/scaledobject.yaml`. Nothing here runs a cluster.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.autoscaling.alternatives import alternatives
from benchmarks.autoscaling.closed_form import closed_form_table
from benchmarks.autoscaling.curves import MEASURED, Curves
from benchmarks.autoscaling.fleet import Phase, PodStart
from benchmarks.autoscaling.manifests import SCALED_OBJECT, read_scaler
from benchmarks.autoscaling.report import chart, compared, over_time, seconds
from benchmarks.autoscaling.scenario import Setting, Traffic, simulate
from benchmarks.autoscaling.specs import replica_spec
from benchmarks.autoscaling.summary import median_of, summarize

PARTS = ("model", "step", "compare")
SEEDS = (1, 11, 21)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autoscaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(sorted(path.stem for path in MEASURED.glob("*.json")))
    parser.add_argument("--curves", default="b14", help=f"a JSON file, or one of {known}")
    parser.add_argument("--side", type=int, default=448, help="pixels of every image")
    parser.add_argument("--lanes", type=int, default=2, help="of each replica, and its CPUs")
    parser.add_argument("--scaler", type=Path, default=SCALED_OBJECT, help="YAML")
    parser.add_argument("--step", default="4:20", help="requests a second before and in the step")
    parser.add_argument("--minutes", default="10:40:40", help="before, in and after the step")
    parser.add_argument("--new-texts", default="0:0", help="share of requests, texts in each")
    parser.add_argument("--load-s", type=float, default=18.0, help="until a model is loaded")
    parser.add_argument("--pull-s", type=float, default=0.0, help="image and node of a new pod")
    parser.add_argument("--scrape-s", type=float, default=15.0, help="Prometheus' interval")
    parser.add_argument("--cpus-requested", type=float, default=1.0, help="as the Deployment does")
    parser.add_argument("--limit-s", type=float, help="what p99 should keep; 4 passes if left out")
    parser.add_argument("--rows", default="60:2400", help="seconds of each row, and of the table")
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--svg", type=Path, help="where the step is drawn")
    return parser.parse_args()


def setting_of(options: argparse.Namespace, curves: Curves) -> Setting:
    """What the command line describes."""
    before, within = (float(rate) for rate in options.step.split(":"))
    lengths = [60 * float(minutes) for minutes in options.minutes.split(":")]
    ends = [sum(lengths[: count + 1]) for count in range(3)]
    share, texts = options.new_texts.split(":")
    phases = tuple(
        Phase(end, rate) for end, rate in zip(ends, (before, within, before), strict=True)
    )
    return Setting(
        spec=replica_spec(curves, options.side, options.lanes),
        start=PodStart(load_s=options.load_s, pull_s=options.pull_s),
        traffic=Traffic(
            phases=phases,
            image_patches=curves.image(options.side).patches,
            new_text_share=float(share),
            texts=int(texts),
        ),
        scrape_s=options.scrape_s,
        cpus_requested=options.cpus_requested,
    )


def conditions(options: argparse.Namespace, curves: Curves, limit_s: float) -> str:
    """What was simulated, in words."""
    cost = curves.image(options.side)
    return (
        f"{curves.model} at {options.side} px ({curves.runtime}; {curves.machine}; {curves.date}; "
        f"{curves.how}): a batch of n images takes {seconds(cost.intercept_s)} + n * "
        f"{seconds(cost.slope_s)}; replicas of {options.lanes} lanes; {options.step} requests/s; "
        f"pods ready after 2 to 4 s and {options.load_s + options.pull_s:.0f} s; scraped every "
        f"{options.scrape_s:.0f} s; limit of p99 {seconds(limit_s)}; seeds {SEEDS}"
    )


def print_lines(title: str, lines: Sequence[str]) -> None:
    """A table under its title."""
    print(f"\n{title}\n")
    print("\n".join(lines), flush=True)


def main() -> None:
    """Simulate what was asked for."""
    options = parse()
    named = MEASURED / f"{options.curves}.json"
    curves = Curves.read(named if named.exists() else Path(options.curves))
    setting, shipped = setting_of(options, curves), read_scaler(options.scaler)
    limit_s = options.limit_s or 4 * curves.image(options.side).alone_s
    step_s, until_s = (phase.until_s for phase in setting.traffic.phases[:2])
    print(conditions(options, curves, limit_s))
    parts = PARTS if options.part == "all" else (options.part,)
    if "model" in parts:
        service_s = curves.image(options.side).alone_s
        print_lines("Closed form against simulation, fixed replicas", closed_form_table(service_s))
    if "step" in parts:
        run = simulate(setting, shipped, shipped.min_replicas, SEEDS[0])
        every_s, length_s = (float(count) for count in options.rows.split(":"))
        shown_s = min(until_s, step_s + length_s)
        print_lines(f"{options.scaler.name}, over time", over_time(run, step_s, shown_s, every_s))
        if options.svg:
            title = f"{curves.model} at {options.side} px, {options.step} requests/s, simulated"
            options.svg.write_text(chart(run, limit_s, title), encoding="utf-8")
    if "compare" in parts:
        rows = []
        for name, scaler in alternatives(shipped, options.lanes / options.cpus_requested):
            runs = [simulate(setting, scaler, scaler.min_replicas, seed) for seed in SEEDS]
            middle = median_of([summarize(run, step_s, until_s, limit_s) for run in runs])
            rows.append((name, middle))
        print_lines("Autoscalers compared", compared(rows, limit_s))


if __name__ == "__main__":
    main()
