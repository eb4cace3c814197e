"""Faults of manifests that no schema knows: names and numbers that disagree.

Every check takes documents as `kubectl kustomize` prints them and yields one sentence per fault.
"""

import os
import re
from collections.abc import Iterator
from unittest.mock import patch

from service.monitoring.metrics_server import LIVE, READY
from service.server import LOG_GRACE_S, TRACE_GRACE_S, WRITE_GRACE_S, max_caller_bytes
from service.settings import Settings, load_settings
from tests.deploy.workloads import (
    Manifest,
    Workload,
    called,
    nodes,
    of_kind,
    selects,
    variables,
    workloads,
)

Faults = Iterator[str]
# A Deployment and its canaries are parts of one thing.
PART = "app.kubernetes.io/part-of"
# Annotation `expects/NAME: KIND` for an object that the cluster must already have.
EXPECTS = "expects/"
# What a pod refers to, by the field that holds the reference; a Secret is named so in several ways.
REFERRED = {"persistentVolumeClaim": "PersistentVolumeClaim", "serviceAccount": "ServiceAccount"}
REFERRED |= dict.fromkeys(("secret", "secretRef", "secretKeyRef"), "Secret")
REFERRED |= dict.fromkeys(("configMap", "configMapRef", "configMapKeyRef"), "ConfigMap")
DNS_PORTS = (53, 5353)
# Of a process with the bundled model, measured under some load.
RESIDENT_BYTES = 269 * 2**20
# Seconds until a failing probe acts: deploy/README.md, "Probes".
ACTS_S = {"startup": range(180, 601), "readiness": range(5, 11), "liveness": range(60, 121)}
SECRET_NAME = re.compile(r"(KEY|KEYS|TOKEN|PASSWORD|SECRET|CREDENTIALS)$", re.IGNORECASE)


def faults(documents: list[Manifest]) -> list[str]:
    """All faults of documents that are applied together."""
    checks = (
        selectors,
        service_ports,
        policy_ports,
        routes,
        objects,
        servers,
        secrets,
    )
    return [fault for check in checks for fault in check(documents)]


def selectors(documents: list[Manifest]) -> Faults:
    """Selectors select pods, those of a workload its own only, and each pod has a policy."""
    pods, protected = workloads(documents), set[str]()
    for workload in pods:
        selector = workload.document["spec"].get("selector")
        if selector and [one for one in pods if selects(selector, one.labels)] != [workload]:
            yield f"{workload}: its selector selects others, or not its own"
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        chosen = {str(one) for one in selected(document, pods)}
        if document["kind"] == "NetworkPolicy":
            protected |= chosen
        elif len(chosen) > 1 and PART not in document["spec"]["selector"]:
            yield f"{called(document)}: selects the pods of several: {sorted(chosen)}"
        if not chosen:
            yield f"{called(document)}: selects no pod of these documents"
    yield from (f"{one}: no NetworkPolicy selects it" for one in pods if str(one) not in protected)


def selected(document: Manifest, pods: list[Workload]) -> list[Workload]:
    """The workloads whose pods a Service, a budget or a policy selects."""
    spec = document["spec"]
    if document["kind"] == "Service":
        # Without a selector it selects nothing.
        selector = {"matchLabels": spec.get("selector", {"": ""})}
    else:
        selector = spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"]
    return [one for one in pods if one.labels and selects(selector, one.labels)]


def service_ports(documents: list[Manifest]) -> Faults:
    """A Service leads to ports of the pods that it selects."""
    for service in of_kind(documents, "Service"):
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for workload in selected(service, workloads(documents)):
                # A number needs no declaration: torch's port is an argument.
                found = target if isinstance(target, int) else _number(target, workload)
                # A headless Service translates no numbers.
                is_headless = service["spec"].get("clusterIP") == "None"
                if found is None or (is_headless and found != port["port"]):
                    yield f"{called(service)}: {target} of {workload} is {found}"
            spoken = port.get("appProtocol")
            if port.get("name") == "grpc" and spoken not in (None, "kubernetes.io/h2c"):
                yield f"{called(service)}: balancers would speak {spoken} to gRPC"


def policy_ports(documents: list[Manifest]) -> Faults:
    """The pods have the ports that a policy allows, and it allows those that a Service offers."""
    services = of_kind(documents, "Service")
    for policy in of_kind(documents, "NetworkPolicy"):
        rules = policy["spec"].get("ingress", [])
        for _, node in nodes(policy["spec"]):
            if node.get("protocol", "TCP") != "TCP" and node["port"] not in DNS_PORTS:
                yield f"{called(policy)}: nothing speaks {node['protocol']} on {node['port']}"
        for workload in selected(policy, workloads(documents)):
            named = [port["port"] for rule in rules for port in rule.get("ports", [])]
            allowed = [_number(name, workload) for name in named]
            if None in allowed:
                yield f"{called(policy)}: {workload} has not all ports of {named}"
            is_open = not all("ports" in rule for rule in rules)
            for service in [one for one in services if selected(one, [workload])]:
                for port in service["spec"]["ports"]:
                    target = port.get("targetPort", port["port"])
                    if not is_open and _number(target, workload) not in allowed:
                        yield f"{called(policy)}: denies {target} of {called(service)}"


def routes(documents: list[Manifest]) -> Faults:
    """Routes and Ingresses lead to ports of a Service."""
    services = {one["metadata"]["name"]: one for one in of_kind(documents, "Service")}
    for document in of_kind(documents, "HTTPRoute", "GRPCRoute", "Ingress"):
        for key, node in nodes(document):
            if key in ("backendRefs", "service"):
                port = node["port"] if key == "backendRefs" else node["port"]["name"]
                offered = services.get(node["name"], {"spec": {"ports": []}})["spec"]["ports"]
                if port not in {p[name] for p in offered for name in ("name", "port")}:
                    yield f"{called(document)}: there is no port {port} of {node['name']}"


def _bytes(amount: str) -> int:
    return int(amount[:-2]) * {"Mi": 2**20, "Gi": 2**30}[amount[-2:]]


def _number(port: str | int, workload: Workload) -> int | None:
    """The number of a port given by name or number; None if no container declares it."""
    declared = [found for one in workload.containers for found in one.get("ports", [])]
    matching = (p["containerPort"] for p in declared if port in (p["name"], p["containerPort"]))
    return next(matching, None)


def objects(documents: list[Manifest]) -> Faults:
    """ConfigMaps, Secrets, claims and accounts that pods name exist, with the keys."""
    existing = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    for workload in workloads(documents):
        notes = workload.document["metadata"].get("annotations", {})
        expected = {(kind, name.removeprefix(EXPECTS)) for name, kind in notes.items()}
        account = workload.pod.get("serviceAccountName")
        account_node = [("serviceAccount", {"name": account})] if account else []
        for field, node in (*nodes(workload.pod), *account_node):
            if field not in REFERRED or node.get("optional"):
                continue
            name = node.get("name", node.get("secretName", node.get("claimName")))
            target = existing.get((REFERRED[field], name))
            if target is None:
                if (REFERRED[field], name) not in expected:
                    yield f"{workload}: there is no {REFERRED[field]} {name}"
            elif "key" in node and node["key"] not in target.get("data", {}):
                yield f"{workload}: {called(target)} has no {node['key']}"


def servers(documents: list[Manifest]) -> Faults:
    """The server accepts its settings, and they fit its container."""
    for workload in workloads(documents):
        for container in workload.servers:
            environment = variables(container, documents)
            try:
                with patch.dict(os.environ, environment, clear=True):
                    chosen = load_settings(container.get("args", []), environment)
            except (ValueError, SystemExit) as error:
                yield f"{workload}: the server refuses its settings: {error}"
                continue
            for check in (_probes, _memory, _shutdown):
                yield from (f"{workload}: {fault}" for fault in check(workload, container, chosen))


def _probes(_: Workload, container: Manifest, chosen: Settings) -> Faults:
    """Each probe asks for the route that has its meaning, on the port without callers, in time."""
    for probe, meaning in {"startup": READY, "readiness": READY, "liveness": LIVE}.items():
        trials = container.get(f"{probe}Probe", {})
        asked = trials.get("httpGet", {})
        if asked != {"path": meaning, "port": "metrics"}:
            yield f"{probe}: {asked} is not what it has to ask"
        acts_s = trials.get("periodSeconds", 10) * trials.get("failureThreshold", 3)
        if acts_s not in ACTS_S[probe]:
            yield f"{probe}: acts after {acts_s} s"


def _memory(_: Workload, container: Manifest, chosen: Settings) -> Faults:
    """The most that callers can take fits into the limit, beside the processes."""
    needed = max_caller_bytes(chosen) + chosen.workers * RESIDENT_BYTES
    limit = _bytes(container["resources"]["limits"]["memory"])
    if limit < needed:
        yield f"callers can make it take {needed} bytes, and {limit} are its limit"


def _shutdown(workload: Workload, container: Manifest, chosen: Settings) -> Faults:
    """Balancers have time to notice a stop, and the drain fits into the grace period."""
    before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
    notice_s = before_s.get("seconds", 0) + chosen.drain_delay_s
    needed_s = notice_s + chosen.drain_timeout_s + WRITE_GRACE_S + LOG_GRACE_S + TRACE_GRACE_S
    grace_s = workload.pod.get("terminationGracePeriodSeconds", 30)
    if not notice_s or grace_s <= needed_s:
        yield f"{notice_s} s of notice, killed after {grace_s} of {needed_s} s"


def secrets(documents: list[Manifest]) -> Faults:
    """No variable holds a secret."""
    for document in documents:
        plain = [*document.get("data", {}).items()] if document["kind"] == "ConfigMap" else []
        for _, node in nodes(document):
            plain += [(node["name"], node["value"])] if node.keys() == {"name", "value"} else []
        for name, value in plain:
            if SECRET_NAME.search(name) and not value.startswith("/"):
                yield f"{called(document)}: {name} is a secret in plain text"
