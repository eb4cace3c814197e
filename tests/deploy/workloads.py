"""Workloads in documents, also those for which an operator creates the pods."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

Manifest = dict[str, Any]

# The fields of a PodSpec that our runtimes and predictors have; both also have fields of KServe.
POD_FIELDS_OF_KSERVE = {
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "securityContext",
    "terminationGracePeriodSeconds",
    "volumes",
}


@dataclass(frozen=True)
class Workload:
    """The pods of one document.

    Attributes:
        document: The document that a user applies.
        pod: The pods' spec; for an operator's pods, as the operator completes it.
        labels: The pods' labels.
    """

    document: Manifest
    pod: Manifest
    labels: dict[str, str]

    def __str__(self) -> str:
        return called(self.document)

    @property
    def kind(self) -> str:
        """Kind of the document."""
        return str(self.document["kind"])

    @property
    def containers(self) -> list[Manifest]:
        """All containers, init containers first."""
        return [*self.pod.get("initContainers", []), *self.pod.get("containers", [])]

    @property
    def servers(self) -> list[Manifest]:
        """The containers that run the server: our image with its own entry point."""
        if self.kind not in ("Deployment", "InferenceService"):
            return []
        return [
            container
            for container in self.pod["containers"]
            if "command" not in container and "tipserve:" in container["image"]
        ]


def called(document: Manifest) -> str:
    """Kind and name, as kubectl writes them."""
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


def of_kind(documents: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    """The documents of these kinds."""
    return [document for document in documents if document.get("kind") in kinds]


def nodes(value: Any, key: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every mapping in a document, with the field that holds it or its list."""
    if isinstance(value, dict):
        yield key, value
        for name, inner in value.items():
            yield from nodes(inner, name)
    elif isinstance(value, list):
        for item in value:
            yield from nodes(item, key)


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector with `matchLabels`, as all of ours are, selects these labels."""
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def workloads(documents: Iterable[Manifest]) -> list[Workload]:
    """Everything that creates pods, directly or through an operator."""
    documents = list(documents)
    found = [*_of_operators(documents)]
    for document in of_kind(documents, "Deployment", "Job", "CronJob"):
        spec = document["spec"]
        template = (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]
        found.append((document, template))
    return [
        Workload(document, template["spec"], template.get("metadata", {}).get("labels", {}))
        for document, template in found
    ]


def operator_pods(documents: list[Manifest]) -> list[Manifest]:
    """A Pod or Job for each pod template of custom resources, for tools that know only these."""
    made = []
    for number, (owner, template) in enumerate(_of_operators(documents)):
        metadata = {"name": f"{owner['metadata']['name']}-{number}"}
        if owner["kind"] == "TrainJob":
            # The Trainer creates Jobs, whose pods need no probes.
            job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": template}}
            made.append(job | {"metadata": metadata})
        else:
            metadata |= {"labels": template.get("metadata", {}).get("labels", {})}
            pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
            made.append(pod | {"metadata": metadata})
    return made


def variables(container: Manifest, documents: list[Manifest]) -> dict[str, str]:
    """A container's variables as its process sees them; those from Secrets and pods are empty."""
    data = {one["metadata"]["name"]: one["data"] for one in of_kind(documents, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= data.get(source.get("configMapRef", {}).get("name"), {})
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef", {})
        referred = data.get(reference.get("name"), {}).get(reference.get("key"), "")
        field = variable.get("valueFrom", {}).get("resourceFieldRef", {}).get("resource", "")
        kind, _, resource = field.partition(".")
        if kind:
            amount = str(container["resources"][kind][resource])
            # Rounded up to whole CPUs, as a kubelet does.
            referred = str(
                ceil(float(amount.removesuffix("m")) / (1000 if amount[-1] == "m" else 1))
            )
        found[variable["name"]] = variable.get("value", referred)
    return found


def _of_operators(documents: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    for job in of_kind(documents, "RayJob"):
        cluster = job["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield job, group["template"]
    for service in of_kind(documents, "InferenceService"):
        yield service, _of_kserve(service, documents)
    for job in of_kind(documents, "TrainJob"):
        for patch in job["spec"]["runtimePatches"]:
            spec = patch["trainingRuntimeSpec"]["template"]["spec"]
            for replicated in spec["replicatedJobs"]:
                template = replicated["template"]["spec"]["template"]
                yield job, {**template, "spec": _of_trainer(template["spec"], job)}


def _of_kserve(service: Manifest, documents: list[Manifest]) -> Manifest:
    """The predictor's fields over the runtime's, the model mounted, the name in the braces."""
    predictor = service["spec"]["predictor"]
    name, model = service["metadata"]["name"], predictor["model"]
    (runtime,) = [
        one["spec"]
        for one in of_kind(documents, "ServingRuntime")
        if one["metadata"]["name"] == model["runtime"]
    ]
    whole = json.loads(json.dumps({**runtime, **predictor}).replace("{{.Name}}", name))
    spec = {key: whole[key] for key in POD_FIELDS_OF_KSERVE & whole.keys()}
    claim = model["storageUri"].removeprefix("pvc://").partition("/")[0]
    source = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    spec["volumes"].append({"name": "model", **source})
    mount = {"name": "model", "mountPath": "/mnt/models", "readOnly": True}
    spec["containers"][0]["volumeMounts"].append(mount)
    return {"metadata": {"labels": runtime["labels"]}, "spec": spec}


def _of_trainer(spec: Manifest, job: Manifest) -> Manifest:
    """A patch of a pod with the fields that the trainer sets in its containers."""
    trainer = job["spec"]["trainer"]
    given = {key: trainer[key] for key in ("image", "command", "args", "env")}
    given["resources"] = trainer["resourcesPerNode"]
    return {**spec, "containers": [{**given, **one} for one in spec["containers"]]}
