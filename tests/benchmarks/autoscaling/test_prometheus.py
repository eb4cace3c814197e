"""`rate` as Prometheus computes it: by hand, and against Prometheus' own tool."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks.autoscaling.prometheus import rate
from benchmarks.autoscaling.signals import histogram_quantile
from service.monitoring.metrics import BOUNDS, SECONDS
from tests.tools import find_tool

LIMIT_S = 120.0


def test_a_steady_counter() -> None:
    points = [(float(t), 3.0 * t) for t in range(0, 301, 15)]
    assert rate(points, 300.0, 60.0) == pytest.approx(3.0)


def test_one_sample_is_no_rate() -> None:
    assert rate([(0.0, 1.0), (290.0, 5.0)], 300.0, 60.0) is None


def evaluate(promtool: str, folder: Path, series: dict[str, str], asked: dict[str, float]) -> str:
    """Let promtool compare queries with numbers, samples every 15 s; what it says, if not well."""
    document = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [
                    # Equal but for the last digits.
                    {
                        "expr": f"abs({expr} / {value!r} - 1) < bool 1e-9",
                        "eval_time": "5m",
                        "exp_samples": [{"value": 1}],
                    }
                    for expr, value in asked.items()
                ],
            }
        ],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    result = subprocess.run(
        [promtool, "test", "rules", str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    return "" if result.returncode == 0 else result.stdout + result.stderr


@pytest.mark.parametrize(
    "values",
    [
        [0, 4, 9, 9, 30, 31, 80, 81, 90, 99, 120, 150, 160, 170, 190, 200, 230, 240, 260, 300, 310],
        [None] * 17 + [3, 10, 40, 41],  # a pod that came late
        [None] * 17 + [900, 910, 940, 941],  # and one that had counted before it was scraped
        [5, 9, 9, 12, 13, 15, 15, 15, 20, 31, 42, 53, 61, 64, 65, 69, 77, 80, 83, None, None],
        [None] * 18 + [0, 50, 60],  # it began at nothing
    ],
)
def test_rate_is_prometheus_own(values: list[int | None], tmp_path: Path) -> None:
    promtool = find_tool("promtool")
    points = [(15.0 * i, float(v)) for i, v in enumerate(values) if v is not None]
    ours = {f"sum(rate(x[{w}s]))": rate(points, 300.0, w) for w in (50, 80, 230)}
    asked = {expr: value for expr, value in ours.items() if value is not None}
    assert asked
    series = {"x": " ".join("_" if v is None else str(v) for v in values)}
    assert evaluate(promtool, tmp_path, series, asked) == ""
    wrong = {expr: value * 1.01 for expr, value in asked.items()}
    assert evaluate(promtool, tmp_path, series, wrong) != ""


def test_quantiles_are_prometheus_own(tmp_path: Path) -> None:
    promtool = find_tool("promtool")
    counts = [0, 0, 3, 0, 5, 40, 0, 21, 8, 0, 0, 2, 0, 0, 0, 1]
    assert len(counts) == len(SECONDS) + 1
    series, total = {}, 0
    for bound, count in zip(BOUNDS, counts, strict=True):
        total += count
        series[f"x_bucket{{le={json.dumps(bound)}}}"] = f"{total}x20"
    asked = {
        f"histogram_quantile({q}, sum by (le) (x_bucket))": histogram_quantile(q, counts)
        for q in (0.1, 0.5, 0.9, 0.99, 0.999)
    }
    assert evaluate(promtool, tmp_path, series, asked) == ""
