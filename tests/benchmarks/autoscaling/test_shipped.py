"""What is shipped, under a step: it recovers and stays; without one of its parts it does not."""

from dataclasses import replace

import pytest

from benchmarks.autoscaling.autoscaler import DEFAULT_DOWN, ScalerSettings
from benchmarks.autoscaling.fleet import Phase, PodStart
from benchmarks.autoscaling.manifests import SCALED_OBJECT, read_scaler
from benchmarks.autoscaling.replica import plain_spec
from benchmarks.autoscaling.scenario import Run, Setting, Traffic, simulate
from benchmarks.autoscaling.summary import Summary, summarize

STEP_S, END_S, LIMIT_S = 300.0, 2_100.0, 3.0
SPEC = replace(plain_spec(2, 0.54), max_queue_cost=64)
TRAFFIC = Traffic(phases=(Phase(STEP_S, 2.0), Phase(END_S, 16.0)), image_patches=1)


def run(scaler: ScalerSettings | None, replicas: int = 2, *, load_s: float = 18.0) -> Run:
    setting = Setting(spec=SPEC, start=PodStart(load_s=load_s), traffic=TRAFFIC, scrape_s=15.0)
    return simulate(setting, scaler, replicas, seed=1)


def summary(scaler: ScalerSettings | None, replicas: int = 2) -> Summary:
    return summarize(run(scaler, replicas), STEP_S, END_S, LIMIT_S)


@pytest.fixture(scope="module")
def shipped() -> ScalerSettings:
    return read_scaler(SCALED_OBJECT)


@pytest.fixture(scope="module")
def told(shipped: ScalerSettings) -> Summary:
    return summary(shipped)


def test_it_recovers_and_does_not_swing(told: Summary, shipped: ScalerSettings) -> None:
    assert told.before == shipped.min_replicas
    assert 0 < told.recovered_s < 300
    assert told.reversals == 0
    assert told.peak <= shipped.max_replicas


def test_without_an_autoscaler_it_never_recovers(told: Summary) -> None:
    alone = summary(None)
    assert alone.recovered_s == float("inf")
    assert alone.refused_share > 5 * told.refused_share


def test_waits_alone_swing(told: Summary, shipped: ScalerSettings) -> None:
    wait, _ = shipped.targets
    swinging = summary(replace(shipped, targets=(wait,), down=DEFAULT_DOWN))
    assert swinging.reversals >= 2
    assert swinging.late_share > told.late_share


def test_busy_lanes_alone_are_slow(told: Summary, shipped: ScalerSettings) -> None:
    _, busy = shipped.targets
    assert summary(replace(shipped, targets=(busy,))).recovered_s > told.recovered_s


def test_one_seed_one_run(shipped: ScalerSettings) -> None:
    assert run(shipped).outcomes == run(shipped).outcomes


def test_models_that_load_longer_recover_later(told: Summary, shipped: ScalerSettings) -> None:
    slow = summarize(run(shipped, load_s=120.0), STEP_S, END_S, LIMIT_S)
    assert slow.recovered_s > told.recovered_s
    assert slow.refused_share > told.refused_share
