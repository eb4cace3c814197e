"""Queries that are understood, and those that were never simulated."""

import pytest

from benchmarks.autoscaling.signals import UnknownQueryError, histogram_quantile, understand

STAGE = "tipserve_stage_duration_seconds"
WAIT = (
    f'sum(rate({STAGE}_sum{{job="a",stage="queue"}}[2m]))\n'
    f'  /clamp_min( sum(rate({STAGE}_count{{job="a",stage="queue"}}[2m])), 0.001 )'
)


def test_spaces_mean_nothing_and_windows_are_read() -> None:
    query = understand(WAIT, 2)
    assert query.signal.name == "mean queue wait"
    assert (query.parameters.window_s, query.parameters.lanes) == (120.0, 2)


def test_a_ceiling_is_taken_off() -> None:
    query = understand(f"clamp_max({WAIT}, 1.5)", 2)
    assert (query.signal.name, query.ceiling) == ("mean queue wait", 1.5)


def test_a_quantile_is_read() -> None:
    text = (
        f'histogram_quantile(0.9, sum by (le) (rate({STAGE}_bucket{{stage="queue"}}[1m]))) '
        ">= 0 or vector(0)"
    )
    assert understand(text, 1).parameters.quantile == 0.9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('stage="queue"', 'stage="run"', "needs stage"),
        ("_sum{", "_summ{", "not simulated"),
        ("[2m])) /", "[5m])) /", "differ"),
        ("clamp_min", "clamp_max", "not simulated"),
        ('{job="a",stage="queue"}', "", "not simulated"),
        ('{job="a",stage="queue"}', "{}", "not simulated"),
    ],
)
def test_others_are_errors(old: str, new: str, message: str) -> None:
    text = " ".join(WAIT.split()).replace(")) /clamp", ")) / clamp")
    changed = text.replace(old, new, 1)
    assert changed != text
    with pytest.raises(UnknownQueryError, match=message):
        understand(changed, 2)


def test_an_empty_histogram_is_zero() -> None:
    assert histogram_quantile(0.9, [0.0] * 16) == 0.0
