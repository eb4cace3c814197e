"""The shipped autoscalers are what is simulated, and what is not understood is an error."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from benchmarks.autoscaling.manifests import (
    HPA,
    SCALED_OBJECT,
    ManifestError,
    hpa,
    read_scaler,
    scaled_object,
)
from benchmarks.autoscaling.signals import UnknownQueryError, understand

Document = dict[str, Any]


@pytest.fixture
def shipped() -> Document:
    document = yaml.safe_load(SCALED_OBJECT.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def test_both_shipped_autoscalers_ask_for_the_same() -> None:
    keda, by_adapter = read_scaler(SCALED_OBJECT), read_scaler(HPA)
    told = []
    for settings in (keda, by_adapter):
        queries = [understand(target.query, 2) for target in settings.targets]
        numbers = [(target.kind, target.value) for target in settings.targets]
        told.append((queries, numbers, settings.up, settings.down))
        assert (settings.min_replicas, settings.max_replicas) == (2, 10)
    assert told[0] == told[1]


def test_it_scales_on_queue_wait_as_a_value(shipped: Document) -> None:
    wait, busy = scaled_object(shipped).targets
    assert understand(wait.query, 2).signal.name == "mean queue wait"
    assert understand(busy.query, 2).signal.name == "busy share of lanes"
    assert wait.kind == busy.kind == "Value"


def triggers(document: Document) -> list[Document]:
    found = document["spec"]["triggers"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["spec"].update(minReplicaCnt=3), "minReplicaCnt"),
        (lambda d: d["spec"].pop("minReplicaCount"), "from 0"),
        (lambda d: d["spec"].update(fallback={"replicas": 4}), "fallback"),
        (lambda d: triggers(d)[0].update(type="cpu"), "'cpu'"),
        (lambda d: triggers(d)[0].update(useCachedMetrics=True), "useCachedMetrics"),
        (lambda d: triggers(d)[0].update(metricType="Utilization"), "Utilization"),
        (lambda d: triggers(d)[0]["metadata"].update(threshold="0"), "never be met"),
        (lambda d: triggers(d)[0]["metadata"].update(threshold="soon"), "'soon'"),
        (lambda d: triggers(d)[0]["metadata"].update(treshold="1"), "treshold"),
        (lambda d: d["spec"]["advanced"].update(scalingModifiers={}), "scalingModifiers"),
    ],
)
def test_what_is_not_understood_is_an_error(
    shipped: Document, change: Callable[[Document], object], message: str
) -> None:
    changed = copy.deepcopy(shipped)
    change(changed)
    with pytest.raises(ManifestError, match=message):
        scaled_object(changed)


def test_a_query_of_something_else_is_an_error(shipped: Document) -> None:
    triggers(shipped)[0]["metadata"]["query"] = "sum(tipserve_queue_depth)"
    with pytest.raises(UnknownQueryError):
        understand(scaled_object(shipped).targets[0].query, 2)


def test_a_name_that_no_adapter_knows_is_an_error() -> None:
    document = yaml.safe_load(HPA.read_text(encoding="utf-8"))
    with pytest.raises(ManifestError, match="nothing says what tipserve_queue_wait_seconds is"):
        hpa(document, {})
