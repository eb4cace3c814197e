"""Pods that operators would make of custom resources, for checks that know only pods."""

from collections.abc import Iterator
from typing import Any

from tests.deploy.workloads import Manifest, of_kind


def pods_within(documents: list[Manifest]) -> list[Manifest]:
    """A Pod or a Job for each kind of pod that operators are asked for, named after its owner."""
    found = [_pod(*owned) for owned in (*_of_ray(documents), *_of_kserve(documents))]
    for owner, template in _of_trainer(documents):
        # The Trainer makes Jobs, which need no probes.
        job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": template}}
        found.append({**job, "metadata": {"name": owner["metadata"]["name"]}})
    for number, pod in enumerate(found):
        pod["metadata"]["name"] += f"-{number}"
    return found


def _pod(owner: Manifest, template: Manifest) -> Manifest:
    labels = template.get("metadata", {}).get("labels", {})
    metadata = {"name": owner["metadata"]["name"], "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _of_ray(documents: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    for job in of_kind(documents, "RayJob"):
        cluster = job["spec"].get("rayClusterSpec", {})
        groups = [cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", ())]
        for group in groups:
            if "template" in group:
                yield job, group["template"]


def _of_kserve(documents: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    runtimes = {
        runtime["metadata"]["name"]: runtime["spec"]
        for runtime in of_kind(documents, "ServingRuntime", "ClusterServingRuntime")
    }
    for inference in of_kind(documents, "InferenceService"):
        predictor = inference["spec"].get("predictor", {})
        runtime = runtimes.get(predictor.get("model", {}).get("runtime"))
        if runtime:
            # What the predictor says of pods is laid over what its runtime says.
            whole = {**runtime, **predictor}
            spec = {key: whole[key] for key in _POD_FIELDS_OF_KSERVE & whole.keys()}
            yield inference, {"metadata": {"labels": runtime.get("labels", {})}, "spec": spec}


# Those of a PodSpec that a runtime or a predictor is likely to have; both have many fields more.
_POD_FIELDS_OF_KSERVE = {
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "imagePullSecrets",
    "initContainers",
    "nodeSelector",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
}


def _of_trainer(documents: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    for job in of_kind(documents, "TrainJob"):
        trainer = job["spec"].get("trainer", {})
        for patch in job["spec"].get("runtimePatches", ()):
            spec = patch["trainingRuntimeSpec"]["template"]["spec"]
            for replicated in spec.get("replicatedJobs", ()):
                template = replicated["template"]["spec"]["template"]
                yield job, {**template, "spec": _trained(template["spec"], trainer)}


def _trained(spec: Manifest, trainer: Manifest) -> Manifest:
    """A patch of a pod with what the trainer gives its containers."""
    given: dict[str, Any] = {
        key: trainer[key] for key in ("image", "command", "args", "env") if key in trainer
    }
    if "resourcesPerNode" in trainer:
        given["resources"] = trainer["resourcesPerNode"]
    containers = [{**given, **container} for container in spec.get("containers", ())]
    return {**spec, "containers": containers}
