"""Selectors and targets: what means pods, a Service or a Deployment finds them, and no others."""

from collections import Counter

from tests.deploy.operator_pods import pods_within
from tests.deploy.workloads import Manifest, Workload, called, of_kind, selects, workloads


def own_selectors(documents: list[Manifest]) -> list[str]:
    """A workload's selector, and where its pods are to be apart, mean its own pods."""
    found = []
    for workload in workloads(documents):
        spec = workload.document.get("spec", {})
        if "selector" in spec and not selects(spec["selector"], workload.labels):
            found.append(f"{workload}: its selector does not fit its own pods")
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            if not selects(constraint["labelSelector"], workload.labels):
                key = constraint["topologyKey"]
                found.append(f"{workload}: spread over {key} counts other pods than its own")
    return found


def others_selectors(documents: list[Manifest]) -> list[str]:
    """Services, budgets and policies find the pods of one workload."""
    pods = [*workloads(documents), *made_by_operators(documents)]
    found = []
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        chosen = selected(document, pods)
        if not chosen:
            found.append(f"{called(document)}: selects no pod of these documents")
        elif document["kind"] == "Service" and len(chosen) > 1:
            names = ", ".join(map(str, chosen))
            found.append(f"{called(document)}: selects the pods of several: {names}")
    return found


def made_by_operators(documents: list[Manifest]) -> list[Workload]:
    """The pods that operators would make, with the labels that they would have."""
    made = pods_within(documents)
    labelled = [(one, one["metadata"].get("labels", {})) for one in of_kind(made, "Pod")]
    return [*workloads(made), *(Workload(one, one["spec"], labels) for one, labels in labelled)]


def selected(document: Manifest, pods: list[Workload]) -> list[Workload]:
    """The workloads whose pods a Service, a budget or a policy means."""
    spec = document["spec"]
    if document["kind"] == "Service":
        selector = {"matchLabels": spec.get("selector", {})}
    else:
        selector = spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"]
    return [one for one in pods if one.labels and selects(selector, one.labels)]


def monitored(documents: list[Manifest]) -> list[str]:
    """Monitors find a Service, or pods, with the port that they name."""
    found = []
    services = of_kind(documents, "Service")
    for monitor in of_kind(documents, "ServiceMonitor"):
        spec = monitor["spec"]
        labelled = [(one, one["metadata"].get("labels", {})) for one in services]
        chosen = [one for one, labels in labelled if selects(spec["selector"], labels)]
        if not chosen:
            found.append(f"{called(monitor)}: selects no Service of these documents")
        for service in chosen:
            names = {port["name"] for port in service["spec"]["ports"]}
            missing = {point["port"] for point in spec["endpoints"]} - names
            found += [f"{called(monitor)}: {called(service)} has no port {n}" for n in missing]
            label = spec.get("jobLabel")
            if label and label not in service["metadata"]["labels"]:
                found.append(f"{called(monitor)}: {called(service)} has no label {label}")
    for monitor in of_kind(documents, "PodMonitor"):
        if not any(
            selects(monitor["spec"]["selector"], one.labels) for one in workloads(documents)
        ):
            found.append(f"{called(monitor)}: selects no pod of these documents")
    return found


def autoscaled(documents: list[Manifest]) -> list[str]:
    """Autoscalers have a target, one at most for each, which leaves its replicas to them."""
    found, targets = [], Counter[str]()
    there = {called(document): document for document in documents}
    for scaler in of_kind(documents, "HorizontalPodAutoscaler", "ScaledObject"):
        reference = scaler["spec"]["scaleTargetRef"]
        name = f"{reference.get('kind', 'Deployment')}/{reference['name']}"
        targets[name] += 1
        if name not in there:
            found.append(f"{called(scaler)}: there is no {name}")
        elif "replicas" in there[name]["spec"]:
            found.append(f"{called(scaler)}: {name} has `replicas`, which each apply sets back")
        spec = scaler["spec"]
        low = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        if low > spec.get("maxReplicas", spec.get("maxReplicaCount", 100)):
            found.append(f"{called(scaler)}: at least {low} replicas are more than at most")
    return found + [
        f"{name}: {n} autoscalers would pull at it" for name, n in targets.items() if n > 1
    ]


def budgeted(documents: list[Manifest]) -> list[str]:
    """A budget never forbids every eviction, or no node could be drained."""
    found = []
    for budget in of_kind(documents, "PodDisruptionBudget"):
        spec = budget["spec"]
        if spec.get("maxUnavailable") in {0, "0", "0%"}:
            found.append(f"{called(budget)}: allows no eviction")
        for one in selected(budget, workloads(documents)):
            replicas = one.document["spec"].get("replicas")
            least = spec.get("minAvailable")
            if isinstance(least, int) and replicas is not None and least >= replicas:
                found.append(f"{called(budget)}: {least} of {one}'s {replicas} may never leave")
    return found
