"""Reads the shipped ScaledObject and HorizontalPodAutoscaler; what it does not know is an error."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.autoscaling.autoscaler import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    Policy,
    Rules,
    ScalerSettings,
    Target,
)

Document = Mapping[str, Any]
KUBERNETES: Final = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
SCALED_OBJECT: Final = KUBERNETES / "components" / "keda" / "scaledobject.yaml"
HPA: Final = KUBERNETES / "components" / "hpa" / "autoscaler.yaml"
# Beside an HPA: what its metrics' names stand for.
ADAPTER: Final = "prometheus_adapter.yaml"
# Keys that are understood; those in the second set change nothing between 1 and the maximum.
SCALED_OBJECT_KEYS: Final = {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"}
SCALED_OBJECT_IDLE: Final = {"pollingInterval", "cooldownPeriod", "advanced"}
TRIGGER_KEYS: Final = {"type", "name", "metricType", "metadata"}
TRIGGER_METADATA: Final = {"query", "threshold"}
TRIGGER_IDLE: Final = {"serverAddress", "activationThreshold", "ignoreNullValues", "unsafeSsl"}


class ManifestError(ValueError):
    """A manifest says something that is not simulated."""


def read_scaler(path: Path) -> ScalerSettings:
    """Settings of the one scaler in a file.

    Raises:
        ManifestError: There is none, or not all of it is understood.
    """
    documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]
    kinds = {"ScaledObject", "HorizontalPodAutoscaler"}
    found = [document for document in documents if document.get("kind") in kinds]
    if len(found) != 1:
        raise ManifestError(f"{path.name} holds {len(found)} scalers; one is read")
    if found[0]["kind"] == "ScaledObject":
        return scaled_object(found[0])
    adapter = path.with_name(ADAPTER)
    return hpa(found[0], adapter_queries(adapter) if adapter.exists() else {})


def adapter_queries(path: Path) -> dict[str, str]:
    """What prometheus-adapter answers each name with, of the external metrics in its values."""
    rules = yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]["external"]
    return {rule["name"]["as"]: rule["metricsQuery"] for rule in rules}


def scaled_object(document: Document) -> ScalerSettings:
    """A ScaledObject of KEDA with Prometheus triggers."""
    spec = document["spec"]
    _known("spec", spec, SCALED_OBJECT_KEYS | SCALED_OBJECT_IDLE)
    advanced = spec.get("advanced", {})
    _known("advanced", advanced, {"horizontalPodAutoscalerConfig"})
    config = advanced.get("horizontalPodAutoscalerConfig", {})
    _known("horizontalPodAutoscalerConfig", config, {"behavior"})
    behavior = _behavior(config)
    # KEDA's own defaults are 0 and 100.
    least = spec.get("minReplicaCount", 0)
    if least < 1:
        raise ManifestError("minReplicaCount is 0 where it is left out; from 0 is not simulated")
    return ScalerSettings(
        min_replicas=least,
        max_replicas=spec.get("maxReplicaCount", 100),
        targets=tuple(_trigger(trigger) for trigger in spec["triggers"]),
        up=_rules(behavior.get("scaleUp", {}), DEFAULT_UP),
        down=_rules(behavior.get("scaleDown", {}), DEFAULT_DOWN),
    )


def hpa(document: Document, queries: Mapping[str, str]) -> ScalerSettings:
    """A HorizontalPodAutoscaler (autoscaling/v2) on external metrics, or on CPU.

    Args:
        document: The manifest.
        queries: What the names of its metrics stand for.
    """
    spec = document["spec"]
    _known("spec", spec, {"scaleTargetRef", "minReplicas", "maxReplicas", "metrics", "behavior"})
    behavior = _behavior(spec)
    return ScalerSettings(
        min_replicas=spec.get("minReplicas", 1),
        max_replicas=spec["maxReplicas"],
        targets=tuple(_metric(metric, queries) for metric in spec["metrics"]),
        up=_rules(behavior.get("scaleUp", {}), DEFAULT_UP),
        down=_rules(behavior.get("scaleDown", {}), DEFAULT_DOWN),
    )


def _trigger(trigger: Document) -> Target:
    _known("trigger", trigger, TRIGGER_KEYS)
    metadata = trigger["metadata"]
    _known("trigger's metadata", metadata, TRIGGER_METADATA | TRIGGER_IDLE)
    if trigger["type"] != "prometheus":
        raise ManifestError(f"a trigger of type {trigger['type']!r} is not simulated")
    kind = trigger.get("metricType", "AverageValue")
    if kind not in {"Value", "AverageValue"}:
        raise ManifestError(f"metricType {kind!r} is not one of a Prometheus trigger")
    return Target(metadata["query"], kind, _positive(metadata["threshold"]))


def _metric(metric: Document, queries: Mapping[str, str]) -> Target:
    if metric["type"] == "Resource" and metric["resource"]["name"] == "cpu":
        target = metric["resource"]["target"]
        return Target("cpu", "Utilization", _positive(target["averageUtilization"]) / 100)
    if metric["type"] != "External":
        raise ManifestError(f"a metric of type {metric['type']!r} is not simulated")
    target = metric["external"]["target"]
    name = metric["external"]["metric"]["name"]
    if name not in queries:
        raise ManifestError(f"nothing says what {name} is; {ADAPTER} has {sorted(queries)}")
    if target["type"] == "Value":
        return Target(queries[name], "Value", _positive(target["value"]))
    return Target(queries[name], "AverageValue", _positive(target["averageValue"]))


def _positive(text: object) -> float:
    """A number, also as a quantity in thousandths such as `250m`."""
    words = str(text)
    try:
        number = float(words[:-1]) / 1000 if words.endswith("m") else float(words)
    except ValueError:
        raise ManifestError(f"{words!r} is not a number") from None
    if number <= 0:
        raise ManifestError(f"a target of {words} can never be met")
    return number


def _behavior(holder: Document) -> Document:
    behavior: Document = holder.get("behavior", {})
    _known("behavior", behavior, {"scaleUp", "scaleDown"})
    return behavior


def _rules(rules: Document, default: Rules) -> Rules:
    _known("behavior's rules", rules, {"stabilizationWindowSeconds", "policies", "selectPolicy"})
    policies = tuple(
        Policy(policy["type"], policy["value"], policy["periodSeconds"])
        for policy in rules.get("policies", ())
    )
    return Rules(
        stabilization_s=rules.get("stabilizationWindowSeconds", default.stabilization_s),
        policies=policies or default.policies,
        select=rules.get("selectPolicy", default.select),
    )


def _known(place: str, found: Iterable[str], known: set[str]) -> None:
    strange = set(found) - known
    if strange:
        raise ManifestError(f"{place}: not simulated: {', '.join(sorted(strange))}")
