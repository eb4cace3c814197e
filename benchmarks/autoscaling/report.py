"""Runs as tables of plain text, and one of them as an image (SVG, without any library)."""

import math
from collections.abc import Sequence
from typing import Final

from benchmarks.autoscaling.scenario import BIN_S, Bin, Run, quantile
from benchmarks.autoscaling.summary import Summary

WIDTH, PANEL, GAP, LEFT = 760, 130, 44, 64


def seconds(value: float) -> str:
    """Short, as people say it."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "never"
    if value >= 1:
        return f"{value:.1f} s"
    return f"{1000 * value:.0f} ms" if value >= 0.01 or not value else f"{1000 * value:.1f} ms"


def over_time(run: Run, step_s: float, until_s: float, every_s: float) -> list[str]:
    """What happened, in rows of so many seconds, by the time since the step."""
    rows = ["| since the step | offered/s | refused | p50 | p99 | replicas ready | asked for |"]
    rows.append("| --- " * 7 + "|")
    size = int(every_s / BIN_S)
    chosen = [b for b in run.bins if step_s - every_s <= b.start_s < until_s]
    for first in range(0, len(chosen), size):
        group = chosen[first : first + size]
        start_s = group[0].start_s
        asked = [o for o in run.outcomes if start_s <= o.arrived < start_s + every_s]
        latencies = [o.latency_s for o in asked if o.latency_s is not None]
        refused = sum(o.latency_s is None for o in asked) / max(1, len(asked))
        rows.append(
            f"| {start_s - step_s:+.0f} s | {len(asked) / every_s:.1f} | {refused:.1%} "
            f"| {seconds(quantile(latencies, 0.5))} | {seconds(quantile(latencies, 0.99))} "
            f"| {group[-1].ready} | {group[-1].replicas} |"
        )
    return rows


def compared(rows: Sequence[tuple[str, Summary]], limit_s: float) -> list[str]:
    """One line for each autoscaler."""
    head = [
        "autoscaler",
        "worst p99",
        f"later than {seconds(limit_s)}",
        "refused",
        "recovered after",
        "replicas before",
        "most",
        "on average in the step",
        "reversals",
    ]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, summary in rows:
        cells = [
            name,
            seconds(summary.worst_p99_s),
            f"{summary.late_share:.1%}",
            f"{summary.refused_share:.1%}",
            f"{summary.recovered_s:.0f} s" if summary.recovered_s < math.inf else "never",
            str(summary.before),
            str(summary.peak),
            f"{summary.mean_replicas:.1f}",
            str(summary.reversals),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


FRAME: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
)


def chart(run: Run, limit_s: float, title: str) -> str:
    """Requests, p99 and replicas over time, one panel each."""
    bins = run.bins
    offered = [b.offered / BIN_S for b in bins]
    answered = [(b.offered - b.refused) / BIN_S for b in bins]
    p99 = [b.p99_s for b in bins]
    limit = [limit_s] * len(bins)
    panels = [
        ("requests a second", [("offered", "#888", offered), ("answered", "#06c", answered)]),
        ("p99 in seconds, logarithmic", [("p99", "#c30", p99), ("limit", "#888", limit)]),
        (
            "replicas",
            [
                ("asked for", "#888", [float(b.replicas) for b in bins]),
                ("ready", "#080", [float(b.ready) for b in bins]),
            ],
        ),
    ]
    height = 40 + len(panels) * (PANEL + GAP) + 16
    parts = [FRAME.format(width=WIDTH, height=height), f'<text x="{LEFT}" y="20">{title}</text>']
    for index, (name, lines) in enumerate(panels):
        parts += _panel(40 + index * (PANEL + GAP), name, lines, bins)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    top: float, name: str, lines: Sequence[tuple[str, str, Sequence[float]]], bins: Sequence[Bin]
) -> list[str]:
    known = [value for _, _, values in lines for value in values if not math.isnan(value)]
    is_log = "logarithmic" in name
    least, most = (0.9 * min(known), max(known)) if is_log else (0.0, max(known))

    def height(value: float) -> float:
        return math.log(value / least) / math.log(most / least) if is_log else value / most

    end_s = bins[-1].start_s + BIN_S
    right, bottom = WIDTH - 20, top + PANEL
    parts = [f'<text x="{LEFT}" y="{top - 5}" font-weight="bold">{name}</text>']
    for share in (0, 0.5, 1):
        y = bottom - share * PANEL
        told = least * (most / least) ** share if is_log else share * most
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{told:.3g}</text>')
    for minute in range(0, int(end_s / 60) + 1, 10):
        x = LEFT + minute * 60 / end_s * (right - LEFT)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{minute} min</text>'
        )
    for number, (label, colour, values) in enumerate(lines):
        points = [
            f"{LEFT + b.start_s / end_s * (right - LEFT):.1f},{bottom - height(v) * PANEL:.1f}"
            for b, v in zip(bins, values, strict=True)
            if not math.isnan(v)
        ]
        style = f'fill="none" stroke="{colour}" stroke-width="1.5"'
        parts.append(f'<polyline points="{" ".join(points)}" {style}/>')
        x = right - 90 * (len(lines) - number) + 20
        parts.append(f'<text x="{x}" y="{top - 5}" fill="{colour}">{label}</text>')
    return parts
