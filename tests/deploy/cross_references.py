"""Faults of manifests that no schema knows: names and numbers that disagree, promises not kept.

Every check takes documents as `kubectl kustomize` prints them and yields one sentence per fault.
"""

import base64
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

from service.commands.program import WRONG_USAGE
from service.monitoring.metrics_server import LIVE, READY
from service.server import LOG_GRACE_S, TRACE_GRACE_S, WRITE_GRACE_S
from service.settings import PREFIX, Settings, load_settings
from tests.deploy.workloads import (
    Manifest,
    Workload,
    called,
    of_kind,
    selects,
    variables,
    workloads,
)
from tests.monitoring.prometheus_queries import known_series, metric_names

Faults = Iterator[str]
ROOT = Path(__file__).resolve().parents[2]


def faults(documents: list[Manifest]) -> list[str]:
    """All faults of documents that are applied together."""
    return [fault for check in CHECKS for fault in check(documents)]


# Selectors and targets.

# A Deployment and its canaries are parts of one thing.
PART = "app.kubernetes.io/part-of"


def own_selectors(documents: list[Manifest]) -> Faults:
    """A workload's selector and its spread constraints select its own pods, and no others."""
    for workload in workloads(documents):
        spec = workload.document["spec"]
        if "selector" in spec:
            chosen = [one for one in workloads(documents) if selects(spec["selector"], one.labels)]
            if chosen != [workload]:
                yield f"{workload}: its selector selects {[str(one) for one in chosen]}"
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            if not selects(constraint["labelSelector"], workload.labels):
                yield f"{workload}: spread over {constraint['topologyKey']} counts other pods"


def others_selectors(documents: list[Manifest]) -> Faults:
    """Services, budgets and policies select pods; only a policy or a Service of a part several."""
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        chosen = {str(one) for one in selected(document, workloads(documents))}
        may_share = document["kind"] == "NetworkPolicy" or PART in document["spec"]["selector"]
        if not chosen:
            yield f"{called(document)}: selects no pod of these documents"
        elif len(chosen) > 1 and not may_share:
            yield f"{called(document)}: selects the pods of several: {sorted(chosen)}"


def policies(documents: list[Manifest]) -> Faults:
    """A NetworkPolicy selects every pod."""
    wanted = workloads(documents)
    written = of_kind(documents, "NetworkPolicy")
    protected = [one for policy in written for one in selected(policy, wanted)]
    yield from (f"{one}: no NetworkPolicy selects it" for one in wanted if one not in protected)


def selected(document: Manifest, pods: list[Workload]) -> list[Workload]:
    """The workloads whose pods a Service, a budget or a policy selects."""
    spec = document["spec"]
    if document["kind"] == "Service":
        selector = {"matchLabels": spec.get("selector", {})}
    else:
        selector = spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"]
    return [one for one in pods if one.labels and selects(selector, one.labels)]


def monitored(documents: list[Manifest]) -> Faults:
    """ServiceMonitors select a Service that has the named ports and the job's label."""
    for monitor in of_kind(documents, "ServiceMonitor"):
        spec = monitor["spec"]
        chosen = [
            service
            for service in of_kind(documents, "Service")
            if selects(spec["selector"], service["metadata"].get("labels", {}))
        ]
        if not chosen:
            yield f"{called(monitor)}: selects no Service of these documents"
        if len(chosen) > 1:
            yield f"{called(monitor)}: selects several Services"
        for service in chosen:
            names = {port["name"] for port in service["spec"]["ports"]}
            for name in {point["port"] for point in spec["endpoints"]} - names:
                yield f"{called(monitor)}: {called(service)} has no port {name}"
            # Rules and autoscalers know a Deployment by its name, which is the job.
            job = service["metadata"]["labels"].get(spec["jobLabel"])
            for workload in selected(service, workloads(documents)):
                if workload.document["metadata"]["name"] != job:
                    yield f"{called(monitor)}: the job of {workload} is {job}"


def pods_monitored(documents: list[Manifest]) -> Faults:
    """PodMonitors select pods that have the named port, which a policy opens."""
    for monitor in of_kind(documents, "PodMonitor"):
        spec = monitor["spec"]
        chosen = [one for one in workloads(documents) if selects(spec["selector"], one.labels)]
        for name in (point["port"] for point in spec["podMetricsEndpoints"]):
            if not any(_number(name, one) for one in chosen):
                yield f"{called(monitor)}: no pod has a port {name}"


def autoscaled(documents: list[Manifest]) -> Faults:
    """An autoscaler has a target of its own, which does not set `replicas`."""
    targets = Counter[str]()
    by_name = {called(document): document for document in documents}
    for scaler in of_kind(documents, "HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        name = f"{spec['scaleTargetRef']['kind']}/{spec['scaleTargetRef']['name']}"
        targets[name] += 1
        if name not in by_name:
            yield f"{called(scaler)}: there is no {name}"
        elif "replicas" in by_name[name]["spec"]:
            yield f"{called(scaler)}: {name} has `replicas`, which every apply resets"
        low = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        if low > spec.get("maxReplicas", spec.get("maxReplicaCount", 100)):
            yield f"{called(scaler)}: the minimum of replicas exceeds the maximum"
    yield from (f"{name} has {n} autoscalers" for name, n in targets.items() if n > 1)


def budgeted(documents: list[Manifest]) -> Faults:
    """A budget never forbids every eviction: a node could not be drained."""
    for budget in of_kind(documents, "PodDisruptionBudget"):
        spec = budget["spec"]
        if spec.get("maxUnavailable") in {0, "0", "0%"}:
            yield f"{called(budget)}: allows no eviction"
        for one in selected(budget, workloads(documents)):
            replicas, least = one.document["spec"].get("replicas"), spec.get("minAvailable")
            if isinstance(least, int) and replicas is not None and least >= replicas:
                yield f"{called(budget)}: requires {least} of {replicas} replicas of {one}"


# Quantities and resources.

QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[kMGTPE]|[KMGTPE]i)?")
UNITS = {
    **{unit: Decimal(1000) ** n for n, unit in enumerate(("m", None, *"kMGTPE"), start=-1)},
    **{f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", start=1)},
}
# The API server accepts fractions of a byte or of a device.
WHOLE = re.compile(r"memory|storage|ephemeral-storage|[\w.-]+/[\w.-]+")


def number(quantity: str | int) -> Decimal | None:
    """The value of a quantity such as `250m` or `2Gi`; None if it is none."""
    match = QUANTITY.fullmatch(str(quantity))
    return match and Decimal(match[1]) * UNITS[match[2]]


def quantities(documents: list[Manifest]) -> Faults:
    """Quantities are positive, and whole for bytes and devices."""
    for where, resource, quantity in _quantities(documents):
        amount = number(quantity)
        if not amount or (WHOLE.fullmatch(resource) and amount % 1):
            yield f"{where}: {quantity} is no quantity of {resource}"


def resources(documents: list[Manifest]) -> Faults:
    """No limit is below a request, and none is of CPUs, which would throttle."""
    for workload in workloads(documents):
        for container in workload.containers:
            where = f"{workload}: {container['name']}"
            given = container.get("resources", {})
            requests, limits = given.get("requests", {}), given.get("limits", {})
            if "cpu" in limits:
                yield f"{where} has a limit of CPUs"
            for name in requests.keys() & limits.keys():
                if (number(requests[name]) or 0) > (number(limits[name]) or 0):
                    yield f"{where} requests more {name} than its limit"


def _quantities(documents: list[Manifest]) -> Iterator[tuple[str, str, str | int]]:
    for workload in workloads(documents):
        for container in workload.containers:
            for amounts in container.get("resources", {}).values():
                for resource, quantity in amounts.items():
                    yield f"{workload}: {container['name']}", resource, quantity
        for volume in workload.pod.get("volumes", []):
            if "sizeLimit" in (volume.get("emptyDir") or {}):
                yield f"{workload}: {volume['name']}", "storage", volume["emptyDir"]["sizeLimit"]
    for claim in of_kind(documents, "PersistentVolumeClaim"):
        yield called(claim), "storage", claim["spec"]["resources"]["requests"]["storage"]
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            yield called(scaler), "value", metric["external"]["target"]["value"]


# Ports.


def service_ports(documents: list[Manifest]) -> Faults:
    """A Service leads to ports of the pods that it selects."""
    for service in of_kind(documents, "Service"):
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for workload in selected(service, workloads(documents)):
                # A number needs no declaration: torch's port is an argument.
                found = target if isinstance(target, int) else _number(target, workload)
                if found is None:
                    yield f"{called(service)}: {workload} has no port {target}"
                elif service["spec"].get("clusterIP") == "None" and found != port["port"]:
                    # A headless Service translates no numbers.
                    yield f"{called(service)}: {target} of {workload} is {found}"


def routes(documents: list[Manifest]) -> Faults:
    """Routes and Ingresses lead to ports of a Service."""
    services = {one["metadata"]["name"]: one for one in of_kind(documents, "Service")}
    for document in of_kind(documents, "HTTPRoute", "GRPCRoute", "Ingress"):
        for rule in document["spec"]["rules"]:
            ends = [(one["name"], one["port"]) for one in rule.get("backendRefs", [])]
            for path in rule.get("http", {}).get("paths", []):
                service = path["backend"]["service"]
                ends.append((service["name"], service["port"]["name"]))
            for name, port in ends:
                offered = services.get(name, {"spec": {"ports": []}})["spec"]["ports"]
                if port not in {p[key] for p in offered for key in ("name", "port")}:
                    yield f"{called(document)}: there is no port {port} of {name}"


def policy_ports(documents: list[Manifest]) -> Faults:
    """The pods have the ports that a policy allows, and it allows those that a Service offers."""
    services = of_kind(documents, "Service")
    for policy in of_kind(documents, "NetworkPolicy"):
        rules = policy["spec"].get("ingress", [])
        for workload in selected(policy, workloads(documents)):
            named = [port["port"] for rule in rules for port in rule.get("ports", [])]
            allowed = {name: _number(name, workload) for name in named}
            for name in [name for name, found in allowed.items() if found is None]:
                yield f"{called(policy)}: {workload} has no port {name}"
            if not all("ports" in rule for rule in rules):
                continue
            for service in [one for one in services if selected(one, [workload])]:
                for port in service["spec"]["ports"]:
                    target = port.get("targetPort", port["port"])
                    if _number(target, workload) not in allowed.values():
                        yield f"{called(policy)}: denies {target} of {called(service)}"


def _number(port: str | int, workload: Workload) -> int | None:
    """The number of a port given by name or number; None if no container declares it."""
    declared = [found for one in workload.containers for found in one.get("ports", [])]
    matching = (p["containerPort"] for p in declared if port in (p["name"], p["containerPort"]))
    return next(matching, None)


# References: ConfigMaps, Secrets, claims, accounts and volumes.

# Annotation `expects/NAME: KIND` for an object that the cluster must already have.
EXPECTS = "expects/"


def objects(documents: list[Manifest]) -> Faults:
    """ConfigMaps, Secrets, claims and accounts that pods name exist, with the keys."""
    existing = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    for workload in workloads(documents):
        notes = workload.document["metadata"].get("annotations", {})
        expected = {(kind, name.removeprefix(EXPECTS)) for name, kind in notes.items()}
        for kind, name, keys, optional in _references(workload):
            target = existing.get((kind, name))
            if target is not None:
                data = {**target.get("data", {}), **target.get("stringData", {})}
                yield from (f"{workload}: {kind} {name} has no {k}" for k in keys if k not in data)
            elif not optional and (kind, name) not in expected:
                yield f"{workload}: there is no {kind} {name}"


def _references(workload: Workload) -> Iterator[tuple[str, str, list[str], bool]]:
    """Kind, name, keys, and whether it is optional."""
    if "serviceAccountName" in workload.pod:
        yield "ServiceAccount", workload.pod["serviceAccountName"], [], False
    for volume in workload.pod.get("volumes", []):
        for kind, field, name in (
            ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
            ("Secret", "secret", "secretName"),
            ("ConfigMap", "configMap", "name"),
        ):
            if source := volume.get(field):
                keys = [item["key"] for item in source.get("items", [])]
                yield kind, source[name], keys, source.get("optional", False)
    for container in workload.containers:
        sources = [*container.get("envFrom", [])]
        sources += [variable.get("valueFrom", {}) for variable in container.get("env", [])]
        for source in sources:
            for field, reference in source.items():
                if field[:6] in ("config", "secret"):
                    kind = "ConfigMap" if field.startswith("config") else "Secret"
                    keys = [reference["key"]] if "key" in reference else []
                    yield kind, reference["name"], keys, reference.get("optional", False)


def mounts(documents: list[Manifest]) -> Faults:
    """Mounts have a volume, volumes a mount, and no two mounts of a container one path."""
    for workload in workloads(documents):
        unused = volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        for container in workload.containers:
            mounted = container.get("volumeMounts", [])
            names, places = ({one[key] for one in mounted} for key in ("name", "mountPath"))
            unused = unused - names
            if names - volumes or len(places) < len(mounted):
                yield f"{workload}: {container['name']} mounts no volume, or two at one path"
        yield from (f"{workload}: no container mounts {name}" for name in sorted(unused))


# The server in a pod: variables against settings, probes against routes, paths against mounts.

WRITTEN = ("cache", "ports_file")
READ = ("api_keys_file", "tls_cert", "tls_key", "tls_client_ca", "model_repository")


def settings(documents: list[Manifest]) -> Faults:
    """The server accepts its variables, and none of them is a secret."""
    for workload, container in _servers(documents):
        try:
            _settings(container, documents)
        except (ValueError, SystemExit) as error:
            yield f"{workload}: the server refuses its settings: {error}"
        if f"{PREFIX}API_KEYS" in variables(container, documents):
            yield f"{workload}: API keys belong into a file, not into a variable"


def ports(documents: list[Manifest]) -> Faults:
    """The container declares exactly the ports on which the server listens."""
    for workload, container, chosen in _accepted(documents):
        if chosen.host in {"127.0.0.1", "::1", "localhost"}:
            yield f"{workload}: the server answers no request from outside its pod"
        listening = [(n, getattr(chosen, f"{n}_port")) for n in ("http", "grpc", "metrics")]
        declared = [(port["name"], port["containerPort"]) for port in container["ports"]]
        if declared != listening:
            yield f"{workload}: its ports are {declared}, the server's {listening}"


def probes(documents: list[Manifest]) -> Faults:
    """Each probe asks for the route that has its meaning, on the port without callers."""
    for workload, container, chosen in _accepted(documents):
        numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe, meaning in {"startup": READY, "readiness": READY, "liveness": LIVE}.items():
            asked = container.get(f"{probe}Probe", {}).get("httpGet", {})
            port, path = numbers.get(asked.get("port"), 0), asked.get("path")
            if path != meaning or port != chosen.metrics_port or "scheme" in asked:
                yield f"{workload}: {probe}: {path} on {port} is not what it has to ask"


def startup(documents: list[Manifest]) -> Faults:
    """A pod has time to start, and a rollout is not reported as stuck while it may still start."""
    for workload, container in _servers(documents):
        deadline_s = workload.document["spec"].get("progressDeadlineSeconds", 600)
        probe = container.get("startupProbe", {})
        limit_s = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        if limit_s < LEAST_STARTUP_S:
            yield f"{workload}: {limit_s} s are too few for a cold start"
        if workload.kind == "Deployment" and limit_s >= deadline_s:
            yield f"{workload}: may start for {limit_s} s, but must be done in {deadline_s}"


def shutdown(documents: list[Manifest]) -> Faults:
    """Balancers have time to notice a stop, and the drain fits into the grace period."""
    for workload, container, chosen in _accepted(documents):
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        notice_s = before_s.get("seconds", 0) + chosen.drain_delay_s
        if not notice_s:
            yield f"{workload}: stops before balancers notice"
        needed_s = notice_s + chosen.drain_timeout_s + WRITE_GRACE_S + LOG_GRACE_S + TRACE_GRACE_S
        grace_s = workload.pod.get("terminationGracePeriodSeconds", 30)
        if grace_s <= needed_s:
            yield f"{workload}: killed after {grace_s} s, but may need {needed_s} s"


def paths(documents: list[Manifest]) -> Faults:
    """Paths that the server or an init container reads are mounted, others also writable."""
    for workload, container, chosen in _accepted(documents):
        written = [getattr(chosen, name) for name in WRITTEN]
        read = [getattr(chosen, name) for name in READ]
        read += [source.partition("=")[2] or source for source in chosen.model]
        yield from _unmounted(workload, container, read=read, written=["/tmp", *written])
    for workload in workloads(documents):
        for container in workload.pod.get("initContainers", []):
            values = variables(container, documents)
            written = [values.get(name) for name in ("TIPSERVE_CACHE", "HF_HOME")]
            read = [values.get("TIPSERVE_MODEL")]
            yield from _unmounted(workload, container, read=read, written=written)


def files(documents: list[Manifest]) -> Faults:
    """A file that the server reads from a Secret is one of its keys."""
    secrets = {one["metadata"]["name"]: one for one in of_kind(documents, "Secret")}
    for workload, container, chosen in _accepted(documents):
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        for path in filter(None, (getattr(chosen, name) for name in READ)):
            volume = volumes.get(places.get(str(path.parent), ""), {})
            secret = secrets.get(volume.get("secret", {}).get("secretName"))
            if secret is not None and path.name not in secret.get("data", {}):
                yield f"{workload}: {called(secret)} has no {path.name}"


def _unmounted(
    workload: Workload, container: Manifest, *, read: list[object], written: list[object]
) -> Faults:
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    places = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    for path in filter(lambda path: str(path).startswith("/"), [*read, *written]):
        whole = PurePosixPath(str(path))
        above = [place for place in map(str, (whole, *whole.parents)) if place in places]
        if not above:
            yield f"{workload}: {container['name']}: nothing is mounted at {path}"
        elif path in written:
            mount = places[above[0]]
            kinds = volumes.get(mount["name"], {}).keys() & {"emptyDir", "persistentVolumeClaim"}
            if mount.get("readOnly") or not kinds:
                yield f"{workload}: {container['name']}: cannot write to {path}"


def _servers(documents: list[Manifest]) -> Iterator[tuple[Workload, Manifest]]:
    for workload in workloads(documents):
        for container in workload.servers:
            yield workload, container


def _accepted(documents: list[Manifest]) -> Iterator[tuple[Workload, Manifest, Settings]]:
    """Servers with their settings; `settings` reports those that are refused."""
    for workload, container in _servers(documents):
        try:
            yield workload, container, _settings(container, documents)
        except (ValueError, SystemExit):
            continue


def _settings(container: Manifest, documents: list[Manifest]) -> Settings:
    environment = variables(container, documents)
    with patch.dict(os.environ, environment, clear=True):
        return load_settings(container.get("args", []), environment)


# What only a node, another namespace, an operator or the API server knows.

# By the field that holds them.
KNOWN = {
    "resources": {"cpu", "memory", "nvidia.com/gpu", "nvidia.com/mig-2g.20gb"},
    "topologyKey": {"topology.kubernetes.io/zone", "kubernetes.io/hostname"},
    "tolerations": {"nvidia.com/gpu"},
    "nodeSelector": {"nvidia.com/gpu.present"},
    "kubernetes.io/metadata.name": {"kube-system", "openshift-dns", "monitoring", "observability"},
    "path": {"/metrics"},
    "prometheus.kserve.io/path": {"/metrics"},
    "prometheus.kserve.io/port": {str(Settings.model_fields["metrics_port"].default)},
    "metricType": {"Value"},
}
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
CRON_PART = re.compile(r"(?:\*|(\d+)(?:-(\d+))?)(?:/[1-9]\d*)?")
# `python -m benchmarks.cold_start` measured 18 s for B/14; another node may be three times as slow.
LEAST_STARTUP_S = 3 * 18
WEEK_S = 7 * 86400


def well_known(documents: list[Manifest]) -> Faults:
    """Names that are not ours are those that the cluster has."""
    for document in documents:
        for field, name in _foreign_names(document):
            if name not in KNOWN[field]:
                yield f"{called(document)}: {field}: {name} is not known"


def _foreign_names(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for item in value:
            yield from _foreign_names(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in ("requests", "limits") and "storage" not in inner:
                yield from (("resources", name) for name in inner)
            elif key == "tolerations":
                yield from ((key, one["key"]) for one in inner)
            elif key == "nodeSelector":
                yield from ((key, name) for name in inner)
            elif key == "key" and inner in KNOWN:
                yield from ((inner, name) for name in value["values"])
            elif key == "endpoints":
                yield from (("path", one["path"]) for one in inner)
            elif key in KNOWN and key != "path" and isinstance(inner, str):
                yield key, inner
            else:
                yield from _foreign_names(inner)


def refused(documents: list[Manifest]) -> Faults:
    """What the API server, KEDA or a claim's volume would refuse."""
    for workload in workloads(documents):
        spec = workload.document["spec"]
        rolling = spec.get("strategy", {}).get("rollingUpdate", {})
        if rolling and not any(int(str(n).rstrip("%")) for n in rolling.values()):
            yield f"{workload}: neither maxSurge nor maxUnavailable lets it roll out"
        if workload.kind not in ("Job", "CronJob") or spec.get("parallelism", 1) > 1:
            for claim in of_kind(documents, "PersistentVolumeClaim"):
                if claim["spec"]["accessModes"] != ["ReadWriteMany"]:
                    yield f"{called(claim)}: {workload} has several pods"
        parts = str(spec.get("schedule", "* * * * *")).split()
        for part, (low, high) in zip(parts, CRON_RANGES, strict=True):
            found = [CRON_PART.fullmatch(one) for one in part.split(",")]
            numbers = [int(n) for match in found if match for n in match.groups() if n]
            if not all(found) or not all(low <= n <= high for n in numbers):
                yield f"{workload}: {part} in its schedule is not within {low} to {high}"
    for scaled in of_kind(documents, "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            if not trigger["metadata"]["threshold"].replace(".", "", 1).isdigit():
                yield f"{called(scaled)}: KEDA takes a number as threshold, no quantity"


def retried(documents: list[Manifest]) -> Faults:
    """Jobs retry after evictions and not after mistakes, one at a time, and end within a week."""
    for workload in workloads(documents):
        spec = workload.document["spec"]
        job = spec.get("jobTemplate", {}).get("spec", spec)
        rules = job.get("podFailurePolicy", {}).get("rules", [])
        for rule in rules:
            exits = rule.get("onExitCodes", {"values": [WRONG_USAGE]})
            if (rule["action"] == "Ignore") != ("onPodConditions" in rule):
                yield f"{workload}: only evictions do not count as failures"
            if WRONG_USAGE not in exits["values"]:
                yield f"{workload}: a wrong command line is retried"
            if exits.get("containerName") not in {None, *(c["name"] for c in workload.containers)}:
                yield f"{workload}: there is no container {exits['containerName']}"
        # torchrun ends with 1, whatever its process ended with.
        has_status = any(c.get("command") != ["torchrun"] for c in workload.containers)
        if rules and (len(rules) != 1 + has_status or workload.pod["restartPolicy"] != "Never"):
            yield f"{workload}: a rule each for evictions and mistakes, and pods that never restart"
        if workload.kind == "CronJob" and (
            spec.get("concurrencyPolicy") != "Forbid"
            or job.get("activeDeadlineSeconds", WEEK_S) >= WEEK_S
        ):
            yield f"{workload}: a run that hangs meets the next one, or keeps it from starting"


def balanced(documents: list[Manifest]) -> Faults:
    """Callers' Services have only pods that are ready, and a headless one is headless."""
    for service in of_kind(documents, "Service"):
        spec = service["spec"]
        is_for_callers = {"http", "grpc"} & {port["name"] for port in spec["ports"]}
        if is_for_callers and spec.get("publishNotReadyAddresses"):
            yield f"{called(service)}: callers get pods that are not ready"
        if service["metadata"]["name"].endswith("-headless") != (
            bool(is_for_callers) and spec.get("clusterIP") == "None"
        ):
            yield f"{called(service)}: clusterIP is {spec.get('clusterIP')}"


# Images, users, rights and secrets.

# Suffixes of our images; deploy/README.md says how each is built.
VARIANTS = ("", "-gpu", "-convert", "-train", "-bulk", "-ray", "-stores")
VERSION_LABEL = "app.kubernetes.io/version"
SECRET_NAME = re.compile(r"(KEY|KEYS|TOKEN|PASSWORD|SECRET|CREDENTIALS)$", re.IGNORECASE)


def images(documents: list[Manifest]) -> Faults:
    """Images and labels have the project's version."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = tomllib.loads(text)["project"]["version"]
    known = {f"tipserve:{version}{variant}" for variant in VARIANTS}
    for workload in workloads(documents):
        for container in workload.containers:
            if str(container.get("image")).rpartition("/")[2] not in known:
                yield f"{workload}: {container['name']} has the image {container.get('image')}"
    for document in documents:
        label = document["metadata"].get("labels", {}).get(VERSION_LABEL, version)
        if label != version:
            yield f"{called(document)}: {VERSION_LABEL} is {label}"


def users(documents: list[Manifest]) -> Faults:
    """Containers run as the user of their image; what else hardens them is checked by checkov."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    user, group = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[-1]
    wanted = {"runAsUser": int(user), "runAsGroup": int(group), "runAsNonRoot": True}
    for workload in workloads(documents):
        for container in workload.containers:
            common = workload.pod.get("securityContext", {})
            context = {**common, **container.get("securityContext", {})}
            wrong = {name for name, value in wanted.items() if context.get(name) != value}
            yield from (f"{workload}: {container['name']}: {n} is wrong" for n in sorted(wrong))


def rights(documents: list[Manifest]) -> Faults:
    """Pods get no Services' variables and no path of their node; checkov checks the rest."""
    for workload in workloads(documents):
        # A TrainJob has no such field.
        if workload.kind != "TrainJob" and workload.pod.get("enableServiceLinks") is not False:
            yield f"{workload}: enableServiceLinks is not false"
        if any("hostPath" in volume for volume in workload.pod.get("volumes", [])):
            yield f"{workload}: mounts a path of its node"


def secrets(documents: list[Manifest]) -> Faults:
    """No secret is written down: Secrets hold only comments, variables only paths."""
    for secret in of_kind(documents, "Secret"):
        values = [base64.b64decode(text).decode() for text in secret.get("data", {}).values()]
        lines = [
            x for v in (*values, *secret.get("stringData", {}).values()) for x in v.split("\n")
        ]
        if any(line.strip() and not line.startswith("#") for line in lines):
            yield f"{called(secret)}: holds a value"
    found = [(called(one), one.get("data", {})) for one in of_kind(documents, "ConfigMap")]
    for workload in workloads(documents):
        for container in workload.containers:
            plain = {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}
            found.append((str(workload), plain))
    for where, data in found:
        for name, value in data.items():
            if SECRET_NAME.search(name) and not value.startswith("/"):
                yield f"{where}: {name} is a secret in plain text"


# Queries of autoscalers and rules.


def queries(documents: list[Manifest]) -> Faults:
    """Every series in a query is exported by the server or recorded by a rule."""
    groups = [
        group for one in of_kind(documents, "PrometheusRule") for group in one["spec"]["groups"]
    ]
    asked = [rule["expr"] for group in groups for rule in group["rules"]]
    for scaled in of_kind(documents, "ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]["name"]
        own = f'{{namespace="{scaled["metadata"].get("namespace", "default")}",job="{target}"}}'
        for query in (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]):
            asked.append(query)
            if not query.startswith(f"group by (namespace, job) (up{own}) *"):
                yield f"{called(scaled)}: {query} is not only of {own}"
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        for metric in (one["external"]["metric"] for one in scaler["spec"]["metrics"]):
            target = scaler["spec"]["scaleTargetRef"]["name"]
            if metric["selector"]["matchLabels"] != {"job": target}:
                yield f"{called(scaler)}: {metric['name']} is not only of {target}"
    known = known_series(groups) if asked else frozenset()
    for query in asked:
        for name in metric_names(query) - known:
            yield f"{query}: there is no series {name}"


CHECKS: tuple[Callable[[list[Manifest]], Faults], ...] = (
    own_selectors,
    others_selectors,
    policies,
    monitored,
    pods_monitored,
    autoscaled,
    budgeted,
    quantities,
    resources,
    service_ports,
    routes,
    policy_ports,
    objects,
    mounts,
    settings,
    ports,
    probes,
    startup,
    shutdown,
    paths,
    files,
    images,
    users,
    rights,
    secrets,
    queries,
    well_known,
    refused,
    retried,
    balanced,
)
